//! Exits without their guest: each taped exit is given to a backend's handlers, and what they do is compared.
//!
//! A backend of the same kind gets the exit itself and must do the same about it, note by note. For one of another kind
//! the stimulus is resolved again by its own silicon; what the guest sees of the outcome is compared. What depends on
//! memory that the tape does not have, and what the other kind alone would exit for, is unknown: counted, never guessed.

mod explain;

pub use explain::explain;

use crate::{
    Error, exempt,
    explain::{Story, of_group},
    identical,
    player::Create,
    report::{Class, Divergence, Level, Report, Row},
    signature::Signature,
    spec, text,
    witness::{Deed, Log, Watched},
};
use std::{cell::RefCell, ops::ControlFlow, rc::Rc};
use vmtape_arch::{
    exception::{Exception, Vector},
    exit::{Resume, ResumeKind},
    note::{Note, NoteKind},
};
use vmtape_machine::{Machine, MachineSpec, Recorder, Resolved, vmm::control_text};
use vmtape_traces::{Event, ExitGroup, Tape, ahead};

/// Feeds the whole tape. `same`: the backend is of the tape's kind.
pub fn replay(
    tape: &Tape,
    machine: MachineSpec,
    create: Create,
    same: bool,
    report: &mut Report,
    reproduce: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let widths = identical::widths(&machine);
    let mut fed = Fed::new(machine, tape, create, None)?;
    let diverged = ahead::with_exits(tape, 0, 0, |exits| -> Result<_, Error> {
        while let Some(group) = exits.next_exit()? {
            let (unknown, done) = (fed.machine.unknown_reads(), fed.machine.controls().len());
            let row = if same { feed(&mut fed, group, report) } else { resolve(&mut fed, group, report) };
            let row = ioctls(&fed.machine, group, done).or(row);
            report.compared.exits += 1;
            report.compared.events += group.notes.len() as u64;
            report.compared.instructions = group.exit.icount;
            if group.number.is_multiple_of(PROGRESS) {
                progress(report.compared.exits);
            }
            if fed.machine.unknown_reads() != unknown {
                *report.unknown.entry(UNKNOWN.into()).or_default() += 1;
            } else if let Some(row) = row {
                return Ok(Some((group.clone(), row)));
            }
        }
        Ok(None)
    })?;
    if let Some((group, row)) = diverged {
        let context = context(tape, group.number)?;
        let story = of_group(&group, widths);
        report.diverge(divergence(&group, row, story, context, reproduce));
    }
    Ok(())
}

/// Exits between two signs of life.
const PROGRESS: u64 = 4096;
const UNKNOWN: &str = "exits whose handling reads memory or registers that the tape does not have";

/// The exits up to this one, for people.
fn context(tape: &Tape, exit: u64) -> Result<Vec<String>, Error> {
    const CONTEXT: u64 = 3;
    let first = (exit + 1).saturating_sub(CONTEXT);
    let exits = tape.exits_from(first)?.take_while(|group| group.as_ref().is_ok_and(|g| g.number <= exit));
    let exits = exits.collect::<Result<Vec<_>, _>>()?;
    Ok(text::context(exits.iter(), CONTEXT as usize))
}

/// A machine that is fed, and what its handlers noted about the last exit.
struct Fed {
    machine: Machine,
    outcome: Rc<RefCell<Outcome>>,
}

#[derive(Default)]
struct Outcome {
    notes: Vec<Note>,
    resume: Option<Resume>,
}

struct Listener {
    outcome: Rc<RefCell<Outcome>>,
    /// Where everything is written down, for a look at one exit.
    log: Option<Log>,
}

