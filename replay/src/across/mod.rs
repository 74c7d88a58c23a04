//! Another backend, host or KVM: the guest runs on both, and what it can observe is compared.
//!
//! The tape's own machine is run again beside the other one. It must repeat the tape event by event, so what is compared
//! is the tape; and it has what no tape holds, every register and every byte of memory after each instruction. Both
//! stand still at the same count of retired instructions, where registers, memory and serial output must be equal, and so
//! must the digests of all that happened since the beginning, in which a difference stays when it heals: each write of memory,
//! and the registers after each event, each sensitive instruction, and each that left the guest on either side. A
//! stretch that ends unequal is run again in smaller steps, down to the one instruction.

mod instruction;
mod pair;

pub use crate::sides::{Sides, names};

use crate::{
    Error,
    causes::Side,
    checker::Checker,
    exits::MISSED,
    migration::{Travelled, Way},
    player::Player,
    report::{Cost, Divergence, Report},
    spec,
    state::{self, Difference},
    text::{self, event_text},
};
use pair::{LastEqual, Pair, end_difference};
use vmtape_machine::{MachineSpec, vmm::When};
use vmtape_traces::Event;

/// What a comparison looks at, in words. After every other instruction registers follow from what they and memory were before,
/// but where two vendors' silicon computes otherwise: they are compared once more at the end of each stretch.
pub const COMPARED: &str = "memory and device accesses are compared instruction by instruction, registers after each event, each \
     sensitive instruction and each that left the guest";

/// Instructions per stretch, at first and at most: a comparison looks at every page that was ever written.
const FIRST_STRETCH: u64 = 1 << 16;
const LONGEST_STRETCH: u64 = 1 << 24;
/// Events of one stretch: with more, stretches get shorter, because what follows from an exit is looked at sooner.
const MOST_EVENTS: usize = 1 << 18;
/// How a stretch that ends unequal is divided.
const DIVISION: u64 = 64;

/// What is not compared of a tape that ends by a limit on its exits.
const WITHIN: &str = "instructions that the tape stops within";

/// What was found at the end of a stretch.
struct Found {
    /// Both machines were equal after this many instructions.
    equal_at: u64,
    /// And no longer so many instructions later.
    stretch: u64,
}

