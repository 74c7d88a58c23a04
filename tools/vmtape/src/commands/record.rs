use crate::{
    commands::outcome,
    fault_args::{self, FaultArgs},
    files, interrupt,
    machine_args::MachineArgs,
    output::{self, ExitCode},
};
use anyhow::{Context, Result};
use clap::ValueHint;
use std::{
    cell::RefCell,
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};
use vmtape_abi::Backend;
use vmtape_backends::LoadedPlugin;
use vmtape_machine::{Limits, Live, MILESTONE_EVERY, Machine, MachineSpec, Recorder, Scripted};
use vmtape_replay::spec::{self, Budget};
use vmtape_traces::{
    Event, Metadata, Options, Writer,
    event::End,
    writer::{self, Summary},
};

/// Run a guest under a backend and tape every exit
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::RECORD)]
pub struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// The tape
    #[arg(short, long, value_name = "TAPE", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    /// A checkpoint of the whole machine after every so many exits
    #[arg(long, value_name = "EXITS", default_value_t = 0)]
    checkpoint_every: u64,
    /// A hash of the guest after every so many instructions, by which two tapes are compared; 0: none
    #[arg(long, value_name = "INSNS", default_value_t = MILESTONE_EVERY)]
    milestone_every: u64,
    /// How many seconds of events a recording that is killed may lose at most (`vmtape repair` makes a tape of the rest); 0: as
    /// many as wait for a full chunk
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    flush_every: f64,
    #[command(flatten)]
    faults: FaultArgs,
    /// Exit with the guest's own status, as QEMU does
    #[arg(long)]
    guest_status: bool,
    /// Print how the run ended as JSON; the guest's output goes to stderr then
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (0.0..=1e6).contains(seconds));
    seconds.ok_or_else(|| format!("`{text}` is not a number of seconds"))
}

/// The writer, shared with the machine for as long as it runs.
#[derive(Clone)]
struct Taping(Rc<RefCell<Option<Writer>>>);

impl Recorder for Taping {
    fn event(&mut self, event: Event) -> ControlFlow<()> {
        if let Some(writer) = &mut *self.0.borrow_mut() {
            writer.push(event);
            // Nothing of the rest would be on the tape: `finish` has the disk's error.
            if !writer.is_open() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn is_interrupted(&mut self) -> bool {
        if let Some(writer) = &mut *self.0.borrow_mut() {
            writer.flush_if_due();
        }
        interrupt::is_wished()
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
    machine_spec.milestone_every = args.milestone_every;
    let faults = args.faults.script(&plugin.description.fault_points)?;
    if !faults.is_empty() {
        machine_spec.fault_points = fault_args::names(&plugin.description.fault_points);
    }
    interrupt::listen();
    let (budget, serial) = (args.machine.budget(), args.machine.serial(args.json));
    let flush_every = (args.flush_every > 0.0).then(|| Duration::from_secs_f64(args.flush_every));
    let to = (files::tape(&args.output)?, Options { flush_every, ..Options::default() });
    let (machine, end, summary) = tape(machine_spec, (&plugin, backend), faults, &budget, to, serial)?;
    let tape = Some(outcome::Written { file: &args.output, bytes: summary.bytes });
    let run = outcome::Run { machine: &machine, end: &end, plugin: &plugin, tape, quiet: output::is_quiet() };
    outcome::report(&run, args.json, args.guest_status)
}

/// Runs a machine to its end and tapes it.
pub fn tape(
    machine_spec: MachineSpec,
    (plugin, backend): (&LoadedPlugin, Box<dyn Backend>),
    faults: Vec<Scripted>,
    budget: &Budget,
    (output, options): (&Path, Options),
    serial: Box<dyn io::Write>,
) -> Result<(Machine, End, Summary)> {
    let mut metadata = spec::metadata(&machine_spec, budget)?;
    let rules = plugin.description.rules.iter().map(|rule| Metadata::rule_note(rule.id, &rule.name));
    metadata.notes.extend(rules.chain([Metadata::build_note(&plugin.build)]));
    let images = spec::images(&machine_spec);
    let writer = Writer::create(output, &metadata, &images, options)?;
    let taping = Taping(Rc::new(RefCell::new(Some(writer))));
    let live = Live::new(machine_spec.seed);
    let inputs = if faults.is_empty() { live } else { live.with_faults(Box::new(faults)) };
    let mut machine = Machine::new(machine_spec, backend, Box::new(inputs), Some(Box::new(taping.clone())))?;
    machine.set_serial(serial);
    let limits = Limits { instructions: budget.instructions, exits: budget.exits, ..Limits::default() };
    let end = machine.advance(&limits);
    if end != End::Cut {
        machine.finish(&end);
    }
    let writer = taping.0.borrow_mut().take().context("the tape is closed already")?;
    let partial = writer::partial(output);
    let summary = writer
        .finish()
        .with_context(|| format!("the tape has no end; {} is good as far as it goes", partial.display()))?;
    Ok((machine, end, summary))
}
