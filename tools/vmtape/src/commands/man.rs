use crate::output::ExitCode;
use anyhow::{Context, Result};
use std::{fs, path::PathBuf};

/// Write man pages, one per command, to a folder
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::MAN)]
pub struct Args {
    /// The folder, which is made where there is none
    folder: PathBuf,
}

pub fn run(args: &Args, program: clap::Command) -> Result<ExitCode> {
    let written =
        fs::create_dir_all(&args.folder).and_then(|()| clap_mangen::generate_to(program, &args.folder));
    written.with_context(|| args.folder.display().to_string())?;
    Ok(ExitCode::SAME)
}
