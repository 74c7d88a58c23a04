//! Guest memory: one arena of host physical memory, and the slots through which a guest sees it.

mod absent;
mod hashes;
mod layout;

pub(crate) use absent::Absent;
pub use hashes::{PageHashes, is_zero};
pub use layout::Layout;

use crate::Error;
use layout::{MAX_MEMORY, MIB, TOO_LARGE, reserve, slots};
use std::{cell::Cell, collections::BTreeSet, ops::Range};
use vm_memory::MmapRegion;
use vmtape_abi::MemoryRegion;
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE, memory::MemoryStatus};
use vmtape_cpu::{Mark, Ram};

/// Guest RAM and its slots.
pub struct Memory {
    ram: Ram,
    /// The slots that the guest has now.
    slots: Vec<MemoryRegion>,
    /// Every slot that it may ever have, at the size and the place in the arena that are kept for it.
    backing: Vec<MemoryRegion>,
    /// Pages that the host does not have.
    pub(crate) absent: Absent,
    /// Pages of them whose contents are not here either.
    pub(crate) remote: BTreeSet<u64>,
    /// Changes of memory that are none of the guest's: contents that have arrived.
    pub(crate) uncounted: u128,
}

impl Memory {
    /// Reserves zeroed memory. Slots keep their alignment to the pages that back them (`backing_shift`), and host
    /// physical addresses differ from guest physical ones, as they do on a real host.
    ///
    /// The arena has room for `later` slots too, each as large as the largest with its number.
    pub fn new(size: u64, layout: Layout, backing_shift: u8, later: &[MemoryRegion]) -> Result<Self, Error> {
        if size == 0 || !size.is_multiple_of(MIB) {
            return Err(Error::Memory(size, "a positive multiple of 1 MiB is needed"));
        }
        if size > MAX_MEMORY {
            return Err(Error::Memory(size, TOO_LARGE));
        }
        let base = 1 << backing_shift.clamp(21, 30);
        let slots = slots(size, layout, base);
        let backing = reserve(&slots, later, base)?;
        let end = backing.last().map_or(0, |slot| slot.hpa + slot.size);
        let arena = usize::try_from(end)
            .map_err(|e| e.to_string())
            .and_then(|end| MmapRegion::new(end).map_err(|e| e.to_string()))
            .map_err(|cause| Error::Reserve(size / MIB, cause))?;
        // Every host has the slots of RAM one behind the other; those of a script lie by the size of its backing pages.
        let (always, scripted) = backing.split_at(slots.len());
        let range = |slot: &MemoryRegion| slot.hpa..slot.hpa + slot.size;
        let common = base..always.last().map_or(base, |slot| range(slot).end);
        let elsewhere = scripted.iter().map(range).collect();
        use_huge_pages(&arena);
        let ram = Ram::placed(cells(&arena), Box::new(arena), common, elsewhere);
        Ok(Self { ram, slots, backing, absent: Absent::default(), remote: BTreeSet::new(), uncounted: 0 })
    }

    /// Host physical memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// The slots, in guest physical order.
    pub fn slots(&self) -> &[MemoryRegion] {
        &self.slots
    }

    /// The host physical address behind a guest physical one, if RAM is there.
    pub fn hpa(&self, gpa: u64) -> Option<u64> {
        let slot = self.slots.iter().find(|s| gpa.wrapping_sub(s.gpa) < s.size)?;
        Some(slot.hpa + (gpa - slot.gpa))
    }

    /// Whether a host physical range lies in one slot.
    pub fn contains_hpa(&self, hpa: u64, len: u64) -> bool {
        holds(&self.slots, hpa, len)
    }

    /// Every slot that the guest may ever have, at its largest size.
    pub(crate) fn backed(&self) -> &[MemoryRegion] {
        &self.backing
    }

    /// Where a page of a block lies. `None`: there is no such page.
    pub(crate) fn page_of_block(&self, slot: u32, page: u64) -> Option<u64> {
        let block = self.backing.iter().find(|block| block.slot == slot)?;
        (page < block.size / PAGE_SIZE).then(|| block.hpa + page * PAGE_SIZE)
    }

    /// The block, and the number in it, of a page of memory.
    pub(crate) fn block_page(&self, hpa: u64) -> Option<(u32, u64)> {
        let block = self.backing.iter().find(|block| hpa.wrapping_sub(block.hpa) < block.size)?;
        Some((block.slot, (hpa - block.hpa) / PAGE_SIZE))
    }

    /// Where the memory of a slot with this number lies in the arena.
    pub(crate) fn backing(&self, slot: u32) -> Option<u64> {
        self.backing.iter().find(|backing| backing.slot == slot).map(|backing| backing.hpa)
    }

    /// Whether a host physical range lies in memory that some slot shows, now or at another time.
    pub(crate) fn is_backed(&self, hpa: u64, len: u64) -> bool {
        holds(&self.backing, hpa, len)
    }

    /// Creates, moves, changes or (with size zero) deletes a slot.
    pub(crate) fn set_slot(&mut self, region: &MemoryRegion) {
        self.slots.retain(|slot| slot.slot != region.slot);
        if region.size != 0 {
            let at = self.slots.partition_point(|slot| slot.gpa < region.gpa);
            self.slots.insert(at, *region);
        }
    }

