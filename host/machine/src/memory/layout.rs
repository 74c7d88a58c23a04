//! Where RAM lies: in the guest physical address space, and in the arena of host physical memory.

use crate::Error;
use serde::{Deserialize, Serialize};
use vmtape_abi::MemoryRegion;
use vmtape_arch::PAGE_SIZE;

/// Where the hole for devices below 4 GiB begins.
const HOLE_START: u64 = 3 << 30;
const HOLE_END: u64 = 4 << 30;
const VGA: std::ops::Range<u64> = 0xa_0000..0xc_0000;
pub(super) const MIB: u64 = 1 << 20;
/// No guest of this machine needs more, and a typing error should not reserve it.
pub(super) const MAX_MEMORY: u64 = 1 << 38;

pub(super) const TOO_LARGE: &str = "more than 256 GiB";

/// Where RAM lies in the guest physical address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// One range from zero up to 3 GiB (VGA text memory is RAM), the rest from 4 GiB up.
    #[default]
    Flat,
    /// The two ranges of the recordings' small VMM: without 0xa0000-0xbffff.
    VgaHole,
}

impl Layout {
    /// How many slots RAM of this size has.
    pub fn slots(self, size: u64) -> u32 {
        slots(size, self, 0).len() as u32
    }
}

/// Places for the slots of a script, from the end of RAM on.
pub(super) fn reserve(
    ram: &[MemoryRegion],
    later: &[MemoryRegion],
    base: u64,
) -> Result<Vec<MemoryRegion>, Error> {
    let mut backing = ram.to_vec();
    for region in later.iter().filter(|region| region.size != 0) {
        if let Some(known) = backing.iter().find(|slot| slot.slot == region.slot) {
            if region.size > known.size {
                return Err(Error::Script(format!("memory slot {} is RAM and cannot grow", region.slot)));
            }
            continue;
        }
        let sizes = later.iter().filter(|other| other.slot == region.slot).map(|other| other.size);
        let size = sizes.max().unwrap_or(0).checked_next_multiple_of(PAGE_SIZE);
        let size = size.filter(|size| *size <= MAX_MEMORY).ok_or(Error::Memory(region.size, TOO_LARGE))?;
        let end = backing.last().map_or(base, |slot| slot.hpa + slot.size);
        backing.push(MemoryRegion { hpa: end.next_multiple_of(base) + region.gpa % base, size, ..*region });
    }
    Ok(backing)
}

/// Lays out slots from `base` in the arena, which every slot is congruent to modulo the backing pages.
pub(super) fn slots(size: u64, layout: Layout, base: u64) -> Vec<MemoryRegion> {
    let low = size.min(HOLE_START);
    let hole = match layout {
        Layout::Flat => low..low,
        Layout::VgaHole => VGA.start.min(low)..VGA.end.min(low),
    };
    let mut slots: Vec<_> = [0..hole.start, hole.end..low]
        .into_iter()
        .filter(|range| !range.is_empty())
        .map(|range| MemoryRegion {
            gpa: range.start,
            size: range.end - range.start,
            hpa: base + range.start,
            ..Default::default()
        })
        .collect();
    if size > low {
        slots.push(MemoryRegion { gpa: HOLE_END, size: size - low, hpa: base + low, ..Default::default() });
    }
    for (number, slot) in slots.iter_mut().enumerate() {
        slot.slot = number as u32;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_congruent_to_their_backing_pages() {
        for (layout, size) in
            [(Layout::Flat, 64 << 20), (Layout::VgaHole, 256 << 20), (Layout::Flat, 5 << 30)]
        {
            for slot in slots(size, layout, 1 << 21) {
                assert_eq!((slot.gpa ^ slot.hpa) % (2 << 20), 0, "{slot:?}");
            }
        }
    }
}
