//! What makes the next write seen: entries lose D where silicon logs writes itself, and W everywhere else.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c kvm_arch_mmu_enable_log_dirty_pt_masked(), x86.c kvm_mmu_slot_apply_flags(), as of 6.12

use super::huge::frames;
use crate::{fault_points::FaultPoint, large::round_gfn, mmu::Mmu, slots::Slot};
use vmtape_abi::{ALL_VCPUS, FlushScope, Host};

/// How an entry is made to tell of the next write.
#[derive(Clone, Copy)]
enum Arm {
    /// D goes: silicon logs the write that sets it again.
    ClearDirty,
    /// W goes, and may be given back without KVM's lock.
    Protect,
    /// W goes, and only a fault that splits the large page gives it back.
    ProtectLarge,
}

impl Mmu {
    fn arm(&self) -> Arm {
        if self.config.pml { Arm::ClearDirty } else { Arm::Protect }
    }

    /// `kvm_mmu_slot_apply_flags`: a slot begins or ceases to log.
    pub(crate) fn apply_log_flag(&mut self, old: &Slot, new: &Slot, host: &mut dyn Host) {
        if old.logs_dirty() == new.logs_dirty() || new.readonly() {
            return;
        }
        if !new.logs_dirty() {
            return self.collapse(new, host);
        }
        if self.dirty.initially_set() {
            return;
        }
        let (start, end) = frames(new);
        self.split_huge_pages(start, end);
        let arm = self.arm();
        (start..end).for_each(|gfn| self.arm_gfn(gfn, 1, arm));
        self.arm_large(start, end, Arm::Protect);
        self.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0, host);
    }

    /// `kvm_arch_mmu_enable_log_dirty_pt_masked`: the pages of a slot from `offset` on whose bit is set.
    pub(crate) fn protect_dirty(&mut self, slot: &Slot, offset: u64, mask: u64, host: &mut dyn Host) {
        let base = (slot.gpa >> 12) + offset;
        if self.dirty.initially_set() {
            let first = base + u64::from(mask.trailing_zeros());
            let last = base + u64::from(63 - mask.leading_zeros());
            self.split_huge_pages(first, last + u64::from(self.config.dirty.splits_last));
            self.arm_large(first, last + 1, Arm::ProtectLarge);
        }
        let arm = self.arm();
        for gfn in (0..64).filter(|bit| mask >> bit & 1 != 0).map(|bit| base + bit) {
            // Read, and written back: what was there in between is lost.
            let raced = self.fault(ALL_VCPUS, FaultPoint::SPTE_UPDATE_RACE, slot.id.into(), gfn, host);
            if raced.is_none() {
                self.arm_gfn(gfn, 1, arm);
            }
        }
    }

    /// A page can be written again without anybody hearing of it.
    pub(super) fn unprotect(&mut self, slot: &Slot, offset: u64) {
        let (format, gfn) = (self.config.format, (slot.gpa >> 12) + offset);
        let shadowed = self.shadow.leaves(1, gfn).to_vec();
        for sptep in self.tdp_leaves(gfn, 1).chain(shadowed) {
            let spte = self.pages.read(sptep);
            if format.is_mmu_writable(spte) {
                self.pages.write(sptep, format.with_dirty(format.made_writable(spte)));
            }
        }
    }

    fn arm_large(&mut self, start: u64, end: u64, arm: Arm) {
        for level in 2..=3 {
            let mut gfn = round_gfn(start, level);
            while gfn < end {
                self.arm_gfn(gfn, level, arm);
                gfn += 1 << crate::large::frames_shift(level);
            }
        }
    }

    /// Every leaf at this level that maps the frame.
    fn arm_gfn(&mut self, gfn: u64, level: u8, arm: Arm) {
        let format = self.config.format;
        let protects_for_l2 = self.config.dirty.protects_for_l2;
        let shadowed = self.shadow.leaves(level, gfn).to_vec();
        for sptep in self.tdp_leaves(gfn, level).chain(shadowed) {
            let spte = self.pages.read(sptep);
            let armed = match arm {
                // Silicon does not log for L2. See: KVM mmu/mmu_internal.h kvm_mmu_page_ad_need_write_protect()
                Arm::ClearDirty if protects_for_l2 && self.shadow.is_guest_mode(sptep) => {
                    format.write_protected(spte, true)
                }
                Arm::ClearDirty => format.without_dirty(spte),
                Arm::Protect => format.write_protected(spte, true),
                Arm::ProtectLarge => format.write_protected(spte, false),
            };
            self.pages.write(sptep, armed);
        }
    }
}
