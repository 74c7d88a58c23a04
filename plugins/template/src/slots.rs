//! Where guest physical memory lies.

use vmtape_abi::{Errno, MemoryRegion};

pub const PAGE: u64 = 4096;
const SLOTS: usize = 16;

/// The memory slots by their numbers; one of no size is not there.
#[derive(Debug, Default)]
pub struct Slots([MemoryRegion; SLOTS]);

impl Slots {
    /// Bytes of [`Slots::save`].
    pub const SAVED: usize = SLOTS * 32;

    /// Where guest physical memory lies in the host's.
    pub fn find(&self, gpa: u64) -> Option<u64> {
        let slot = self.0.iter().find(|slot| gpa.wrapping_sub(slot.gpa) < slot.size)?;
        Some(slot.hpa + (gpa - slot.gpa))
    }

    /// As KVM: -EINVAL for what is not page-aligned and for a slot that there is not, -EEXIST where two slots would overlap.
    pub fn set(&mut self, region: &MemoryRegion) -> Result<(), Errno> {
        let n = region.slot as usize;
        if n >= SLOTS || [region.gpa, region.size, region.hpa].iter().any(|value| value % PAGE != 0) {
            return Err(Errno::EINVAL);
        }
        let end = |slot: &MemoryRegion| slot.gpa.saturating_add(slot.size);
        let overlaps = |other: &MemoryRegion| region.gpa < end(other) && other.gpa < end(region);
        if self.0.iter().enumerate().any(|(other, slot)| other != n && slot.size != 0 && overlaps(slot)) {
            return Err(Errno::EEXIST);
        }
        self.0[n] = *region;
        Ok(())
    }

    pub fn save(&self) -> impl Iterator<Item = u8> {
        let words = |slot: &MemoryRegion| [slot.flags.into(), slot.gpa, slot.size, slot.hpa];
        self.0.iter().flat_map(words).flat_map(u64::to_le_bytes)
    }

    /// The inverse of `save`; `saved` has as many bytes.
    pub fn restore(&mut self, saved: &[u8]) {
        for (n, (slot, words)) in self.0.iter_mut().zip(saved.chunks_exact(32)).enumerate() {
            let word =
                |at: usize| u64::from_le_bytes(words[8 * at..8 * at + 8].try_into().expect("eight bytes"));
            let [flags, gpa, size, hpa] = [0, 1, 2, 3].map(word);
            *slot = MemoryRegion { slot: n as u32, flags: flags as u32, gpa, size, hpa };
        }
    }
}