    /// Host physical ranges behind a guest physical one, which is RAM throughout (see [`Memory::covers`]).
    pub(crate) fn ranges(&self, gpa: u64, size: u64) -> Vec<Range<u64>> {
        let end = gpa + size;
        let parts = self.slots.iter().map(|slot| (slot, gpa.max(slot.gpa), end.min(slot.gpa + slot.size)));
        let parts = parts.filter(|(_, first, end)| first < end);
        parts.map(|(slot, first, end)| slot.hpa + (first - slot.gpa)..slot.hpa + (end - slot.gpa)).collect()
    }

    /// What an access to a host physical range finds without a wait.
    pub(crate) fn at_once(&self, hpa: u64, size: u64) -> MemoryStatus {
        if !self.contains_hpa(hpa, size) {
            return MemoryStatus::REFUSED;
        }
        self.absent.first_in(hpa, size).map_or(MemoryStatus::READY, |(_, supply)| supply.at_once())
    }

    /// Sets a mark that [`Memory::written_since`] takes.
    pub fn mark(&self) -> Mark {
        self.ram.mark()
    }

    /// Host physical page numbers of the guest's RAM that was written since a mark, in order.
    pub fn written_since(&self, mark: Mark) -> impl Iterator<Item = u64> {
        self.ram.pages_since(mark).filter(|page| self.is_backed(page << PAGE_SHIFT, PAGE_SIZE))
    }

    /// The guest physical address at which the guest has a host physical page now.
    pub fn gpa(&self, page: u64) -> Option<u64> {
        let hpa = page << PAGE_SHIFT;
        let slot = self.slots.iter().find(|slot| hpa.wrapping_sub(slot.hpa) < slot.size)?;
        Some(slot.gpa + (hpa - slot.hpa))
    }

    /// Writes guest physical memory; the range may span adjacent slots. False: part of it is not RAM.
    #[must_use]
    pub fn write_gpa(&self, gpa: u64, data: &[u8]) -> bool {
        let mut at = 0;
        while at < data.len() {
            let gpa = gpa.wrapping_add(at as u64);
            let Some(slot) = self.slots.iter().find(|s| gpa.wrapping_sub(s.gpa) < s.size) else {
                return false;
            };
            let room = slot.size - (gpa - slot.gpa);
            let len = (data.len() - at).min(usize::try_from(room).unwrap_or(usize::MAX));
            if !self.ram.write(slot.hpa + (gpa - slot.gpa), &data[at..at + len]) {
                return false;
            }
            at += len;
        }
        true
    }

    /// Whether a guest physical range is RAM throughout.
    pub fn covers(&self, gpa: u64, len: u64) -> bool {
        let Some(end) = gpa.checked_add(len) else { return false };
        let mut at = gpa;
        while at < end {
            match self.slots.iter().find(|s| at.wrapping_sub(s.gpa) < s.size) {
                Some(slot) => at = slot.gpa + slot.size,
                None => return false,
            }
        }
        true
    }
}

/// Whether a host physical range lies in one slot.
fn holds(slots: &[MemoryRegion], hpa: u64, len: u64) -> bool {
    slots.iter().any(|s| hpa >= s.hpa && hpa.checked_add(len).is_some_and(|end| end <= s.hpa + s.size))
}

/// Asks for host pages of 2 MiB, so that a guest that goes over much memory does not miss the host's TLB with each page. What comes of
/// it does not matter.
#[cfg(target_os = "linux")]
#[expect(unsafe_code)]
fn use_huge_pages(arena: &MmapRegion) {
    // UNSAFETY: there is no safe way to madvise().
    // SAFETY: the range is a mapping of this process, whose contents stay.
    unsafe { libc::madvise(arena.as_ptr().cast(), arena.size(), libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn use_huge_pages(_: &MmapRegion) {}

#[expect(unsafe_code)]
fn cells(arena: &MmapRegion) -> &'static [Cell<u8>] {
    // UNSAFETY: `Ram` takes `&'static` bytes, so that the interpreter's hot path carries no lifetime.
    // SAFETY: the region is mapped readable and writable for its whole size, nothing else refers to it, and `Cell<u8>`
    // has the layout of `u8`. The `Ram` that gets the bytes keeps the region, whose mapping does not move with it, and
    // shows them to nobody for longer than it lives.
    unsafe { std::slice::from_raw_parts(arena.as_ptr().cast::<Cell<u8>>(), arena.size()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vga_hole_is_not_ram() {
        let memory = Memory::new(16 << 20, Layout::VgaHole, 21, &[]).unwrap();
        assert_eq!(memory.hpa(0xa_0000), None);
        assert!(memory.hpa(0xc_0000).is_some());
        assert!(!memory.covers(0x9_f000, 0x2000));
        assert!(memory.covers(0x10_0000, (16 << 20) - 0x10_0000));
        assert!(!memory.covers(0, u64::MAX));
    }

    #[test]
    fn memory_above_the_hole_follows_4_gib() {
        let memory = Memory::new((3 << 30) + (16 << 20), Layout::Flat, 21, &[]).unwrap();
        assert_eq!(memory.hpa(3 << 30), None);
        assert!(memory.write_gpa((4 << 30) + 4, b"high"));
        let mut buf = [0; 4];
        assert!(memory.ram().read(memory.hpa((4 << 30) + 4).unwrap(), &mut buf));
        assert_eq!(&buf, b"high");
    }
}
