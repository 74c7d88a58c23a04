use crate::output::ExitCode;
use anyhow::{Result, bail};
use std::path::PathBuf;

/// Write the passport of this machine, as `check` and `--host` read it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The passport (default: standard output)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    bail!("{:?}: not yet", args.output)
}
