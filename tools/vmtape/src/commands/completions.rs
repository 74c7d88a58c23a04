use crate::output::ExitCode;
use anyhow::Result;
use clap_complete::Shell;
use std::io::{self, Write};

/// Print shell completions
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::COMPLETIONS)]
pub struct Args {
    /// The shell to write them for
    shell: Shell,
}

pub fn run(args: &Args, program: &mut clap::Command) -> Result<ExitCode> {
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, program, "vmtape", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SAME)
}
