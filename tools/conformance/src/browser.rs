//! Chromium without a screen, as an eye for pages.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

const PROGRAM: &str = "chromium";

/// Whether it is installed.
pub fn is_there() -> bool {
    Command::new(PROGRAM).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Eye {
    /// Of the window, in its pixels.
    pub width: u32,
    pub dark: bool,
}

fn chromium(folder: &Path, dark: bool, line: &[&str]) -> Result<Output> {
    let profile = tempfile::tempdir()?;
    let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!dark));
    let output = Command::new(PROGRAM)
        .current_dir(folder)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--window-size=1600,1200", &scheme])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(line)
        .output()
        .context(PROGRAM)?;
    ensure!(output.status.success(), "{PROGRAM}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// Opens a page in a frame of this width, and gives what a script makes of it: an expression over `page`, its document. What a
/// script on the page itself does shows there, too.
pub fn look(page: &Path, eye: Eye, script: &str) -> Result<Value> {
    let html = fs::read_to_string(page)?;
    let quoted = html.replace('&', "&amp;").replace('"', "&quot;");
    let probe = format!(
        "<!doctype html><meta charset=utf-8><title>no answer</title><iframe style=\"width:{}px;height:1000px;border:0\" \
         onload='const page = this.contentDocument; document.title = JSON.stringify({script})' srcdoc=\"{quoted}\"></iframe>",
        eye.width
    );
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("probe.html"), probe)?;
    let address = format!("file://{}", folder.path().join("probe.html").display());
    let output = chromium(folder.path(), eye.dark, &["--dump-dom", &address])?;
    let text = String::from_utf8(output.stdout)?;
    let title = text.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
    let (title, _) = title.context("a title")?;
    let title = title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&title).with_context(|| format!("the page gives no answer: {title}"))
}

/// Prints a page, and gives how many sheets it takes.
pub fn print(page: &Path) -> Result<usize> {
    let folder = tempfile::tempdir()?;
    let address = format!("file://{}", page.canonicalize()?.display());
    chromium(folder.path(), true, &["--no-pdf-header-footer", "--print-to-pdf=page.pdf", &address])?;
    let pdf = fs::read(folder.path().join("page.pdf"))?;
    ensure!(pdf.starts_with(b"%PDF-"), "no PDF");
    let sheet = |window: &&[u8]| window.starts_with(b"/Type /Page") && window[11] != b's';
    Ok(pdf.windows(12).filter(sheet).count())
}
