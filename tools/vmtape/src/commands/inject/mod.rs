//! `vmtape inject`: a guest with a fault plan, and the verdict.

mod each;
mod members;
pub mod print;
mod shrink;

use crate::{
    commands::replay::Plugins,
    machine_args::{MachineArgs, PluginArgs, create},
    output::{ExitCode, tell, usage},
    plan_args,
    progress::progress,
};
use anyhow::Result;
use clap::{ArgMatches, Command, FromArgMatches, ValueHint};
use std::path::{Path, PathBuf};
use tracing::subscriber::NoSubscriber;
use vmtape_backends::LoadedPlugin;
use vmtape_faults::Source;
use vmtape_machine::MachineSpec;
use vmtape_replay::{
    Error,
    faults::{Bed, points},
    spec::{self, Budget},
};
use vmtape_traces::Tape;

/// Run a guest with a fault plan, tape it, and say what came of it
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = crate::help::INJECT,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Args {
    #[command(subcommand)]
    other: Option<Other>,

    /// The plan, in TOML (host/faults/README.md says what stands in it)
    #[arg(value_hint = ValueHint::FilePath, required = true)]
    plan: Option<PathBuf>,

    #[command(flatten)]
    machine: Direct,

    #[command(flatten)]
    result: ResultArgs,
}

/// The machine, where no subcommand says which. clap makes optional only what is not nested.
#[derive(Debug)]
struct Direct(Option<MachineArgs>);

impl clap::Args for Direct {
    fn augment_args(command: Command) -> Command {
        MachineArgs::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        MachineArgs::augment_args_for_update(command)
    }
}

impl FromArgMatches for Direct {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = matches.contains_id("backend");
        given.then(|| MachineArgs::from_arg_matches(matches)).transpose().map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Debug, clap::Subcommand)]
enum Other {
    /// The same for the guest and the machine of a tape
    On {
        /// The tape
        #[arg(value_hint = ValueHint::FilePath)]
        tape: PathBuf,
        /// The plan
        #[arg(value_hint = ValueHint::FilePath)]
        plan: PathBuf,
        #[command(flatten)]
        plugins: PluginArgs,
        #[command(flatten)]
        result: ResultArgs,
    },
    /// List the fault points that a plan may name
    Points {
        /// Those of this backend too
        #[arg(short, long, value_name = "BACKEND")]
        backend: Option<String>,
        #[command(flatten)]
        plugins: PluginArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What is made of it.
#[derive(Debug, Default, clap::Args)]
struct ResultArgs {
    /// The tape of the run with faults
    #[arg(short, long, value_name = "TAPE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,

    /// Look for the smallest plan that shows the same, and write it here
    #[arg(long, value_name = "PLAN", value_hint = ValueHint::FilePath)]
    shrink: Option<PathBuf>,

    /// Runs that the search for the smallest plan may take
    #[arg(long, value_name = "N", default_value_t = 500)]
    tries: usize,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is run, and what is made of it.
struct Injection<'a> {
    source: &'a Source,
    name: &'a Path,
    bed: &'a Bed<'a>,
    result: &'a ResultArgs,
    /// The command line but for the plan and the output.
    command: &'a str,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    match (&args.other, &args.plan, &args.machine.0) {
        (Some(Other::Points { backend, plugins, json }), ..) => {
            let plugin = backend.as_ref().map(|name| plugins.search().load(name)).transpose()?;
            print::points(
                &points(plugin.as_ref().map_or(&[], |plugin| &plugin.description.fault_points)),
                *json,
            )
        }
        (Some(Other::On { tape, plan, plugins, result }), ..) => {
            let tape_name = tape.display().to_string();
            let tape = Tape::open_whole(tape)?;
            let machine = Plugins::new(plugins).machine_of(&tape)?;
            let plugin = plugins.search().load(&machine.backend)?;
            let command = format!("vmtape inject on {tape_name} PLAN");
            inject(plan, machine, spec::budget(&tape), &plugin, result, &command)
        }
        (None, Some(plan), Some(machine)) => {
            let (spec, _, plugin) = machine.resolve()?;
            let command = command_line(plan);
            inject(plan, spec, machine.budget(), &plugin, &args.result, &command)
        }
        _ => Err(usage("a plan, a backend (-b) and a guest are needed: see `vmtape inject --help`")),
    }
}

/// What was typed, with PLAN in the place of the plan.
fn command_line(plan: &Path) -> String {
    let plan = plan.to_string_lossy();
    let words = std::env::args().skip(1).map(|word| if word == plan { "PLAN".to_owned() } else { word });
    let words: Vec<String> = words.collect();
    let words = words.iter().map(String::as_str);
    format!("vmtape {}", shlex::try_join(words).unwrap_or_default())
}

fn inject(
    path: &Path,
    machine: MachineSpec,
    budget: Budget,
    plugin: &LoadedPlugin,
    result: &ResultArgs,
    command: &str,
) -> Result<ExitCode> {
    let source = plan_args::read(path, &points(&plugin.description.fault_points))?;
    let create = |machine: &MachineSpec| {
        create(plugin, machine.silicon, &machine.options).map_err(|error| Error::Refused {
            backend: machine.backend.clone(),
            reason: format!("{error:#}"),
        })
    };
    let bar = progress("inject");
    bar.set_message("without faults");
    // What the backend warns of is the fault's doing.
    let code = tracing::subscriber::with_default(NoSubscriber::default(), || -> Result<ExitCode> {
        let bed = Bed::new(machine, budget, &create, &plugin.description)?;
        bar.set_message("with faults");
        let injection = Injection { source: &source, name: path, bed: &bed, result, command };
        if source.plan.each().is_some() { injection.each(&bar) } else { injection.once(&bar) }
    })?;
    bar.finish_and_clear();
    Ok(code)
}

impl Injection<'_> {
    fn once(&self, bar: &indicatif::ProgressBar) -> Result<ExitCode> {
        let run = self.bed.run(self.source, self.result.output.as_deref())?;
        let shrunk = match &self.result.shrink {
            Some(path) => Some(self.shrink(self.source, &run, path, bar)?),
            None => None,
        };
        bar.finish_and_clear();
        if let Some(path) = self.result.output.as_ref().filter(|_| run.tape.is_none()) {
            tell(format!("there was no VM, so there is no {}", path.display()));
        }
        print::run(self, &run, shrunk.as_ref())
    }
}
