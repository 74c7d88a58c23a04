//! The ioctls of dirty logging: what is enabled, a slot's bitmap, and the rings, which userspace maps.
//!
//! See: KVM virt/kvm/kvm_main.c kvm_get_dirty_log_protect(), kvm_clear_dirty_log_protect(), kvm_vm_ioctl_reset_dirty_pages(), as of 6.12

use super::{
    INITIALLY_SET, MANUAL_ENABLE,
    ring::{Entry, Ring},
};
use crate::{
    fault_points::FaultPoint,
    mmu::Mmu,
    slots::{Slot, USER_SLOTS},
};
use vmtape_abi::{ALL_VCPUS, DirtyGfn, Errno, FlushScope, Host};

/// KVM_ADDRESS_SPACE_NUM: one more for SMM, which has no slots here.
const ADDRESS_SPACES: u32 = 2;
/// KVM_DIRTY_GFN_F_RESET.
const HARVESTED: u32 = 1 << 1;

impl Mmu {
    /// KVM_ENABLE_CAP of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; `initially_set`: this release has it.
    pub fn enable_manual_protect(&mut self, flags: u32, arg: u64, initially_set: bool) -> Result<(), Errno> {
        let both = MANUAL_ENABLE | INITIALLY_SET;
        let allowed = if initially_set && arg & MANUAL_ENABLE != 0 { both } else { MANUAL_ENABLE };
        if flags != 0 || arg & !allowed != 0 {
            return Err(Errno::EINVAL);
        }
        self.dirty.manual = arg;
        Ok(())
    }

    /// KVM_ENABLE_CAP of KVM_CAP_DIRTY_LOG_RING: once, before any vCPU, a ring of so many bytes for each.
    pub fn enable_dirty_ring(&mut self, bytes: u64) -> Result<(), Errno> {
        let entries = Ring::entries_of(bytes, self.config.pml)?;
        if self.dirty.ring_entries != 0 || !self.vcpus.is_empty() {
            return Err(Errno::EINVAL);
        }
        self.dirty.ring_entries = entries;
        // A slot that logs already has no bitmap from here on.
        self.dirty.bitmaps.clear();
        Ok(())
    }

    /// What userspace takes from a vCPU's ring. It has kicked the vCPU, so that nothing is left in the log of silicon.
    pub fn harvest_dirty_ring(&mut self, vcpu: u32, host: &mut dyn Host) -> Result<Vec<DirtyGfn>, Errno> {
        if self.dirty.ring_entries == 0 {
            return Err(Errno::EINVAL);
        }
        self.flush_pml(vcpu, host);
        let ring = self.dirty.rings.get_mut(vcpu as usize).ok_or(Errno::EINVAL)?;
        let gfn = |entry: Entry| DirtyGfn { flags: HARVESTED, slot: entry.slot, offset: entry.offset };
        Ok(ring.harvest().into_iter().map(gfn).collect())
    }

