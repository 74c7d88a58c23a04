//! Memory that is still to be sent, and its rounds.

use super::{Page, Phase, Source, Step};
use crate::{
    Error,
    points::{MovePoint, Points},
    report::Round,
    stream::{Pages, Record, Run},
};
use std::collections::{BTreeMap, BTreeSet};
use vmtape_arch::PAGE_SIZE;
use vmtape_machine::{Machine, NS_PER_TICK, Phase as MovePhase};

/// Pages with bytes, and pages of zeros, that one section has at most.
const CHUNK: usize = 64;
const ZEROS: u32 = 1 << 16;
/// How much the guest is slowed down at first, how much more each time, and at most.
/// See: QEMU 10.2.2 migration/options.c DEFAULT_MIGRATE_CPU_THROTTLE_INITIAL, _INCREMENT, MAX_THROTTLE
const THROTTLE_FIRST: u64 = 20;
const THROTTLE_MORE: u64 = 10;
const THROTTLE_MOST: u64 = 99;
/// Bytes written per hundred bytes sent, from which on a round counts as one that did not help.
const WRITTEN_TOO_FAST: u64 = 50;

/// What is to be sent.
pub(super) struct Memory {
    pending: BTreeSet<Page>,
    /// Pages that come once more at the end, as they were.
    late: Vec<(u32, u64, [u8; PAGE_SIZE as usize])>,
    /// Pages that stay until they are asked for.
    left: BTreeMap<Page, [u8; PAGE_SIZE as usize]>,
    sent: u64,
    round: Round,
    points: Points,
}

/// Runs of pages of a slot: first and count.
type Runs = Vec<(u64, u64)>;

impl Memory {
    pub(super) fn new(points: Points) -> Self {
        Self {
            pending: BTreeSet::new(),
            late: Vec::new(),
            left: BTreeMap::new(),
            sent: 0,
            round: Round::default(),
            points,
        }
    }

    /// Every page.
    pub(super) fn everything(&mut self, machine: &Machine) {
        for block in machine.blocks() {
            self.pending.extend((0..block.pages).map(|page| (block.slot, page)));
        }
    }

    pub(super) fn add(&mut self, pages: BTreeSet<Page>) {
        self.pending.extend(pages);
    }

    /// Pages that were sent, each time that it was.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// The next pages, as they are now. `None`: nothing is left.
    pub(super) fn chunk(&mut self, machine: &Machine, round: &mut Round) -> Option<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        let (mut full, mut zero) = (0, 0);
        while full < CHUNK
            && zero < ZEROS
            && let Some((slot, page)) = self.pending.pop_first()
        {
            let Some(mut bytes) = machine.page(slot, page) else { continue };
            let mut at = page;
            if self.points.are_asked() {
                let ask = |point| self.points.ask(point, slot.into(), page);
                if ask(MovePoint::PAGE_LOST).is_some() {
                    continue;
                }
                if ask(MovePoint::PAGE_LATE).is_some() {
                    self.late.push((slot, page, bytes));
                }
                if ask(MovePoint::PAGE_ZERO).is_some() {
                    bytes = [0; PAGE_SIZE as usize];
                }
                let last =
                    machine.blocks().iter().find(|block| block.slot == slot).map_or(0, |b| b.pages - 1);
                at = page.saturating_add(ask(MovePoint::PAGE_SHIFTED).unwrap_or(0)).min(last);
            }
            self.sent += 1;
            round.pages += 1;
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            if is_zero {
                (zero, round.zero) = (zero + 1, round.zero + 1);
            } else {
                full += 1;
            }
            append(&mut runs, slot, at, (!is_zero).then_some(bytes));
        }
        (!runs.is_empty() || !self.pending.is_empty()).then_some(runs)
    }

    /// Keeps what is left: gives the pages that are zero, and, by slot, which the destination does not have.
    pub(super) fn leave_behind(
        &mut self,
        machine: &Machine,
        round: &mut Round,
    ) -> (Vec<Run>, BTreeMap<u32, Runs>) {
        let (mut zero, mut discard): (Vec<Run>, BTreeMap<u32, Runs>) = Default::default();
        for (slot, page) in std::mem::take(&mut self.pending) {
            let Some(bytes) = machine.page(slot, page) else { continue };
            round.pages += 1;
            if bytes.iter().all(|byte| *byte == 0) {
                (self.sent, round.zero) = (self.sent + 1, round.zero + 1);
                append(&mut zero, slot, page, None);
                continue;
            }
            self.left.insert((slot, page), bytes);
            let runs = discard.entry(slot).or_default();
            match runs.last_mut() {
                Some((first, count)) if *first + *count == page => *count += 1,
                _ => runs.push((page, 1)),
            }
        }
        (zero, discard)
    }

    pub(super) fn into_left(self) -> BTreeMap<Page, [u8; PAGE_SIZE as usize]> {
        self.left
    }

    /// Pages that come once more, with what they held when they were sent first.
    pub(super) fn late(&mut self, _: &Machine) -> Option<Vec<Run>> {
        let late = std::mem::take(&mut self.late);
        self.sent += late.len() as u64;
        let run = |(slot, first, bytes)| Run { slot, first, pages: Pages::Bytes(vec![bytes]) };
        (!late.is_empty()).then(|| late.into_iter().map(run).collect())
    }
}

/// Adds a page to the last run where it goes on there.
fn append(runs: &mut Vec<Run>, slot: u32, page: u64, bytes: Option<[u8; PAGE_SIZE as usize]>) {
    let next = runs.last_mut().filter(|run| run.slot == slot && run.first + run.count() == page);
    match (next.map(|run| &mut run.pages), bytes) {
        (Some(Pages::Zero(count)), None) => *count += 1,
        (Some(Pages::Bytes(pages)), Some(bytes)) => pages.push(bytes),
        (_, bytes) => {
            let pages = bytes.map_or(Pages::Zero(1), |bytes| Pages::Bytes(vec![bytes]));
            runs.push(Run { slot, first: page, pages });
        }
    }
}

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
