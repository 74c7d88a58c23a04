//! `vmtape host`: what a host is, and what it says of itself.

pub mod crash;
mod from;
mod kvm;
pub mod probe;
pub mod show;
mod sources;

use crate::output::ExitCode;
use anyhow::Result;

/// Look at hosts: this machine, or one that is described
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true, after_long_help = crate::help::HOST)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Crash(crash::Args),
    Probe(probe::Args),
    Show(show::Args),
    From(from::Args),
}

pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        Command::Crash(args) => crash::run(args),
        Command::Probe(args) => probe::run(args),
        Command::Show(args) => show::run(args),
        Command::From(args) => from::run(args),
    }
}