    /// KVM_RESET_DIRTY_RINGS: protects what was harvested, and gives the number of entries.
    pub fn reset_dirty_rings(&mut self, host: &mut dyn Host) -> Result<u32, Errno> {
        if self.dirty.ring_entries == 0 {
            return Err(Errno::EINVAL);
        }
        let reset: Vec<Entry> = self.dirty.rings.iter_mut().flat_map(Ring::reset).collect();
        let gone = self.fault(ALL_VCPUS, FaultPoint::RING_SLOT_GONE, 0, 0, host);
        for (_, entry) in (0..).zip(&reset).filter(|(at, _)| Some(*at) != gone) {
            // Of a slot that is gone or has shrunk nothing is said.
            let slot = self.slots.iter().find(|slot| slot.id == entry.slot).copied();
            if let Some(slot) = slot.filter(|slot| entry.offset < slot.size >> 12) {
                self.protect_dirty(&slot, entry.offset, 1, host);
            }
        }
        if !reset.is_empty() {
            self.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0, host);
        }
        Ok(reset.len() as u32)
    }

    /// The slot that an ioctl names: address space in the upper half, number in the lower.
    fn logged_slot(&self, slot: u32) -> Result<Slot, Errno> {
        let (space, id) = (slot >> 16, slot & 0xffff);
        let found = self.slots.iter().find(|slot| space == 0 && slot.id == id);
        found.copied().filter(|slot| self.dirty.bitmaps.contains_key(&slot.id)).ok_or(Errno::ENOENT)
    }

    /// What both ioctls look at first.
    fn check_dirty_ioctl(&self, slot: u32) -> Result<(), Errno> {
        if self.dirty.ring_entries != 0 {
            return Err(Errno::ENXIO);
        }
        let known = slot >> 16 < ADDRESS_SPACES && slot & 0xffff < USER_SLOTS;
        if known { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// KVM_GET_DIRTY_LOG: a bit for each page of the slot. Without manual protection it also clears and protects: snapshot,
    /// protect, flush, in this order, so that a write in between belongs to this round or faults and belongs to the next.
    pub fn get_dirty_log(&mut self, slot: u32, host: &mut dyn Host) -> Result<Vec<u64>, Errno> {
        self.check_dirty_ioctl(slot)?;
        let slot = self.logged_slot(slot)?;
        self.sync_dirty_log(host);
        let raced = self.race_with_snapshot(&slot, host);
        let bits = self.dirty.bitmaps[&slot.id].0.clone();
        if self.dirty.manual != 0 {
            return Ok(bits);
        }
        if let Some(bitmap) = self.dirty.bitmaps.get_mut(&slot.id) {
            bitmap.0.fill(0);
        }
        self.protect_logged(&slot, 0, &bits, host);
        if let Some(page) = raced {
            self.unprotect(&slot, page);
        }
        self.copy_to_user(&slot, bits, host)
    }

    /// KVM_CLEAR_DIRTY_LOG: clears and protects the pages from `first` on whose bit is set both in `bits` and here.
    pub fn clear_dirty_log(
        &mut self,
        slot: u32,
        first: u64,
        pages: u32,
        bits: &[u64],
        host: &mut dyn Host,
    ) -> Result<(), Errno> {
        self.check_dirty_ioctl(slot)?;
        if !first.is_multiple_of(64) {
            return Err(Errno::EINVAL);
        }
        let slot = self.logged_slot(slot)?;
        let pages = u64::from(pages);
        let left = (slot.size >> 12).checked_sub(first).ok_or(Errno::EINVAL)?;
        let whole = pages.is_multiple_of(64) || pages == left && self.config.dirty.clears_to_end;
        if pages > left || !whole {
            return Err(Errno::EINVAL);
        }
        let words = pages.div_ceil(64) as usize;
        if bits.len() < words {
            return Err(Errno::EFAULT);
        }
        self.sync_dirty_log(host);
        let Some(bitmap) = self.dirty.bitmaps.get_mut(&slot.id) else { return Err(Errno::ENOENT) };
        let known = bitmap.0[(first / 64) as usize..].iter_mut();
        let cleared: Vec<u64> = known
            .zip(&bits[..words])
            .map(|(known, wanted)| {
                let both = *known & wanted;
                *known &= !wanted;
                both
            })
            .collect();
        self.protect_logged(&slot, first, &cleared, host);
        Ok(())
    }

    /// `kvm_arch_sync_dirty_log`: every vCPU is kicked, and its exit drains what silicon logged.
    fn sync_dirty_log(&mut self, host: &mut dyn Host) {
        (0..self.vcpus.len() as u32).for_each(|vcpu| self.flush_pml(vcpu, host));
    }

    fn protect_logged(&mut self, slot: &Slot, first: u64, words: &[u64], host: &mut dyn Host) {
        for (at, mask) in words.iter().enumerate().filter(|(_, mask)| **mask != 0) {
            self.protect_dirty(slot, first + 64 * at as u64, *mask, host);
        }
        let id = slot.id.into();
        let skipped = self.fault(ALL_VCPUS, FaultPoint::PROTECT_FLUSH_SKIPPED, id, first, host).is_some();
        if !skipped && words.iter().any(|mask| *mask != 0) {
            self.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0, host);
        }
    }
}
