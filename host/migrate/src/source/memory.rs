//! Memory that is still to be sent, and its rounds.

use super::Page;
use crate::{
    points::{MovePoint, Points},
    report::Round,
    stream::{Pages, Run},
};
use std::collections::{BTreeMap, BTreeSet};
use vmtape_arch::PAGE_SIZE;
use vmtape_machine::Machine;

/// Pages with bytes, and pages of zeros, that one section has at most.
const CHUNK: usize = 64;
const ZEROS: u32 = 1 << 16;
/// What is to be sent.
pub(super) struct Memory {
    pending: BTreeSet<Page>,
    /// Pages that come once more at the end, as they were.
    late: Vec<(u32, u64, [u8; PAGE_SIZE as usize])>,
    /// Pages that stay until they are asked for.
    left: BTreeMap<Page, [u8; PAGE_SIZE as usize]>,
    sent: u64,
    /// The round that is under way.
    pub(super) round: Round,
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

    /// Pages that are still to be sent.
    pub(super) fn pending(&self) -> u64 {
        self.pending.len() as u64
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
