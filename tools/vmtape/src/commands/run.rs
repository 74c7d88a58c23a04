use crate::{commands::outcome, machine_args::MachineArgs, output::ExitCode};
use anyhow::Result;
use vmtape_machine::{Limits, Live, Machine, Recorder};

/// Run a guest under a backend, without a tape
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// Exit with the guest's own status, as QEMU does
    #[arg(long)]
    guest_status: bool,
    /// Print how the run ended as JSON, after the guest's output
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut machine = build(&args.machine, None)?;
    let end = machine.run(&limits(&args.machine));
    outcome::report(&machine, &end, args.json, args.guest_status)
}

/// Builds the machine, its serial port on stdout.
pub fn build(args: &MachineArgs, recorder: Option<Box<dyn Recorder>>) -> Result<Machine> {
    let (spec, backend, _) = args.resolve()?;
    let inputs = Box::new(Live::new(spec.seed));
    let mut machine = Machine::new(spec, backend, inputs, recorder)?;
    machine.set_serial(args.serial());
    Ok(machine)
}

/// The limits of a run: the user's, and the watchdog's.
pub fn limits(args: &MachineArgs) -> Limits {
    let budget = args.budget();
    Limits { instructions: budget.instructions, exits: budget.exits, ..Limits::default() }
}
