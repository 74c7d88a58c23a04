//! What a VMM has read of its source's dirty logs, and hands out again where its destination's kernel cannot know it.
//!
//! No ioctl puts a bit into a bitmap of the kernel or an entry into a ring. So whoever moves a guest reads both on the source, and
//! adds what it read to what it gets on the destination, once, or until the pages are cleared.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmtape_traces::ioctl::RingEntry;

/// Dirty pages of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Carried {
    /// By slot: a bit for each page.
    logs: BTreeMap<u32, Vec<u64>>,
    /// By vCPU: slot and page.
    rings: BTreeMap<u32, Vec<(u32, u64)>>,
}

impl Carried {
    /// The source's bitmap of a slot.
    pub(crate) fn log(&mut self, slot: u32, bits: &[u64]) {
        merge(self.logs.entry(slot).or_default(), bits);
    }

    /// The entries of a source's ring.
    pub(crate) fn ring(&mut self, vcpu: u32, entries: impl IntoIterator<Item = (u32, u64)>) {
        self.rings.entry(vcpu).or_default().extend(entries);
    }

    /// Adds what is carried to a bitmap that the VMM gets. `cleared`: getting it clears it.
    pub(crate) fn add_log(&mut self, slot: u32, bits: &mut Vec<u64>, cleared: bool) {
        let Some(carried) = self.logs.get(&slot) else { return };
        merge(bits, carried);
        if cleared {
            self.logs.remove(&slot);
        }
    }

    /// The VMM clears pages of a slot, `first` being a multiple of 64.
    pub(crate) fn clear_log(&mut self, slot: u32, first: u64, bits: &[u64]) {
        let Some(carried) = self.logs.get_mut(&slot) else { return };
        let first = usize::try_from(first / 64).unwrap_or(usize::MAX);
        carried.iter_mut().skip(first).zip(bits).for_each(|(carried, clear)| *carried &= !clear);
    }

    /// Puts what is carried of a ring before what the VMM takes from it.
    pub(crate) fn add_ring(&mut self, vcpu: u32, entries: &mut Vec<RingEntry>) {
        let carried = self.rings.remove(&vcpu).unwrap_or_default();
        entries.splice(0..0, carried.into_iter().map(|(slot, offset)| RingEntry { slot, offset }));
    }
}

fn merge(into: &mut Vec<u64>, bits: &[u64]) {
    if into.len() < bits.len() {
        into.resize(bits.len(), 0);
    }
    into.iter_mut().zip(bits).for_each(|(into, bits)| *into |= bits);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_carried_is_told_once_or_until_it_is_cleared() {
        let mut carried = Carried::default();
        carried.log(1, &[0b1010, 1]);
        let told = |carried: &mut Carried, cleared| {
            let mut bits = vec![0b1, 0];
            carried.add_log(1, &mut bits, cleared);
            bits
        };
        assert_eq!(told(&mut carried, false), [0b1011, 1]);
        carried.clear_log(1, 0, &[0b10]);
        carried.clear_log(1, 64, &[1]);
        assert_eq!(told(&mut carried, true), [0b1001, 0]);
        assert_eq!(told(&mut carried, true), [0b1, 0]);
        carried.ring(0, [(1, 7)]);
        let mut entries = vec![RingEntry { slot: 1, offset: 9 }];
        carried.add_ring(1, &mut entries);
        assert_eq!(entries.len(), 1);
        carried.add_ring(0, &mut entries);
        assert_eq!(entries.iter().map(|entry| entry.offset).collect::<Vec<_>>(), [7, 9]);
    }
}
