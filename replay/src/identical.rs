//! The same backend again: every event is compared, nothing is exempt but what tapes of older schemas tell by other rules.

use crate::{
    Error, exempt,
    explain::{self, Widths},
    player::{Create, Player},
    report::{Class, Compared, Divergence, Level, Report, Row},
    signature::Signature,
    spec, text,
};
use std::collections::VecDeque;
use vmtape_machine::MachineSpec;
use vmtape_traces::{Event, ExitGroup, Exits, Tape, reader::Events};

/// Exits between two comparisons.
const STRETCH: u64 = 4096;

/// The events of a tape, held against those of a machine.
pub struct Checker<'t> {
    taped: Events<'t>,
    /// The tape tells what exits read by the rules of this program.
    tells_reads: bool,
    /// Events of the tape that are not compared ([`exempt::OLDER_READS`]).
    exempted: u64,
    compared: Compared,
    /// The last events of the tape, for context.
    recent: VecDeque<Event>,
}

/// Where a machine left the tape.
pub struct Mismatch {
    pub expected: Option<Event>,
    pub actual: Option<Event>,
}

impl<'t> Checker<'t> {
    pub fn new(tape: &'t Tape) -> Self {
        Self::at(tape, tape.events())
    }

    /// Begins in the middle.
    fn at(tape: &Tape, taped: Events<'t>) -> Self {
        Self {
            taped,
            tells_reads: tape.schema() >= exempt::READS_SCHEMA,
            exempted: 0,
            compared: Compared::default(),
            recent: VecDeque::new(),
        }
    }

    /// The next event of the tape that is to be compared.
    fn next(&mut self) -> Result<Option<Event>, Error> {
        while let Some(event) = self.taped.next().transpose()? {
            if self.is_compared(&event) {
                return Ok(Some(event));
            }
            self.exempted += 1;
        }
        Ok(None)
    }

    fn is_compared(&self, event: &Event) -> bool {
        self.tells_reads || !matches!(event, Event::Registers(_) | Event::Read { .. })
    }

    /// Compares the next events. `None`: they are as taped.
    pub fn check(&mut self, events: Vec<Event>) -> Result<Option<Mismatch>, Error> {
        for actual in events {
            if !self.is_compared(&actual) {
                continue;
            }
            match self.next()? {
                Some(expected) if expected == actual => self.keep(expected),
                expected => return Ok(Some(Mismatch { expected, actual: Some(actual) })),
            }
        }
        Ok(None)
    }

    /// The next event of the tape, which nothing was compared with.
    pub fn rest(&mut self) -> Result<Option<Event>, Error> {
        self.next()
    }

    /// Whether the tape has no more events, not even an end: the recording was cut.
    pub fn at_cut(&mut self, tape: &Tape) -> bool {
        tape.damage().is_some() && self.compared.exits >= tape.totals().map_or(0, |totals| totals.exits)
    }

    fn keep(&mut self, event: Event) {
        self.compared.events += 1;
        if let Event::Exit(exit) = &event {
            self.compared.exits += 1;
            self.compared.instructions = exit.icount;
        }
        /// Events kept for context: some exits' worth.
        const KEPT: usize = 64;
        if self.recent.len() == KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(event);
    }

    /// Tells a report what was compared, and what was not.
    pub fn tell(&self, report: &mut Report) {
        report.compared = self.compared.clone();
        if self.exempted > 0 {
            report.exempted.insert(exempt::OLDER_READS.name, self.exempted);
        }
    }

    pub fn compared(&self) -> &Compared {
        &self.compared
    }

    /// The last exits of the tape, with one more event.
    pub fn context(&self, more: Option<&Event>) -> Vec<ExitGroup> {
        let events = self.recent.iter().chain(more).cloned().map(Ok);
        let first =
            self.compared.exits.saturating_sub(
                self.recent.iter().filter(|event| matches!(event, Event::Exit(_))).count() as u64,
            );
        Exits::new(events, first).filter_map(Result::ok).collect()
    }
}

/// Runs the tape's machine again and compares event by event. `from`: not from its start, but from the last checkpoint
/// with at most so many exits before it.
pub fn replay(
    tape: &Tape,
    machine: MachineSpec,
    create: Create,
    from: Option<u64>,
    report: &mut Report,
    reproduce: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let widths = widths(&machine);
    let (mut player, mut checker) = match from {
        None => {
            let inputs = Box::new(spec::inputs(tape)?);
            (Player::new(machine, inputs, spec::budget(tape), create, true)?, Checker::new(tape))
        }
        Some(exit) => middle(tape, machine, create, exit)?,
    };
    let mut found = None;
    while player.end.is_none() && found.is_none() && !checker.at_cut(tape) {
        player.advance(u64::MAX, player.machine.exits() + STRETCH)?;
        found = checker.check(player.take_events())?;
        progress(checker.compared.exits);
    }
    checker.tell(report);
    report.actual_end = player.end.as_ref().map(text::end_text);
    report.compared.instructions = player.machine.icount();
    // A damaged tape breaks off: what a run does after that is no difference.
    let at_cut = checker.at_cut(tape);
    if let Some(mismatch) = found.filter(|mismatch| !at_cut || mismatch.expected.is_some()) {
        report.diverge(divergence(&checker, mismatch, widths, reproduce));
    }
    report.conclude();
    Ok(())
}