impl Recorder for Listener {
    fn event(&mut self, event: Event) -> ControlFlow<()> {
        if let Some(log) = &self.log {
            log.push(Deed::Event(event.clone()));
        }
        let mut outcome = self.outcome.borrow_mut();
        match event {
            Event::Note { note, .. } => outcome.notes.push(note),
            Event::Resume { resume, .. } => outcome.resume = Some(resume),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn wants_stimuli(&self) -> bool {
        self.log.is_some()
    }

    fn exit_begins(&mut self) {
        self.outcome.borrow_mut().notes.clear();
    }
}

impl Fed {
    fn new(machine: MachineSpec, tape: &Tape, create: Create, log: Option<Log>) -> Result<Self, Error> {
        let outcome = Rc::new(RefCell::new(Outcome::default()));
        let mut backend = create(&machine)?;
        if let Some(log) = &log {
            backend = Box::new(Watched::new(backend, log.clone()));
        }
        let listener = Listener { outcome: outcome.clone(), log };
        let inputs = Box::new(spec::inputs(tape)?);
        let mut machine = Machine::new(machine, backend, inputs, Some(Box::new(listener)))?;
        machine.start_feeding();
        Ok(Self { machine, outcome })
    }

    /// Before an exit is fed.
    fn forget(&self) {
        let mut outcome = self.outcome.borrow_mut();
        outcome.notes.clear();
        outcome.resume = None;
    }
}

/// What the VMM did around the exit, this being the first ioctl that was done now: the results must be the same.
fn ioctls(machine: &Machine, group: &ExitGroup, first: usize) -> Option<Row> {
    let taped = group.controls_before.iter().chain(&group.controls);
    let done = machine.controls().iter().skip(first).map(|(_, control)| control);
    let (expected, actual) = taped.zip(done).find(|(expected, actual)| expected != actual)?;
    Some(Row::new(IOCTL, control_text(expected), control_text(actual)))
}

/// What a row of `ioctls` is about.
pub const IOCTL: &str = "ioctl";

/// The same exit, the same handlers: everything they note must be equal.
fn feed(fed: &mut Fed, group: &ExitGroup, report: &mut Report) -> Option<Row> {
    fed.forget();
    let end = fed.machine.feed(group);
    let outcome = fed.outcome.borrow();
    if let Some(expected) = &group.resume
        && outcome.resume.as_ref() != Some(expected)
    {
        let actual = outcome.resume.as_ref().map_or_else(|| "nothing".to_owned(), text::resume_text);
        return Some(Row::new("end of handling", text::resume_text(expected), actual));
    }
    // A vCPU that halts enters when it is woken, which is after other vCPUs' exits; a tape may end before an entry.
    let halted = group.resume.is_some_and(|resume| HALTED.contains(&resume.kind));
    let entered = group.notes.last().is_some_and(|note| matches!(note, Note::Entry { .. }));
    let open = end.is_some() || halted || !entered;
    let expected = if halted { &group.notes[..group.handled] } else { &group.notes };
    let found = first_difference(expected, &outcome.notes, group, open)?;
    // See: exempt::SILICON_BITS
    let kept = |notes: &[Note]| -> Vec<Note> {
        notes.iter().filter(|note| !matches!(note, Note::SetSpte { .. })).copied().collect()
    };
    if first_difference(&kept(expected), &kept(&outcome.notes), group, open).is_none() {
        *report.exempted.entry(exempt::SILICON_BITS.name).or_default() += 1;
        return None;
    }
    Some(found)
}

/// Ends of handling after which the vCPU waits for an event.
const HALTED: [ResumeKind; 2] = [ResumeKind::BLOCKED, ResumeKind::HLT];

/// The first note that differs. `open`: the entry that would have followed is on one side only.
fn first_difference(expected: &[Note], actual: &[Note], group: &ExitGroup, open: bool) -> Option<Row> {
    let differ = expected.iter().zip(actual).position(|(a, b)| a != b);
    let lengths = expected.len() != actual.len() && !open;
    let at = differ.or_else(|| lengths.then(|| expected.len().min(actual.len())))?;
    let line = |notes: &[Note]| {
        notes.get(at).map_or("nothing".into(), |note| text::note_line(note, group.exit.vcpu, group.exit.rip))
    };
    Some(Row::new("note", line(expected), line(actual)))
}

/// Another kind: what its silicon and handlers make of the same stimulus, as far as the guest sees it.
fn resolve(fed: &mut Fed, group: &ExitGroup, report: &mut Report) -> Option<Row> {
    fed.forget();
    let resolved = fed.machine.resolve(group);
    let expected = visible(&group.notes);
    let mut actual = visible(&fed.outcome.borrow().notes);
    match resolved {
        // The tape ends here as well: no entry follows.
        Err(_) if !group.notes.iter().any(|note| matches!(note, Note::Entry { .. })) => {}
        Err(end) => return Some(Row::new("the run", "goes on", text::end_text(&end))),
        Ok(Resolved::Endless) => return Some(Row::new("the exit", "handled", "exits without end")),
        Ok(Resolved::Fault(fault)) => actual.push(Seen::Exception(exception(&fault))),
        Ok(Resolved::Native) if expected.is_empty() => {}
        Ok(Resolved::Native) => {
            // Silicon executes what the other one exited for; its result is not on any tape.
            *report.unknown.entry("exits that the other silicon does not take".into()).or_default() += 1;
            return None;
        }
        Ok(Resolved::Handled) => {}
    }
    if expected == actual {
        return None;
    }
    let words = |seen: &[Seen]| match seen {
        [] => "nothing".to_owned(),
        seen => seen.iter().map(Seen::text).collect::<Vec<_>>().join("; "),
    };
    Some(Row::new("what the guest sees", words(&expected), words(&actual)))
}

/// What a guest sees of an exit's handling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Exception(String),
    Note(String),
}

impl Seen {
    /// What a note says that a guest sees; backends' own detail is removed.
    pub fn of(note: &Note) -> Option<Self> {
        /// `kvm_mmio` tells a read twice: when it is asked for, and with its value.
        const UNSATISFIED_READ: u8 = 0;
        match *note {
            Note::InjException { reinjected: true, .. } | Note::Mmio { kind: UNSATISFIED_READ, .. } => None,
            Note::InjException { vector, has_error, error_code, .. } => {
                Some(Self::Exception(words(vector, has_error, error_code)))
            }
            Note::Cpuid { .. } | Note::Msr { .. } | Note::Pio { .. } | Note::Mmio { .. } => {
                Some(Self::Note(text::note_line(note, 0, 0)))
            }
            _ => None,
        }
    }

