//! One suite for every backend: guests run through the installed program, as a user would run them.
//!
//! What is tested is built first, by the `cargo build` that a user types: no test meets a stale program or plugin.

pub mod bench;
pub mod browser;
pub mod identity;
pub mod random;
pub mod sector;
pub mod timer;

use anyhow::{Context, Result, bail};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

/// The backends that this workspace ships.
pub const BACKENDS: [&str; 3] = ["vmx", "svm", "svm-npt"];

/// Exit statuses of kvm-unit-tests as QEMU's debug-exit device reports them: `(code << 1) | 1`.
pub mod guest_status {
    pub const PASS: i32 = 1;
    pub const FAIL: i32 = 3;
    pub const SKIP: i32 = 77;
}

/// The `vmtape` program beside the running test, with the plugins beside it, built from the sources as they are.
pub fn program() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

/// Builds the workspace's default members, the program and the plugins, with the profile of the running test. Where they
/// are fresh this takes a moment; Cargo's own lock keeps two of these apart.
fn build() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(Path::parent).context("a test runs from target/PROFILE/deps")?;
    let target = folder.parent().context("a profile's folder lies in target")?;
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        // The one profile whose folder has another name.
        Some("debug") => "dev",
        Some(profile) => profile,
        None => bail!("{}: no profile has such a name", folder.display()),
    };
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .args(["build", "--quiet", "--profile", profile, "--target-dir"])
        .arg(target)
        .output()
        .context("cargo, which builds what the tests run")?;
    if !built.status.success() {
        bail!("cargo build --profile {profile} failed, so there is nothing to test:\n{}", tail(&built));
    }
    Ok(folder.join("vmtape"))
}

/// Says that the running test was skipped, and why. Not by a macro: what those print of a test that passes nobody sees.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let _ = writeln!(io::stderr(), "SKIPPED {}: {why}", thread.name().unwrap_or("a test"));
}

/// Where kvm-unit-tests' images are. Tests that need them are `#[ignore]`d, so that each run names them and counts them.
pub fn kvm_unit_tests() -> Result<PathBuf> {
    let folder = std::env::var_os("VMTAPE_KUT").map(PathBuf::from);
    folder.context("VMTAPE_KUT is not set to the x86 folder of a built kvm-unit-tests")
}

/// Runs `vmtape` with these arguments in a folder and gives what it printed.
pub fn vmtape(folder: &Path, arguments: &[&str]) -> Result<Output> {
    Command::new(program()?)
        .current_dir(folder)
        .args(arguments)
        .env("NO_COLOR", "1")
        .output()
        .with_context(|| format!("failed to run vmtape {}", arguments.join(" ")))
}

/// The last lines of what a command printed, for a failing test's message.
pub fn tail(output: &Output) -> String {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
