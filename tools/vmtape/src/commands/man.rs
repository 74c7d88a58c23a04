use crate::{cli::Cli, output::ExitCode};
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::path::PathBuf;

/// Write man pages, one per command, to a folder
#[derive(Debug, clap::Args)]
pub struct Args {
    folder: PathBuf,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    clap_mangen::generate_to(Cli::command(), &args.folder)
        .with_context(|| args.folder.display().to_string())?;
    Ok(ExitCode::SAME)
}
