//! A tape held against the events of a machine, or of another tape.

use crate::{
    Error, exempt,
    report::{Compared, Report},
};
use std::collections::VecDeque;
use vmtape_arch::note::Note;
use vmtape_traces::{Event, ExitGroup, Exits, Metadata, Tape, event::End, reader::Events};

/// The events of a tape, held against those of a machine.
pub struct Checker<'t> {
    taped: Events<'t>,
    /// The tape's names for numbers.
    pub names: Metadata,
    /// The tape tells what exits read by the rules of this program.
    tells_reads: bool,
    /// The recording was killed: what a run does after the last event is no difference.
    cut: bool,
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

/// Older recordings do not say why everybody is halted.
fn is_same_end(taped: &Event, actual: &Event) -> bool {
    let (Event::End { icount, exits, end }, Event::End { icount: i, exits: e, end: other }) = (taped, actual)
    else {
        return false;
    };
    let untold = matches!((end, other), (End::Idle { reason }, End::Idle { .. }) if reason.is_empty());
    untold && (icount, exits) == (i, e)
}

impl<'t> Checker<'t> {
    pub fn new(tape: &'t Tape) -> Self {
        Self::at(tape, tape.events())
    }

    /// Begins in the middle.
    pub fn at(tape: &Tape, taped: Events<'t>) -> Self {
        Self {
            taped,
            names: tape.metadata().clone(),
            tells_reads: tape.schema() >= exempt::READS_SCHEMA,
            cut: matches!(tape.end(), Ok(Some((_, End::Cut)))),
            exempted: 0,
            compared: Compared::default(),
            recent: VecDeque::new(),
        }
    }

    /// Begins with a chunk. What comes before it is known to be the same, and counts as compared.
    pub fn from_chunk(tape: &'t Tape, chunk: usize) -> Self {
        let before = &tape.chunks()[..chunk];
        let events = before.iter().map(|chunk| u64::from(chunk.events)).sum();
        let (exits, instructions) =
            tape.chunks().get(chunk).map_or((0, 0), |chunk| (chunk.first_exit, chunk.first_icount));
        let compared = Compared { instructions, exits, events };
        Self { compared, ..Self::at(tape, tape.events_from(chunk)) }
    }

    /// The next event of the tape that is to be compared.
    fn next(&mut self) -> Result<Option<Event>, Error> {
        while let Some(event) = self.taped.next().transpose()? {
            if self.cut && matches!(event, Event::End { end: End::Cut, .. }) {
                return Ok(None);
            }
            if self.is_compared(&event) {
                return Ok(Some(event));
            }
            self.exempted += 1;
        }
        Ok(None)
    }

    fn is_compared(&self, event: &Event) -> bool {
        self.tells_reads
            || !matches!(
                event,
                Event::Registers(_)
                    | Event::Read { .. }
                    | Event::Devices { .. }
                    | Event::Entry(_)
                    | Event::Note { note: Note::MemoryType { .. }, .. }
            )
    }

    /// Compares the next events. `None`: they are as taped.
    pub fn check(&mut self, events: Vec<Event>) -> Result<Option<Mismatch>, Error> {
        for actual in events {
            if !self.is_compared(&actual) {
                continue;
            }
            match self.next()? {
                Some(expected) if expected == actual || is_same_end(&expected, &actual) => {
                    self.keep(expected);
                }
                None if self.cut => return Ok(None),
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
