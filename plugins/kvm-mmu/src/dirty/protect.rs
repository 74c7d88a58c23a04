//! What makes the next write seen: entries lose D where silicon logs writes itself, and W everywhere else.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c kvm_arch_mmu_enable_log_dirty_pt_masked(), x86.c kvm_mmu_slot_apply_flags(), as of 6.12

use crate::{large::round_gfn, mmu::Mmu, slots::Slot};
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
            // `kvm_mmu_zap_collapsible_sptes`, of which all is more than enough: large pages are mapped anew.
            return self.zap_all(host);
        }
        if self.dirty.initially_set() {
            return;
        }
        let arm = self.arm();
        for gfn in new.gpa >> 12..(new.gpa + new.size) >> 12 {
            self.arm_gfn(gfn, 1, arm);
        }
        self.arm_large(new.gpa >> 12, (new.gpa + new.size) >> 12, Arm::Protect);
        self.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0, host);
    }

    /// `kvm_arch_mmu_enable_log_dirty_pt_masked`: the pages of a slot from `offset` on whose bit is set.
    pub(crate) fn protect_dirty(&mut self, slot: &Slot, offset: u64, mask: u64) {
        let base = (slot.gpa >> 12) + offset;
        if self.dirty.initially_set() {
            let (first, last) = (mask.trailing_zeros(), 63 - mask.leading_zeros());
            self.arm_large(base + u64::from(first), base + u64::from(last) + 1, Arm::ProtectLarge);
        }
        let arm = self.arm();
        for bit in (0..64).filter(|bit| mask >> bit & 1 != 0) {
            self.arm_gfn(base + bit, 1, arm);
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
        let shadowed = self.shadow.leaves(level, gfn).to_vec();
        for sptep in self.tdp_leaves(gfn, level).chain(shadowed) {
            let spte = self.pages.read(sptep);
            let armed = match arm {
                // Silicon does not log for L2. See: KVM mmu/mmu_internal.h kvm_mmu_page_ad_need_write_protect()
                Arm::ClearDirty if self.shadow.is_guest_mode(sptep) => format.write_protected(spte, true),
                Arm::ClearDirty => format.without_dirty(spte),
                Arm::Protect => format.write_protected(spte, true),
                Arm::ProtectLarge => format.write_protected(spte, false),
            };
            self.pages.write(sptep, armed);
        }
    }
}
