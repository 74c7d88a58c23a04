use crate::{cli::Cli, output::ExitCode};
use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;
use std::io;

/// Print shell completions
#[derive(Debug, clap::Args)]
pub struct Args {
    shell: Shell,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    clap_complete::generate(args.shell, &mut Cli::command(), "vmtape", &mut io::stdout());
    Ok(ExitCode::SAME)
}
