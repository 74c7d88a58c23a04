//! Exits without their guest: each taped exit is given to a backend's handlers, and what they do is compared.
//!
//! A backend of the same kind gets the exit itself and must do the same about it, note by note. For one of another kind
//! the stimulus is resolved again by its own silicon; what the guest sees of the outcome is compared. What depends on
//! memory that the tape does not have, and what the other kind alone would exit for, is unknown: counted, never guessed.

use crate::{
    Error, exempt, explain, identical,
    player::{Create, Player},
    report::{Class, Divergence, Level, Report, Row},
    signature::Signature,
    spec, text,
};
use std::collections::VecDeque;
use vmtape_arch::{
    exception::{Exception, Vector},
    exit::{Resume, ResumeKind},
    note::Note,
};
use vmtape_machine::{MachineSpec, Resolved, vmm::control_text};
use vmtape_traces::{Event, ExitGroup, Exits, Tape};

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
    let mut player = Player::new(machine, Box::new(spec::inputs(tape)?), spec::budget(tape), create, true)?;
    player.machine.start_feeding();
    player.take_events();
    /// Exits kept for context.
    const CONTEXT: usize = 3;
    let mut recent = VecDeque::new();
    for group in Exits::new(tape.events(), 0) {
        let group = group?;
        let (unknown, done) = (player.machine.unknown_reads(), player.machine.controls().len());
        let rows =
            if same { feed(&mut player, &group, report) } else { resolve(&mut player, &group, report) };
        let rows = ioctls(&player, &group, done).or(rows);
        report.compared.exits += 1;
        report.compared.instructions = group.exit.icount;
        progress(report.compared.exits);
        if recent.len() == CONTEXT {
            recent.pop_front();
        }
        recent.push_back(group);
        if player.machine.unknown_reads() != unknown {
            *report
                .unknown
                .entry("exits whose handling reads memory that the tape does not have".into())
                .or_default() += 1;
        } else if let Some(row) = rows {
            let group = recent.back().expect("just pushed");
            let story = explain::of_group(group, widths);
            report.diverge(divergence(group, row, story, text::context(recent.iter(), CONTEXT), reproduce));
            return Ok(());
        }
    }
    Ok(())
}

/// What the VMM did around the exit, this being the first ioctl that was done now: the results must be the same.
fn ioctls(player: &Player, group: &ExitGroup, first: usize) -> Option<Row> {
    let taped = group.controls_before.iter().chain(&group.controls);
    let done = player.machine.controls().iter().skip(first).map(|(_, control)| control);
    let (expected, actual) = taped.zip(done).find(|(expected, actual)| expected != actual)?;
    Some(Row::new("ioctl", control_text(expected), control_text(actual)))
}

/// The same exit, the same handlers: everything they note must be equal.
fn feed(player: &mut Player, group: &ExitGroup, report: &mut Report) -> Option<Row> {
    let end = player.machine.feed(group);
    let (notes, resume) = outcome(player);
    if let Some(expected) = &group.resume
        && resume.as_ref() != Some(expected)
    {
        let actual = resume.as_ref().map_or_else(|| "nothing".to_owned(), text::resume_text);
        return Some(Row::new("end of handling", text::resume_text(expected), actual));
    }
    let ended = end.is_some() || group.resume.is_none();
    // A vCPU that halts enters when it is woken, which is after other vCPUs' exits.
    let halted = group.resume.is_some_and(|resume| HALTED.contains(&resume.kind));
    let expected = if halted { &group.notes[..group.handled] } else { &group.notes };
    let found = first_difference(expected, &notes, group, ended || halted)?;
    // See: exempt::SILICON_BITS
    let kept = |notes: &[Note]| -> Vec<Note> {
        notes.iter().filter(|note| !matches!(note, Note::SetSpte { .. })).copied().collect()
    };
    if first_difference(&kept(expected), &kept(&notes), group, ended || halted).is_none() {
        *report.exempted.entry(exempt::SILICON_BITS.name).or_default() += 1;
        return None;
    }
    Some(found)
}

/// Ends of handling after which the vCPU waits for an event.
const HALTED: [ResumeKind; 2] = [ResumeKind::BLOCKED, ResumeKind::HLT];

/// What handlers noted about the last exit, and how they ended.
fn outcome(player: &Player) -> (Vec<Note>, Option<Resume>) {
    let (mut notes, mut resume) = (Vec::new(), None);
    for event in player.take_events() {
        match event {
            Event::Exit(_) => notes.clear(),
            Event::Note { note, .. } => notes.push(note),
            Event::Resume { resume: found, .. } => resume = Some(found),
            _ => {}
        }
    }
    (notes, resume)
}

fn first_difference(expected: &[Note], actual: &[Note], group: &ExitGroup, ended: bool) -> Option<Row> {
    let differ = expected.iter().zip(actual).position(|(a, b)| a != b);
    // A tape that ends here does not have the entry that would have followed.
    let lengths = expected.len() != actual.len() && !ended;
    let at = differ.or_else(|| lengths.then(|| expected.len().min(actual.len())))?;
    let line = |notes: &[Note]| {
        notes.get(at).map_or("nothing".into(), |note| text::note_line(note, group.exit.vcpu, group.exit.rip))
    };
    Some(Row::new("note", line(expected), line(actual)))
}

/// Another kind: what its silicon and handlers make of the same stimulus, as far as the guest sees it.
fn resolve(player: &mut Player, group: &ExitGroup, report: &mut Report) -> Option<Row> {
    let resolved = player.machine.resolve(group);
    let (notes, _) = outcome(player);
    let expected = visible(&group.notes);
    let mut actual = visible(&notes);
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

fn divergence(
    group: &ExitGroup,
    row: Row,
    story: explain::Story,
    context: Vec<String>,
    reproduce: &str,
) -> Divergence {
    Divergence {
        signature: Signature::new(&format!("{}:{}>{}", row.what, row.expected, row.actual), group.exit.rip),
        cause: None,
        level: Level::GuestVisible,
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
