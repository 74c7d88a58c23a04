//! Two machines that run the guest side by side, and stand still at the same instruction.
//!
//! An instruction that leaves the guest on one side may be silicon's on the other. Both sides look at the registers after it:
//! the other machine is told where the tape has exits, so it runs first, and then tells where it has exits of its own.

use crate::{
    Error,
    causes::Side,
    ends,
    player::{PIECE_INSTRUCTIONS, Player},
    sides::Sides,
    state::{self, Difference},
    text,
};
use std::iter::Peekable;
use vmtape_arch::vcpu::VcpuState;
use vmtape_machine::Digest;
use vmtape_traces::{Event, Tape, event::End, flat::tag};

/// Both machines, at the same instruction.
pub(super) struct Pair<'t> {
    pub expected: Player,
    pub actual: Player,
    /// Whether answers to the VMM's questions count as differences.
    pub questions: bool,
    /// Both see writes in the same way: dirty logs are to tell the same pages.
    pub logs_alike: bool,
    /// What happened before the comparison began, on each side: a guest that moves brings along its memory, not how it came to be.
    before: [Digest; 2],
    taped: Taped<'t>,
}

/// Where both machines were equal, just before the instruction after which they are not.
pub(super) struct LastEqual {
    pub icount: u64,
    /// The registers of each vCPU.
    pub states: Vec<VcpuState>,
}

/// A way to run one of the two to an instruction count.
pub(super) type Run<'r> = &'r mut dyn FnMut(&mut Player, Side, u64) -> Result<(), Error>;

impl<'t> Pair<'t> {
    /// Two machines that stand at the same instruction of a tape.
    pub fn new(tape: &'t Tape, expected: Player, actual: Player, logs_alike: bool) -> Result<Self, Error> {
        let before = [&expected, &actual].map(|player| player.machine.digest());
        let taped = Taped::new(tape, expected.machine.icount())?;
        Ok(Self { expected, actual, questions: false, logs_alike, before, taped })
    }

    /// Runs both to the same instruction count; the second one no further than the first.
    pub fn advance_to(&mut self, instructions: u64) -> Result<(), Error> {
        self.drive(instructions, &mut |player, _, instructions| player.advance(instructions, u64::MAX))
    }

    /// As [`Pair::advance_to`], with a way to run one of them.
    pub fn drive(&mut self, instructions: u64, run: Run) -> Result<(), Error> {
        let instructions = self.taped.cap(self.expected.machine.icount(), instructions);
        while self.expected.end.is_none() && self.expected.machine.icount() < instructions {
            let piece = self.expected.machine.icount().saturating_add(PIECE_INSTRUCTIONS);
            self.drive_piece(instructions.min(piece), run)?;
        }
        let Some(end) = &self.expected.end else { return Ok(()) };
        let icount = self.expected.machine.icount();
        run(&mut self.actual, Side::Actual, icount)?;
        if !matches!(end, End::Limit { .. }) {
            // What ended the first one (a triple fault, say) may come after the last instruction that retired.
            run(&mut self.actual, Side::Actual, icount + 1)?;
        }
        Ok(())
    }

    fn drive_piece(&mut self, instructions: u64, run: Run) -> Result<(), Error> {
        let until = instructions.min(self.taped.end);
        self.actual.machine.sample_at(self.taped.left_until(until)?.into_iter());
        run(&mut self.actual, Side::Actual, until)?;
        self.expected.machine.sample_at(self.actual.machine.take_left().into_iter());
        run(&mut self.expected, Side::Expected, instructions)?;
        self.expected.machine.take_left();
        // Memory that follows its guest is compared, too.
        self.actual.machine.pull();
        Ok(())
    }

    pub fn listen(&self, on: bool) {
        self.expected.listen(on);
        self.actual.listen(on);
    }

    /// Whether the tape's machine has stopped within an instruction, by a limit on its exits: the other one has not begun with it.
    pub fn stopped_within(&mut self) -> bool {
        matches!(self.expected.end, Some(End::Limit { .. })) && self.taped.exits.peek().is_some()
    }

    pub fn is_over(&self) -> bool {
        self.expected.end.is_some() || self.actual.end.is_some()
    }

    /// Where both stand, before the next instruction.
    pub fn last_equal(&self) -> LastEqual {
        self.expected.take_observations();
        self.actual.take_observations();
        let machine = &self.expected.machine;
        LastEqual {
            icount: machine.icount(),
            states: (0..machine.spec().vcpus).filter_map(|vcpu| machine.state(vcpu).copied()).collect(),
        }
    }