/// A machine restored from a checkpoint, and the tape from there on.
fn middle<'t>(
    tape: &'t Tape,
    machine: MachineSpec,
    create: Create,
    exit: u64,
) -> Result<(Player, Checker<'t>), Error> {
    let start = tape.checkpoint_before(exit).ok_or_else(|| {
        Error::Other(format!(
            "{}: has no checkpoint before exit {exit} (record --checkpoint-every)",
            tape.name()
        ))
    })?;
    let mut chain = Vec::new();
    for checkpoint in tape.checkpoints().take_while(|checkpoint| checkpoint.exit <= start.exit) {
        chain.push(tape.checkpoint(checkpoint)?.1);
    }
    let inputs = Box::new(spec::inputs(tape)?);
    let mut player = Player::new(machine, inputs, spec::budget(tape), create, true)?;
    player.machine.restore(chain.iter().map(Vec::as_slice))?;
    player.take_events();
    Ok((player, Checker::at(tape, tape.events_from(start.chunk))))
}

/// The widths of a machine's guest and host.
pub fn widths(machine: &MachineSpec) -> Widths {
    Widths { guest: vmtape_arch::cpuid::maxphyaddr(&machine.cpuid), host: machine.silicon.phys_bits }
}

fn divergence(checker: &Checker, mismatch: Mismatch, widths: Widths, reproduce: &str) -> Divergence {
    let expected = checker.context(mismatch.expected.as_ref());
    let actual = checker.context(mismatch.actual.as_ref());
    let last = expected.last().or(actual.last());
    let words = |event: &Option<Event>| event.as_ref().map_or("nothing".to_owned(), event_text);
    let kind = |event: &Option<Event>| event.as_ref().map_or("nothing".to_owned(), event_kind);
    let what = format!("{}>{}", kind(&mismatch.expected), kind(&mismatch.actual));
    Divergence {
        signature: Signature::new(&what, last.map_or(0, |group| group.exit.rip)),
        cause: None,
        level: Level::GuestVisible,
        class: Class::Unexplained,
        summary: "the run does not repeat itself: the same machine and inputs gave another event".into(),
        vcpu: last.map_or(0, |group| group.exit.vcpu),
        icount: last.map_or(0, |group| group.exit.icount),
        rip: last.map_or(0, |group| group.exit.rip),
        expected_exit: last.map(|group| group.number),
        actual_exit: actual.last().map(|group| group.number),
        rows: vec![Row::new("event", words(&mismatch.expected), words(&mismatch.actual))],
        stories: last.map(|group| explain::of_group(group, widths)).into_iter().collect(),
        expected_context: text::context(expected.iter(), 3),
        actual_context: text::context(actual.iter(), 3),
        rules: Vec::new(),
        reproduce: reproduce.to_owned(),
    }
}

/// What an event is, without its numbers.
pub(crate) fn event_kind(event: &Event) -> String {
    match event {
        Event::Exit(exit) => text::reason(&exit.exit),
        Event::Note { note, .. } => note.to_raw().kind.to_string(),
        Event::Resume { resume, .. } => resume.kind.to_string(),
        Event::Registers(_) => "registers".into(),
        Event::Read { .. } => "read".into(),
        Event::Input { source, .. } => source.to_string(),
        Event::Control { .. } => "control".into(),
        Event::StateHash { .. } => "state-hash".into(),
        Event::Milestone(_) => "milestone".into(),
        Event::Line { .. } => "line".into(),
        Event::End { .. } => "end".into(),
    }
}

/// Any event on one line.
pub fn event_text(event: &Event) -> String {
    match event {
        Event::Exit(exit) => {
            format!(
                "exit {} at rip {:#x} icount {} {:x?}",
                text::reason(&exit.exit),
                exit.rip,
                exit.icount,
                exit.exit
            )
        }
        Event::Note { vcpu, place, note } => {
            text::note_line(note, *vcpu, 0) + &vmtape_traces::text::place_text(*place)
        }
        Event::Resume { resume, .. } => text::resume_text(resume),
        Event::Control { control, .. } => control.to_string(),
        Event::End { icount, end, .. } => format!("after {icount} instructions, {}", text::end_text(end)),
        other => format!("{other:x?}"),
    }
}
