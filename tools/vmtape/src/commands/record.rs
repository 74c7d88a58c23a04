use crate::{
    commands::{outcome, run::limits},
    machine_args::MachineArgs,
    output::ExitCode,
};
use anyhow::{Context, Result};
use clap::ValueHint;
use std::{cell::RefCell, ops::ControlFlow, path::PathBuf, rc::Rc};
use vmtape_machine::{Live, Machine, Recorder};
use vmtape_replay::spec;
use vmtape_traces::{Event, Options, Writer};

/// Run a guest under a backend and tape every exit
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// The tape
    #[arg(short, long, value_name = "TAPE", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    /// A checkpoint of the whole machine after every so many exits
    #[arg(long, value_name = "EXITS", default_value_t = 0)]
    checkpoint_every: u64,
    /// Exit with the guest's own status, as QEMU does
    #[arg(long)]
    guest_status: bool,
    /// Print how the run ended as JSON, after the guest's output
    #[arg(long)]
    json: bool,
}

/// The writer, shared with the machine for as long as it runs.
#[derive(Clone)]
struct Taping(Rc<RefCell<Option<Writer>>>);

impl Recorder for Taping {
    fn event(&mut self, event: Event) -> ControlFlow<()> {
        if let Some(writer) = &mut *self.0.borrow_mut() {
            writer.push(event);
        }
        ControlFlow::Continue(())
    }

    fn checkpoint(&mut self, _icount: u64, exits: u64, bytes: Vec<u8>) {
        if let Some(writer) = &mut *self.0.borrow_mut() {
            writer.checkpoint(&format!("exit {exits}"), bytes);
        }
    }

    fn wants_checkpoints(&self) -> bool {
        true
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let (mut machine_spec, backend, plugin) = args.machine.resolve()?;
    machine_spec.checkpoint_every = args.checkpoint_every;
    let metadata = spec::metadata(&machine_spec, &args.machine.budget())?;
    let images = spec::images(&machine_spec);
    let writer = Writer::create(&args.output, &metadata, &images, Options::default())?;
    let taping = Taping(Rc::new(RefCell::new(Some(writer))));
    let inputs = Box::new(Live::new(machine_spec.seed));
    let mut machine = Machine::new(machine_spec, backend, inputs, Some(Box::new(taping.clone())))?;
    machine.set_serial(args.machine.serial());
    let end = machine.run(&limits(&args.machine));
    let writer = taping.0.borrow_mut().take().context("the tape is closed already")?;
    let summary = writer.finish()?;
    tracing::info!(?summary, "{} is written", args.output.display());
    outcome::report(&machine, &end, &plugin, args.json, args.guest_status)
}
