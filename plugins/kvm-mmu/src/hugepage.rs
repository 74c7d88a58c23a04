//! The level at which a fault is mapped.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c kvm_mmu_hugepage_adjust()

use crate::{fault::PageFault, large::round_gfn, mmu::Mmu, slots::Slot};

impl Mmu {
    /// `kvm_mmu_hugepage_adjust`: the level at which the fault is mapped.
    pub(crate) fn hugepage_adjust(&self, fault: &mut PageFault) {
        let Some(slot) = fault.slot else { return };
        if fault.max_level == 1 || slot.logs_dirty() {
            return;
        }
        fault.req_level = self.max_mapping_level(&slot, fault.gfn, fault.max_level);
        fault.goal_level = fault.req_level;
        fault.pfn = round_gfn(fault.pfn, fault.goal_level);
    }

    /// `kvm_mmu_max_mapping_level`.
    pub(crate) fn max_mapping_level(&self, slot: &Slot, gfn: u64, max_level: u8) -> u8 {
        let host_level =
            ((self.config.backing_shift - 12) / 9 + 1).min(if self.config.gbpages { 3 } else { 2 });
        (2..=max_level.min(host_level)).rev().find(|level| self.large.allowed(slot, gfn, *level)).unwrap_or(1)
    }
}
