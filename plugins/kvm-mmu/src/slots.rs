//! Memory slots: which guest physical addresses are RAM, and where that RAM lies in the host.
//!
//! See: KVM virt/kvm/kvm_main.c __kvm_set_memory_region()

use serde::{Deserialize, Serialize};
use vmtape_abi::{Errno, MemoryRegion};
use vmtape_arch::PAGE_SHIFT;

/// KVM_MEM_SLOTS_NUM less the private ones.
pub(crate) const USER_SLOTS: u32 = 32764;
/// KVM_MEM_MAX_NR_PAGES.
const MAX_PAGES: u64 = (1 << 31) - 1;
/// KVM_MEM_LOG_DIRTY_PAGES and KVM_MEM_READONLY.
const LOG_DIRTY: u32 = 1;
const READONLY: u32 = 2;
/// The first id of KVM's own slots: the APIC-access page is the one that the backends use.
pub const PRIVATE_SLOT: u32 = 0x8000_0000;

/// One slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub id: u32,
    pub flags: u32,
    pub gpa: u64,
    pub size: u64,
    pub hpa: u64,
}

impl Slot {
    /// Whether the guest may not write it.
    pub fn readonly(&self) -> bool {
        self.flags & READONLY != 0
    }

    /// Whether writes are logged.
    pub fn logs_dirty(&self) -> bool {
        self.flags & LOG_DIRTY != 0
    }

    /// Whether the slot holds the address.
    pub fn contains(&self, gpa: u64) -> bool {
        gpa.wrapping_sub(self.gpa) < self.size
    }

    /// The host physical address of a guest physical address in this slot.
    pub fn hpa(&self, gpa: u64) -> u64 {
        self.hpa + (gpa - self.gpa)
    }
}

/// What a successful call changed, so that the MMU can drop what it mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotChange {
    Created(Slot),
    /// The old slot is gone, or moved, or became read-only: nothing may map it any more.
    Removed(Slot),
    /// Only the flags changed; old first.
    Flags(Slot, Slot),
    Nothing,
}

/// The slots of a VM, sorted by guest physical address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots(Vec<Slot>);

impl Slots {
    /// KVM_SET_USER_MEMORY_REGION. `max_gfn` is `kvm_mmu_max_gfn()`: 2^52 pages' worth without TDP, the host's width with it.
    pub fn set(&mut self, region: &MemoryRegion, max_gfn: u64) -> Result<SlotChange, Errno> {
        let page_mask = (1u64 << PAGE_SHIFT) - 1;
        let end = region.gpa.checked_add(region.size).ok_or(Errno::EINVAL)?;
        if (region.size | region.gpa | region.hpa) & page_mask != 0
            || region.flags & !(LOG_DIRTY | READONLY) != 0
            || region.slot >= USER_SLOTS
            || region.size >> PAGE_SHIFT > MAX_PAGES
        {
            return Err(Errno::EINVAL);
        }
        let old = self.0.iter().position(|s| s.id == region.slot);
        let new = Slot {
            id: region.slot,
            flags: region.flags,
            gpa: region.gpa,
            size: region.size,
            hpa: region.hpa,
        };
        if region.size == 0 {
            let old = old.ok_or(Errno::EINVAL)?;
            return Ok(SlotChange::Removed(self.0.remove(old)));
        }
        let overlaps = self.0.iter().any(|s| s.id != new.id && s.gpa < end && new.gpa < s.gpa + s.size);
        if let Some(index) = old {
            let old = self.0[index];
            if old.hpa != new.hpa || old.size != new.size || (old.flags ^ new.flags) & READONLY != 0 {
                return Err(Errno::EINVAL);
            }
            if old.gpa == new.gpa {
                self.0[index] = new;
                return Ok(if old == new { SlotChange::Nothing } else { SlotChange::Flags(old, new) });
            }
        }
        if overlaps {
            return Err(Errno::EEXIST);
        }
        // See: KVM arch/x86/kvm/x86.c kvm_arch_prepare_memory_region()
        if (end - 1) >> PAGE_SHIFT > max_gfn {
            return Err(Errno::EINVAL);
        }
        let moved = old.map(|index| self.0.remove(index));
        self.insert(new);
        Ok(moved.map_or(SlotChange::Created(new), SlotChange::Removed))
    }

    /// Adds one of KVM's own slots (`__x86_set_memory_region`).
    pub fn set_private(&mut self, id: u32, gpa: u64, size: u64, hpa: u64) {
        self.insert(Slot { id: PRIVATE_SLOT | id, flags: 0, gpa, size, hpa });
    }

    fn insert(&mut self, slot: Slot) {
        let at = self.0.partition_point(|s| s.gpa < slot.gpa);
        self.0.insert(at, slot);
    }

    /// The slot that holds a guest physical address.
    pub fn find(&self, gpa: u64) -> Option<&Slot> {
        let after = self.0.partition_point(|s| s.gpa <= gpa);
        self.0[..after].last().filter(|s| s.contains(gpa))
    }

    /// The host physical address of a guest physical address in RAM.
    pub fn hpa(&self, gpa: u64) -> Option<u64> {
        self.find(gpa).map(|slot| slot.hpa(gpa))
    }

    /// All slots, lowest address first.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(slot: u32, gpa: u64, size: u64) -> MemoryRegion {
        MemoryRegion { slot, flags: 0, gpa, size, hpa: gpa }
    }

    #[test]
    fn errors_are_those_of_the_ioctl() {
        let max_gfn = (1 << (40 - PAGE_SHIFT)) - 1;
        let mut slots = Slots::default();
        assert_eq!(slots.set(&region(0, 0, 0), max_gfn), Err(Errno::EINVAL));
        assert!(slots.set(&region(0, 0, 0x2000), max_gfn).is_ok());
        assert_eq!(slots.set(&region(1, 0x1000, 0x1000), max_gfn), Err(Errno::EEXIST));
        assert_eq!(slots.set(&region(0, 0, 0x1000), max_gfn), Err(Errno::EINVAL));
        assert_eq!(slots.set(&region(1, 1 << 40, 0x1000), max_gfn), Err(Errno::EINVAL));
        assert_eq!(slots.set(&region(1, 0x2800, 0x1000), max_gfn), Err(Errno::EINVAL));
        assert!(slots.set(&region(1, (1 << 40) - 0x1000, 0x1000), max_gfn).is_ok());
        assert_eq!(slots.hpa(0x1fff), Some(0x1fff));
        assert_eq!(slots.hpa(0x2000), None);
        assert!(matches!(slots.set(&region(0, 0, 0), max_gfn), Ok(SlotChange::Removed(_))));
        assert_eq!(slots.hpa(0), None);
    }
}
