use crate::{
    commands::outcome,
    machine_args::MachineArgs,
    output::{ExitCode, is_quiet},
};
use anyhow::Result;
use vmtape_machine::{Limits, Live, Machine};

/// Run a guest under a backend, without a tape
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::RUN)]
pub struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// Exit with the guest's own status, as QEMU does
    #[arg(long)]
    guest_status: bool,
    /// Print how the run ended as JSON; the guest's output goes to stderr then
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let (spec, backend, plugin) = args.machine.resolve()?;
    let inputs = Box::new(Live::new(spec.seed));
    let mut machine = Machine::new(spec, backend, inputs, None)?;
    machine.set_serial(args.machine.serial(args.json));
    let end = machine.run(&limits(&args.machine));
    let quiet = is_quiet();
    let run = outcome::Run { machine: &machine, end: &end, plugin: &plugin, tape: None, quiet };
    outcome::report(&run, args.json, args.guest_status)
}

/// The limits of a run: the user's, and the watchdog's.
pub fn limits(args: &MachineArgs) -> Limits {
    let budget = args.budget();
    Limits { instructions: budget.instructions, exits: budget.exits, ..Limits::default() }
}