impl Sides<'_> {
    /// Compares until the first divergence or the end.
    pub fn compare(&self, report: &mut Report, progress: &mut dyn FnMut(u64)) -> Result<(), Error> {
        let mut pair = self.pair(true)?;
        let mut checker = Checker::new(self.tape);
        let found = self.run(&mut pair, &mut checker, report, progress)?;
        checker.tell(report);
        report.compared.instructions = pair.expected.machine.icount();
        let (_, questions) =
            state::compare_ioctls(&pair.expected.machine, &pair.actual.machine, pair.logs_alike);
        report.answers = questions.iter().map(Difference::row).collect();
        report.leave_open(MISSED, pair.actual.machine.missed_faults().len() as u64);
        report.expected_end = pair.expected.end.as_ref().map(text::end_text);
        report.actual_end = pair.actual.end.as_ref().map(text::end_text);
        // A question that is answered otherwise is a difference, but nothing follows from it.
        let asked = found.is_none() && !questions.is_empty();
        let anywhere = Found { equal_at: 0, stretch: pair.expected.machine.icount().max(1) };
        if let Some(found) = found.or(asked.then_some(anywhere)) {
            drop(pair);
            let divergence = self.locate(found, asked)?;
            report.compared.instructions = divergence.icount;
            report.diverge(divergence);
        }
        report.conclude();
        Ok(())
    }

    /// Whether both see writes in the same way: one backend under the same parameters, of whatever release.
    fn log_alike(&self) -> bool {
        let same = |name: &str| {
            let value = |machine: &MachineSpec| {
                machine.options.iter().find(|(option, _)| option == name).map(|(_, value)| value.clone())
            };
            value(&self.expected) == value(&self.actual)
        };
        let (expected, actual) = (&self.expected, &self.actual);
        // A guest that has moved is mapped anew.
        self.at == When::Start
            && self.way.is_none()
            && (&expected.backend, &expected.silicon) == (&actual.backend, &actual.silicon)
            && self.plugin.parameters.iter().all(|row| same(&row.name))
    }

    fn player(&self, side: Side, machine: &MachineSpec, listen: bool) -> Result<Player, Error> {
        let tape = self.inputs.filter(|_| side == Side::Actual).unwrap_or(self.tape);
        let inputs = Box::new(spec::inputs(tape)?);
        let spec = self.scripted(machine)?;
        let mut player = Player::observed(spec, inputs, self.budget(machine), self.create, listen)?;
        player.machine.keep_digest();
        Ok(player)
    }

    /// Another machine, at the moment when the guest moves to it from the tape's.
    fn moved(&self, machine: &MachineSpec, expected: &mut Player, listen: bool) -> Result<Player, Error> {
        let mut actual = self.player(Side::Actual, machine, listen)?;
        if self.at == When::Start {
            return Ok(actual);
        }
        if !expected.come_to_rest(self.at)? {
            return Err(Error::NobodyMoves { tape: self.tape.name().to_owned(), at: self.at });
        }
        actual.machine.take_over(&mut expected.machine)?;
        // What came before has no part in the comparison, but is on the tape.
        for player in [&*expected, &actual] {
            player.take_serial();
            player.take_observations();
            player.take_page_faults();
        }
        Ok(actual)
    }

    /// The machine that the guest has come to by a migration; its twin runs to where it goes on.
    fn arrived(
        &self,
        way: Way,
        last: &MachineSpec,
        expected: &mut Player,
        listen: bool,
    ) -> Result<Player, Error> {
        let (actual, printed) = match way {
            Way::Journey(journey) => {
                let Travelled { player, printed, .. } = self.travel(journey, last, listen)?;
                (
                    player.ok_or_else(|| Error::Other("the guest runs nowhere any more".to_owned()))?,
                    Some(printed),
                )
            }
            Way::Landed(landed) => {
                let mut actual = self.traveller(last, listen)?;
                landed.onto(&mut actual)?;
                (actual, None)
            }
        };
        expected.advance(actual.machine.icount(), u64::MAX)?;
        let of_twin = expected.take_serial();
        if printed.is_some_and(|printed| printed != of_twin) {
            let text = "on its way the guest has printed something else than its twin".to_owned();
            return Err(Error::Other(text));
        }
        if self.flushes_twin() {
            expected.machine.arrived();
        }
        for player in [&*expected, &actual] {
            player.take_serial();
            player.take_observations();
            player.take_page_faults();
        }
        Ok(actual)
    }

    fn flushes_twin(&self) -> bool {
        self.way.and_then(Way::journey).is_some_and(|journey| journey.flush_twin.get())
    }

    /// The other machine, run to an instruction.
    pub fn other_at(&self, icount: u64) -> Result<Player, Error> {
        let mut actual = match (self.at, self.way) {
            // Nobody brings it anything.
            (When::Start, None) => self.player(Side::Actual, &self.actual, false)?,
            _ => self.pair(false)?.actual,
        };
        actual.advance(icount, u64::MAX)?;
        Ok(actual)
    }

    /// Runs both in stretches while they are equal.
    fn run(
        &self,
        pair: &mut Pair,
        checker: &mut Checker,
        report: &mut Report,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<Found>, Error> {
        let (mut stretch, mut equal_at) = (FIRST_STRETCH, pair.expected.machine.icount());
        // What a guest did not bring along it may write again before the first stretch ends. Memory that follows it has not come.
        let follows = self.way.is_some_and(Way::follows);
        if self.way.is_some() && !follows && !pair.differences().is_empty() {
            return Ok(Some(Found { equal_at, stretch: 1 }));
        }
        loop {
            let mut heard = [0; 2];
            pair.drive(equal_at + stretch, &mut |player, side, instructions| {
                player.advance_telling(instructions, &mut |events| match side {
                    Side::Expected => {
                        heard[0] += events.len();
                        count(&events, report, |cost| &mut cost.expected);
                        self.check_tape(events, checker)
                    }
                    Side::Actual => {
                        heard[1] += events.len();
                        count(&events, report, |cost| &mut cost.actual);
                        Ok(())
                    }
                })
            })?;
            if pair.stopped_within() {
                report.leave_open(WITHIN, 1);
                return Ok(None);
            }
            let differences = pair.differences();
            if !differences.is_empty() {
                // What ended a side may come after the last instruction that retired.
                let ran = pair.expected.machine.icount().max(pair.actual.machine.icount()) + 1 - equal_at;
                return Ok(Some(Found { equal_at, stretch: stretch.min(ran) }));
            }
            if pair.expected.end.is_some() {
                return Ok(None);
            }
            equal_at = pair.expected.machine.icount();
            stretch = match heard[0].max(heard[1]) {
                0..MOST_EVENTS => (stretch * 2).min(LONGEST_STRETCH),
                _ => (stretch / 2).max(FIRST_STRETCH / DIVISION),
            };
            progress(equal_at);
        }
    }

    /// The tape's own machine must repeat the tape: otherwise nothing can be said about another one.
    fn check_tape(&self, events: Vec<Event>, checker: &mut Checker) -> Result<(), Error> {
        if self.flushes_twin() {
            // It walks its tables more often than on the tape; without that it has repeated it.
            return Ok(());
        }
        match checker.check(events)? {
            None => Ok(()),
            Some(mismatch) => {
                let words = |event: &Option<Event>| event.as_ref().map_or("nothing".into(), event_text);
                Err(Error::Other(format!(
                    "{}: the installed `{}` does not repeat this tape (after exit {}: taped {}, now {}); it is \
                     another build than the one that recorded",
                    self.tape.name(),
                    self.expected.backend,
                    checker.compared().exits,
                    words(&mismatch.expected),
                    words(&mismatch.actual)
                )))
            }
        }
    }

    /// Runs again to the first instruction after which the two differ, and looks at it closely.
    fn locate(&self, mut found: Found, questions: bool) -> Result<Divergence, Error> {
        while found.stretch > DIVISION {
            found = self.narrow(found, questions)?;
        }
        let mut pair = self.pair(false)?;
        pair.questions = questions;
        pair.advance_to(found.equal_at)?;
        pair.listen(true);
        loop {
            let before = pair.last_equal();
            pair.advance_to(before.icount + 1)?;
            let differences = pair.differences();
            if !differences.is_empty() || pair.is_over() {
                return instruction::explain(self, &pair, &before, differences);
            }
        }
    }

    /// Divides a stretch that ends unequal.
    fn narrow(&self, found: Found, questions: bool) -> Result<Found, Error> {
        let step = found.stretch.div_ceil(DIVISION);
        let mut pair = self.pair(false)?;
        pair.questions = questions;
        pair.advance_to(found.equal_at)?;
        loop {
            let equal_at = pair.expected.machine.icount();
            pair.advance_to(equal_at + step)?;
            if !pair.differences().is_empty() || pair.is_over() {
                return Ok(Found { equal_at, stretch: step });
            }
        }
    }

    /// The machine, with its VMM's script. Exits are counted differently on the two sides: what the VMM does after so many
    /// of them it does at the tape's instruction on both.
    fn scripted(&self, machine: &MachineSpec) -> Result<MachineSpec, Error> {
        let mut machine = machine.clone();
        if machine != self.expected {
            machine.script = spec::pinned_script(self.tape, &machine.script)?;
        }
        Ok(machine)
    }

    /// Exits are counted differently on the two sides: only the tape's own machine may stop by them.
    fn budget(&self, machine: &MachineSpec) -> spec::Budget {
        let budget = spec::budget(self.tape);
        match machine.backend == self.expected.backend {
            true => budget,
            false => spec::Budget { exits: u64::MAX, ..budget },
        }
    }
}

/// Counts exits by reason.
fn count(events: &[Event], report: &mut Report, side: fn(&mut Cost) -> &mut u64) {
    for event in events {
        if let Event::Exit(exit) = event {
            *side(report.cost.entry(text::reason(&exit.exit)).or_default()) += 1;
        }
    }
}