    pub fn text(&self) -> String {
        match self {
            Self::Exception(text) | Self::Note(text) => text.clone(),
        }
    }
}

fn exception(fault: &Exception) -> String {
    words(fault.vector, fault.has_error_code, fault.error_code)
}

fn words(vector: Vector, has_error: bool, error_code: u32) -> String {
    let code = if has_error { format!(" ({error_code:#x})") } else { String::new() };
    format!("{vector}{code}")
}

fn visible(notes: &[Note]) -> Vec<Seen> {
    let visible = notes.iter().filter(|note| !exempt::is_apic_access(note));
    visible.filter_map(Seen::of).collect()
}

/// A row's line without the numbers that another run would not share. Of a note its kind, if it is not what the guest
/// gets; of an ioctl its name and result.
pub fn word(line: &str) -> String {
    let (kind, rest) = line.split_once(": ").unwrap_or((line, ""));
    let visible = [NoteKind::INJ_EXCEPTION, NoteKind::CPUID, NoteKind::MSR].map(|kind| kind.to_string());
    match kind.split_once(' ') {
        _ if visible.iter().any(|name| name == kind) => line.to_owned(),
        Some((ioctl, _)) if ioctl.starts_with("KVM_") => {
            format!("{ioctl}:{}", rest.split_once(',').map_or(rest, |(result, _)| result))
        }
        _ => kind.to_owned(),
    }
}

fn divergence(
    group: &ExitGroup,
    row: Row,
    story: Story,
    context: Vec<String>,
    reproduce: &str,
) -> Divergence {
    let what = format!("{}:{}>{}", row.what, word(&row.expected), word(&row.actual));
    Divergence {
        signature: Signature::new(&what, group.exit.rip),
        cause: None,
        level: if row.what == IOCTL { Level::VmmVisible } else { Level::GuestVisible },
        class: Class::Unexplained,
        summary: format!("exit {}: {} instead of {}", group.number, row.actual, row.expected),
        vcpu: group.exit.vcpu,
        icount: group.exit.icount,
        rip: group.exit.rip,
        expected_exit: Some(group.number),
        actual_exit: None,
        rows: vec![row],
        stories: vec![story],
        expected_context: context,
        actual_context: Vec::new(),
        rules: Vec::new(),
        reproduce: reproduce.to_owned(),
    }
}
