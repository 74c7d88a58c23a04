//! The machine on a tape: what a recording stores of it, and how a replay builds it again.

pub use crate::player::Budget;

use crate::{
    Error,
    player::{Create, Player},
};
use std::sync::OnceLock;
use tempfile::NamedTempFile;
use vmtape_machine::{
    MachineSpec, Recorded,
    vmm::{Step, When},
};
use vmtape_traces::{
    Event, Metadata, Options, Tape,
    event::{End, InputSource},
    flat::tag,
    writer::Stream,
};

/// Names of the tape's images.
const IMAGE: &str = "image";
const INITRD: &str = "initrd";
/// Metadata notes: the limits that a recording ran under.
const MAX_INSTRUCTIONS: &str = "max-insns";
const MAX_EXITS: &str = "max-exits";

/// What makes the tapes of this process, with its version and commit.
static ORIGIN: OnceLock<String> = OnceLock::new();

/// Says once what makes the tapes of this process; otherwise it is `vmtape` and the version of this crate.
pub fn made_by(origin: &str) {
    let _ = ORIGIN.set(origin.to_owned());
}

/// What a tape of this machine says of it.
pub fn metadata(spec: &MachineSpec, budget: &Budget) -> Result<Metadata, Error> {
    // The images have chunks of their own.
    let mut bare = spec.clone();
    bare.image.bytes.clear();
    bare.initrd = spec.initrd.as_ref().map(|_| Vec::new());
    let limits = [(MAX_INSTRUCTIONS, budget.instructions), (MAX_EXITS, budget.exits)];
    let limits = limits.iter().filter(|(_, limit)| *limit != u64::MAX);
    let limits = limits.map(|(name, limit)| ((*name).to_owned(), limit.to_string()));
    let points = spec.fault_points.iter().map(|(number, name)| Metadata::fault_point_note(*number, name));
    Ok(Metadata {
        origin: ORIGIN.get_or_init(|| format!("vmtape {}", env!("CARGO_PKG_VERSION"))).clone(),
        backend: spec.backend.clone(),
        options: spec.options.clone(),
        silicon: Some(spec.silicon),
        guest: spec.image.name.clone(),
        command_line: spec.cmdline.clone(),
        memory: spec.memory,
        vcpus: spec.vcpus,
        cpuid: spec.cpuid.clone(),
        machine: bare.encode()?,
        notes: limits.chain(points).collect(),
    })
}

/// The images that go with [`metadata`].
pub fn images(spec: &MachineSpec) -> Vec<(&str, &[u8])> {
    let initrd = spec.initrd.as_ref().map(|bytes| (INITRD, bytes.as_slice()));
    [(IMAGE, spec.image.bytes.as_slice())].into_iter().chain(initrd).collect()
}

/// Whether a tape is an imported recording: it has events, but no machine to run again.
pub fn is_recording(tape: &Tape) -> bool {
    tape.metadata().machine.is_empty()
}

/// The machine of a tape.
pub fn machine(tape: &Tape) -> Result<MachineSpec, Error> {
    let stored = &tape.metadata().machine;
    if is_recording(tape) {
        return Err(Error::NoMachine { tape: tape.name().to_owned() });
    }
    let mut spec = MachineSpec::decode(stored)?;
    for (name, bytes) in tape.images()? {
        match name.as_str() {
            IMAGE => spec.image.bytes = bytes,
            INITRD => spec.initrd = Some(bytes),
            _ => {}
        }
    }
    Ok(spec)
}

/// The limits that a tape was recorded under.
fn limits(tape: &Tape) -> Budget {
    let limit = |name| {
        let note = tape.metadata().notes.iter().find(|(key, _)| key == name);
        note.and_then(|(_, value)| value.parse().ok()).unwrap_or(u64::MAX)
    };
    // A tape whose end cannot be read is one without: whoever reads on to there hears why.
    let interrupted = match tape.end() {
        Ok(Some((icount, End::Interrupted | End::Cut))) => Some(icount),
        _ => None,
    };
    Budget { instructions: limit(MAX_INSTRUCTIONS), exits: limit(MAX_EXITS), interrupted }
}

/// The limits of a replay: those of the tape, and not long after the tape has ended, whatever the machine does instead.
pub fn budget(tape: &Tape) -> Budget {
    const MORE: u64 = 1 << 22;
    at_most(tape, |icount| icount.saturating_add(MORE))
}

/// The limits of a machine whose run may be another one than the tape's: as many instructions again, and a second's worth.
pub fn generous_budget(tape: &Tape) -> Budget {
    const MORE: u64 = 1 << 28;
    at_most(tape, |icount| icount.saturating_mul(2).saturating_add(MORE))
}

