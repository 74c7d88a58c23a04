//! The command line.

use crate::{commands, output::ExitCode};
use anyhow::Result;
use clap::{ArgAction, ColorChoice, CommandFactory, Parser, Subcommand};

/// Below a command's own options.
const LAST: usize = 900;

/// Record, replay and break x86 virtualization, without hardware.
#[derive(Debug, Parser)]
#[command(
    name = "vmtape",
    version = env!("VMTAPE_VERSION"),
    arg_required_else_help = true,
    propagate_version = true,
    after_help = "Exit codes: 0 same, 1 different, 2 usage, 125 could not test (more with --help).\n\
                  GUEST is builtin:NAME (see `vmtape guests`), a kvm-unit-tests .flat image, or a bzImage.",
    after_long_help = crate::help::PROGRAM
)]
pub struct Cli {
    /// Log more: once info, twice debug, three times trace (RUST_LOG has the last word)
    #[arg(short, long, action = ArgAction::Count, global = true, display_order = LAST)]
    pub verbose: u8,

    /// Tell nothing but what was asked for, warnings and errors: no progress, no summary, of a guest that runs no output
    #[arg(short, long, global = true, display_order = LAST)]
    pub quiet: bool,

    /// Colours of help and logs
    #[arg(long, value_name = "WHEN", global = true, default_value = "auto", display_order = LAST)]
    pub color: ColorChoice,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Tour(commands::tour::Args),
    Backends(commands::backends::Args),
    Guests(commands::guests::Args),
    Host(commands::host::Args),
    Record(commands::record::Args),
    Run(commands::run::Args),
    Inject(commands::inject::Args),
    Campaign(commands::campaign::Args),
    Repair(commands::repair::Args),
    Replay(commands::replay::Args),
    Diff(commands::diff::Args),
    Check(commands::check::Args),
    Migrate(commands::migrate::Args),
    Bisect(commands::bisect::Args),
    Report(commands::page::Args),
    Show(commands::show::Args),
    Stat(commands::stat::Args),
    Scenarios(commands::scenarios::Args),
    Import(commands::import::Args),
    Export(commands::export::Args),
    Completions(commands::completions::Args),
    Man(commands::man::Args),
}

impl Command {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Tour(args) => commands::tour::run(&args),
            Self::Backends(args) => commands::backends::run(&args),
            Self::Guests(args) => commands::guests::run(&args),
            Self::Host(args) => commands::host::run(&args),
            Self::Record(args) => commands::record::run(&args),
            Self::Run(args) => commands::run::run(&args),
            Self::Inject(args) => commands::inject::run(&args),
            Self::Campaign(args) => commands::campaign::run(&args),
            Self::Repair(args) => commands::repair::run(&args),
            Self::Replay(args) => commands::replay::run(&args),
            Self::Diff(args) => commands::diff::run(&args),
            Self::Check(args) => commands::check::run(&args),
            Self::Migrate(args) => commands::migrate::run(&args),
            Self::Bisect(args) => commands::bisect::run(&args),
            Self::Scenarios(args) => commands::scenarios::run(&args),
            Self::Report(args) => commands::page::run(&args),
            Self::Show(args) => commands::show::run(&args),
            Self::Stat(args) => commands::stat::run(&args),
            Self::Import(args) => commands::import::run(&args),
            Self::Export(args) => commands::export::run(&args),
            Self::Completions(args) => commands::completions::run(&args, &mut Cli::command()),
            Self::Man(args) => commands::man::run(&args, Cli::command()),
        }
    }
}