    /// Every difference that the guest or, by an ioctl that changes the VM, the VMM can observe.
    pub fn differences(&self) -> Vec<Difference> {
        let mut differences = state::compare(&self.expected.machine, &self.actual.machine);
        differences.extend(end_difference(&self.expected, &self.actual));
        let (expected, actual) = (&self.expected.machine, &self.actual.machine);
        let (changes, questions) = state::compare_ioctls(expected, actual, self.logs_alike);
        differences.extend(changes);
        differences.extend(questions.into_iter().filter(|_| self.questions));
        differences.extend(self.page_faults());
        let (expected, actual) = (self.expected.take_serial(), self.actual.take_serial());
        if expected != actual {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            differences.push(Difference::Output { expected: text(&expected), actual: text(&actual) });
        }
        if differences.is_empty() {
            differences.extend(self.healed());
        }
        differences
    }

    /// What was different since the comparison began, though nothing is any more.
    fn healed(&self) -> Option<Difference> {
        let types_told =
            [&self.expected, &self.actual].iter().all(|player| player.machine.memory_types().is_told());
        let [expected, actual] = [(&self.expected, self.before[0]), (&self.actual, self.before[1])]
            .map(|(player, before)| player.machine.digest().since(&before));
        match () {
            () if expected.memory != actual.memory => Some(Difference::Healed("memory")),
            () if expected.outcomes != actual.outcomes => Some(Difference::Healed("registers")),
            () if types_told && expected.memory_types != actual.memory_types => {
                Some(Difference::Healed("memory types"))
            }
            () if expected.devices != actual.devices => Some(Difference::Healed("what devices saw")),
            () => None,
        }
    }

    /// A guest may have forgotten by now that it took another page fault.
    fn page_faults(&self) -> Option<Difference> {
        let (expected, actual) = (self.expected.take_page_faults(), self.actual.take_page_faults());
        let first = (0..expected.len().max(actual.len())).find(|n| expected.get(*n) != actual.get(*n))?;
        Some(Difference::Fault { expected: expected.get(first).copied(), actual: actual.get(first).copied() })
    }
}

/// What differs in how the runs ended, or how far they got.
pub(super) fn end_difference(expected: &Player, actual: &Player) -> Option<Difference> {
    let by_limit = matches!(expected.end, Some(End::Limit { .. }));
    if !ends::alike(expected.end.as_ref(), actual.end.as_ref()) && !by_limit {
        let words = |player: &Player| player.end.as_ref().map_or("goes on".to_owned(), text::end_text);
        return Some(Difference::End { expected: words(expected), actual: words(actual) });
    }
    let (expected, actual) = (expected.machine.icount(), actual.machine.icount());
    (expected != actual).then_some(Difference::Progress { expected, actual })
}

impl Sides<'_> {
    /// Both machines, where the comparison begins.
    pub(super) fn pair(&self, listen: bool) -> Result<Pair<'_>, Error> {
        let mut expected = self.player(Side::Expected, &self.expected, listen)?;
        let actual = match self.way {
            Some(way) => self.arrived(way, &self.actual, &mut expected, listen)?,
            None => self.moved(&self.actual, &mut expected, listen)?,
        };
        Pair::new(self.tape, expected, actual, self.log_alike())
    }
}

/// The instructions of a tape that left the guest, in order.
struct Taped<'t> {
    exits: Peekable<Box<dyn Iterator<Item = Result<u64, Error>> + 't>>,
    /// The tape ends after so many instructions.
    end: u64,
    /// By a limit.
    limited: bool,
}

impl<'t> Taped<'t> {
    /// From an instruction count on.
    fn new(tape: &'t Tape, icount: u64) -> Result<Self, Error> {
        let exits = tape.events_with(tag::EXIT).filter_map(move |event| match event {
            Ok(Event::Exit(exit)) => (exit.icount >= icount).then_some(Ok(exit.icount)),
            Ok(_) => None,
            Err(error) => Some(Err(error.into())),
        });
        let exits: Box<dyn Iterator<Item = _>> = Box::new(exits);
        let limited = matches!(tape.end()?, Some((_, End::Limit { .. })));
        Ok(Self { exits: exits.peekable(), end: tape.totals()?.icount, limited })
    }

    /// How far both may run at once: what comes after the last whole instruction before a limit is looked at by itself.
    fn cap(&self, icount: u64, instructions: u64) -> u64 {
        if self.limited && icount < self.end { instructions.min(self.end) } else { instructions }
    }

    /// The instruction counts that they complete, up to one, each once.
    fn left_until(&mut self, icount: u64) -> Result<Vec<u64>, Error> {
        let mut counts: Vec<u64> = Vec::new();
        while let Some(exit) = self.exits.next_if(|exit| exit.as_ref().map_or(true, |exit| *exit < icount)) {
            let count = exit? + 1;
            if counts.last() != Some(&count) {
                counts.push(count);
            }
        }
        Ok(counts)
    }
}
