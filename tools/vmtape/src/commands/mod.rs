//! One file per subcommand.

pub mod backends;
pub mod bisect;
pub mod campaign;
pub mod check;
pub mod completions;
pub mod diff;
pub mod export;
pub mod guests;
pub mod host;
pub mod import;
pub mod inject;
pub mod man;
pub mod migrate;
mod outcome;
pub mod record;
pub mod replay;
mod report;
pub mod run;
pub mod scenarios;
pub mod show;
pub mod stat;
pub mod tour;

use crate::{cli::Command, output::ExitCode};
use anyhow::Result;

/// Runs the command.
pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Tour(args) => tour::run(&args),
        Command::Backends(args) => backends::run(&args),
        Command::Guests(args) => guests::run(&args),
        Command::Host(args) => host::run(&args),
        Command::Record(args) => record::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Inject(args) => inject::run(&args),
        Command::Campaign(args) => campaign::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Migrate(args) => migrate::run(&args),
        Command::Bisect(args) => bisect::run(&args),
        Command::Scenarios(args) => scenarios::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Stat(args) => stat::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}
