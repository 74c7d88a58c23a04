//! Which file is what.

use super::{Page, Unread, campaign, comparison::Comparison, heat::Map, moves::Moves, timeline::Timeline};
use crate::{files, output::error_text};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use vmtape_traces::Tape;

/// Larger answers are not read.
const LARGEST: u64 = 256 << 20;
/// Folders within folders that are looked into: a campaign's findings lie one below.
const DEEPEST: usize = 3;
/// Tapes that are drawn.
const TAPES: usize = 24;

/// Takes a file, or everything in a folder. What was named itself must be legible; what merely lies in a folder is told on the page
/// where it is not.
pub fn take(path: &Path, page: &mut Page) -> Result<()> {
    let named = || path.display().to_string();
    let metadata = fs::metadata(path).with_context(named)?;
    let mut results = campaign::Results::default();
    if metadata.is_dir() {
        folder(path, DEEPEST, page, &mut results)?;
    } else {
        file(path, page, &mut results).with_context(named)?;
    }
    if let Some(verdicts) = results.verdicts() {
        page.verdicts = Some(verdicts);
    }
    Ok(())
}

fn folder(path: &Path, depth: usize, page: &mut Page, results: &mut campaign::Results) -> Result<()> {
    let named = || path.display().to_string();
    let entries = fs::read_dir(path).with_context(named)?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>().with_context(named)?;
    paths.sort();
    if let Some(finding) = campaign::Finding::read(path)? {
        // Its tape belongs to it, and is not drawn once more.
        page.findings.push(finding);
        return Ok(());
    }
    for path in paths {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let unread = match () {
            () if path.is_dir() && depth == 0 => Err(anyhow::anyhow!("it lies too deep")),
            () if path.is_dir() => folder(&path, depth - 1, page, results),
            () if !path.is_file() => continue,
            () if extension == "tape" && page.tapes.len() == TAPES => {
                Err(anyhow::anyhow!("{TAPES} tapes are drawn already: name it by itself"))
            }
            () if matches!(extension, "tape" | "json" | "jsonl" | "toml") => file(&path, page, results),
            () => continue,
        };
        if let Err(error) = unread {
            page.unread.push(not_drawn(path.display().to_string(), error));
        }
    }
    Ok(())
}

/// Why a file is not drawn, without its name, which errors of tapes begin with.
fn not_drawn(file: String, error: anyhow::Error) -> Unread {
    let text = error_text(&error.context(file.clone()));
    let why = text.strip_prefix(&format!("{file}: ")).map(str::to_owned).unwrap_or(text);
    Unread { file, why }
}

fn file(path: &Path, page: &mut Page, results: &mut campaign::Results) -> Result<()> {
    let name = path.display().to_string();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => answer(name, &files::text(path, LARGEST)?, page),
        Some("jsonl") => results.take(&files::text(path, LARGEST)?),
        Some("toml") => {
            results.plan(&files::text(path, LARGEST)?);
            Ok(())
        }
        _ => {
            page.tapes.push(Timeline::of(&Tape::open(path)?, name)?);
            Ok(())
        }
    }
}

/// What a command printed with `--json`, which its fields tell.
fn answer(name: String, text: &str, page: &mut Page) -> Result<()> {
    let value: Value = serde_json::from_str(text).context("it is no JSON")?;
    let has = |field: &str| value.get(field).is_some();
    match () {
        () if has("cells") && has("by_exit") => page.maps.extend(Map::read(name, value)?),
        () if has("outcomes") => {
            if let Some(report) = value.get("report").filter(|report| !report.is_null()) {
                page.comparisons.push(Comparison::read(name.clone(), report.clone())?);
            }
            page.moves.push(Moves::read(name, value)?);
        }
        () if has("method") && has("compared") => page.comparisons.push(Comparison::read(name, value)?),
        () => bail!("it is no answer that is drawn: there are those of migrate and replay"),
    }
    Ok(())
}