fn at_most(tape: &Tape, most: impl Fn(u64) -> u64) -> Budget {
    let limits = limits(tape);
    let longest = tape.totals().map_or(u64::MAX, |totals| most(totals.icount));
    Budget { instructions: limits.instructions.min(longest), ..limits }
}

/// A script whose steps come at the instructions at which they came on the tape, whatever exits there are. What never came
/// there never comes: its moment is beyond every run.
pub fn pinned_script(tape: &Tape, script: &[Step]) -> Result<Vec<Step>, Error> {
    if !script.iter().any(|step| matches!(step.at, When::Exit(_))) {
        return Ok(script.to_vec());
    }
    let (mut exits, mut moments) = (0, Vec::new());
    for event in tape.events() {
        match event? {
            Event::Exit(_) => exits += 1,
            Event::Control { icount, .. } => moments.push((exits, icount)),
            _ => {}
        }
    }
    let pin = |step: &Step| {
        let When::Exit(wanted) = step.at else { return step.clone() };
        let moment = moments.iter().find(|(exits, _)| *exits >= wanted);
        Step { at: When::Insn(moment.map_or(u64::MAX, |(_, icount)| *icount)), action: step.action.clone() }
    };
    Ok(script.iter().map(pin).collect())
}

/// The inputs of a tape.
pub fn inputs(tape: &Tape) -> Result<Recorded, Error> {
    let mut others = Vec::new();
    for event in tape.events_with(tag::INPUT) {
        if let Event::Input { icount, source, value } = event?
            && source != InputSource::RANDOM
        {
            others.push((icount, source, value));
        }
    }
    let mut faults = Vec::new();
    for event in tape.events_with(tag::FAULT) {
        if let Event::Fault(fault) = event? {
            faults.push(fault);
        }
    }
    Ok(Recorded::new(random(tape), others).with_faults(faults))
}

/// The random numbers of a tape, read chunk by chunk. [`inputs`] has found every chunk readable.
fn random(tape: &Tape) -> impl Iterator<Item = u64> + 'static {
    let chunks: Vec<usize> = tape.chunks_with(tag::INPUT).collect();
    let tape = tape.clone();
    let values = move |chunk| {
        let values = tape.events_of(chunk).filter_map(|event| match event {
            Ok(Event::Input { source: InputSource::RANDOM, value, .. }) => Some(value),
            _ => None,
        });
        values.collect::<Vec<_>>()
    };
    chunks.into_iter().flat_map(values)
}

/// The name of the option that holds a machine's profile.
pub const PROFILE: &str = "kvm";

/// The options of a machine that its profile does not imply: what somebody chose. Tapes hold all of them, resolved, so
/// another profile would change nothing if they were all kept.
pub fn chosen(machine: &MachineSpec, create: Create) -> Result<Vec<(String, String)>, Error> {
    let resolve = |options: &[(String, String)]| -> Result<Vec<(String, String)>, Error> {
        let mut resolved = create(&MachineSpec { options: options.to_vec(), ..machine.clone() })?.resolved();
        resolved.sort();
        Ok(resolved)
    };
    let wanted = resolve(&machine.options)?;
    let profile: Vec<_> = wanted.iter().filter(|(name, _)| name == PROFILE).cloned().collect();
    let implied = resolve(&profile)?;
    let mut chosen: Vec<_> = wanted.iter().filter(|option| !implied.contains(option)).cloned().collect();
    // One choice may imply another, as a module parameter does that KVM forces.
    for n in (0..chosen.len()).rev() {
        let mut fewer = [&profile[..], &chosen[..]].concat();
        let option = fewer.remove(profile.len() + n);
        if resolve(&fewer)? == wanted {
            chosen.retain(|other| *other != option);
        }
    }
    Ok(chosen)
}

/// Runs a machine with another tape's inputs and tapes it, in a temporary file that goes when the tape does.
pub fn record(
    machine: &MachineSpec,
    inputs_of: &Tape,
    budget: &Budget,
    create: Create,
) -> Result<Tape, Error> {
    let no_file = |cause| Error::Other(format!("a recording needs a temporary file: {cause}"));
    let file = NamedTempFile::new().map_err(no_file)?;
    let mut stream = Stream::new(&file, "a temporary recording", Options::default())?;
    stream.metadata(&metadata(machine, budget)?)?;
    for (name, data) in images(machine) {
        stream.image(name, data)?;
    }
    let inputs = Box::new(inputs(inputs_of)?);
    let mut player = Player::new(machine.clone(), inputs, *budget, create, true)?;
    player.advance_telling(u64::MAX, &mut |events| {
        events.iter().try_for_each(|event| stream.event(event)).map_err(Error::from)
    })?;
    stream.finish()?;
    // The tape keeps the file open, whose name goes here.
    Ok(Tape::open(file.path())?)
}
