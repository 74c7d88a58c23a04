//! Fault plans on the command line.

use anyhow::{Context, Result, bail};
use std::{fs, path::Path};
use vmtape_faults::{Engine, Point, Source};

/// The largest plan that anybody writes.
const LARGEST: u64 = 1 << 20;

/// Reads a plan and checks it against the points that there are.
pub fn read(path: &Path, points: &[Point]) -> Result<Source> {
    let named = || path.display().to_string();
    let size = fs::metadata(path).with_context(named)?.len();
    if size > LARGEST {
        bail!("{}: {size} bytes are no fault plan", named());
    }
    let text = fs::read_to_string(path).with_context(named)?;
    let source: Source = text.parse().with_context(named)?;
    Engine::check(&source, points).with_context(named)?;
    Ok(source)
}
