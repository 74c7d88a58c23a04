//! Rounds of pre-copy: pages are sent while the guest runs, until few enough are left.

use super::{Phase, Source, Step};
use crate::{
    Error,
    report::Round,
    stream::{Record, Run},
};
use std::collections::BTreeSet;
use vmtape_arch::PAGE_SIZE;
use vmtape_machine::{NS_PER_TICK, Phase as MovePhase};

/// How much the guest is slowed down at first, how much more each time, and at most.
/// See: QEMU 10.2.2 migration/options.c DEFAULT_MIGRATE_CPU_THROTTLE_INITIAL, _INCREMENT, MAX_THROTTLE
const THROTTLE_FIRST: u64 = 20;
const THROTTLE_MORE: u64 = 10;
const THROTTLE_MOST: u64 = 99;
/// Bytes written per hundred bytes sent, from which on a round counts as one that did not help.
const WRITTEN_TOO_FAST: u64 = 50;

impl Source<'_> {
    /// Sends pages; the guest runs for as long as that takes, unless it stands still.
    pub(super) fn send_pages(&mut self, runs: Vec<Run>, stopped: bool) -> Result<(), Error> {
        let before = self.wire.sent;
        self.wire.send(&Record::Pages(runs))?;
        let bytes = self.wire.sent - before;
        let ns = self.plan.time(bytes);
        let round = if stopped { &mut self.sent.stopped } else { &mut self.memory.round };
        (round.bytes, round.ns) = (round.bytes + bytes, round.ns + ns);
        if !stopped {
            let ticks = ns / NS_PER_TICK * (100 - self.memory.round.throttle) / 100;
            let until = self.guest.machine().icount().saturating_add(ticks);
            if !self.guest.advance(until)? {
                return Err(Error::Ended);
            }
        }
        self.tell(stopped);
        Ok(())
    }

    /// A piece of a round of pre-copy, or its end.
    pub(super) fn round(&mut self) -> Result<Step, Error> {
        if !self.wire.has_room() {
            return Ok(Step::Waits);
        }
        let mut round = self.memory.round;
        let runs = self.memory.chunk(self.guest.machine(), &mut round);
        self.memory.round = round;
        match runs {
            Some(runs) => self.send_pages(runs, false)?,
            None => self.end_round()?,
        }
        Ok(Step::Worked)
    }

    fn end_round(&mut self) -> Result<(), Error> {
        let machine = self.guest.machine();
        self.around.points.at(machine.icount(), MovePhase::PRE_COPY);
        let dirty = match &mut self.log {
            Some(log) => log.take(machine)?,
            None => BTreeSet::new(),
        };
        let pending = dirty.len();
        self.memory.add(dirty);
        let mut round = std::mem::take(&mut self.memory.round);
        round.dirty = pending as u64;
        self.sent.rounds.push(round);
        let needed = self.plan.time(pending as u64 * PAGE_SIZE);
        if needed <= self.plan.downtime_ns || self.plan.method.is_postcopy() {
            self.phase = Phase::Freeze;
            return Ok(());
        }
        let rounds = self.sent.rounds.len();
        if rounds >= self.plan.rounds {
            return Err(Error::NoConvergence { rounds, pending, needed });
        }
        self.memory.round.throttle = self.throttle(&round);
        Ok(())
    }

    /// How much the guest is slowed down in the next round.
    fn throttle(&self, last: &Round) -> u64 {
        let too_fast = |round: &Round| round.dirty * PAGE_SIZE * 100 > round.bytes * WRITTEN_TOO_FAST;
        let again = self.sent.rounds.iter().rev().take(2).filter(|round| too_fast(round)).count() == 2;
        match last.throttle {
            throttle if !self.plan.auto_converge || !again => throttle,
            0 => THROTTLE_FIRST,
            throttle => (throttle + THROTTLE_MORE).min(THROTTLE_MOST),
        }
    }
}
