use crate::{
    commands::outcome,
    machine_args::MachineArgs,
    output::{ExitCode, is_quiet},
};
use anyhow::{Context, Result};
use std::{cell::RefCell, io, io::Write, rc::Rc};
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
    let output = Watched::new(args.machine.serial(args.json));
    machine.set_serial(Box::new(output.clone()));
    let end = machine.run(&limits(&args.machine));
    output.finish().context("the guest's output")?;
    let quiet = is_quiet();
    let run = outcome::Run { machine: &machine, end: &end, plugin: &plugin, tape: None, quiet };
    outcome::report(&run, args.json, args.guest_status)
}

/// Where output goes, and how writing it went.
type Output = (Box<dyn Write>, io::Result<()>);

/// Where a guest's output goes. The machine runs on whatever becomes of it; here it is known.
#[derive(Clone)]
struct Watched(Rc<RefCell<Output>>);

impl Watched {
    fn new(output: Box<dyn Write>) -> Self {
        Self(Rc::new(RefCell::new((output, Ok(())))))
    }

    /// The first error, if there was one.
    fn finish(&self) -> io::Result<()> {
        let (output, written) = &mut *self.0.borrow_mut();
        std::mem::replace(written, Ok(())).and_then(|()| output.flush())
    }
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (output, written) = &mut *self.0.borrow_mut();
        if written.is_ok() {
            *written = output.write_all(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let (output, written) = &mut *self.0.borrow_mut();
        if written.is_ok() {
            *written = output.flush();
        }
        Ok(())
    }
}

/// The limits of a run: the user's, and the watchdog's.
pub fn limits(args: &MachineArgs) -> Limits {
    let budget = args.budget();
    Limits { instructions: budget.instructions, exits: budget.exits, ..Limits::default() }
}
