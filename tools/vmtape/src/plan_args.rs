//! Fault plans on the command line.

use crate::files;
use anyhow::{Context, Result};
use std::path::Path;
use vmtape_faults::{Engine, Point, Source};

/// Reads a plan and checks it against the points that there are.
pub fn read(path: &Path, points: &[Point]) -> Result<Source> {
    let named = || path.display().to_string();
    let text = files::text(path, files::BY_HAND)?;
    let source: Source = text.parse().with_context(named)?;
    Engine::check(&source, points).with_context(named)?;
    Ok(source)
}
