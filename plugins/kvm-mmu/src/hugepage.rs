//! The level at which a fault is mapped.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c kvm_mmu_hugepage_adjust()

use crate::{
    fault::PageFault,
    large::{frames_shift, round_gfn},
    memory_type::EptTypes,
    mmu::Mmu,
    slots::Slot,
};
use vmtape_abi::Host;
use vmtape_arch::PAGE_SIZE;

impl Mmu {
    /// `kvm_mmu_hugepage_adjust`: the level at which the fault is mapped.
    pub(crate) fn hugepage_adjust(&self, vcpu: u32, fault: &mut PageFault, host: &dyn Host) {
        let Some(slot) = fault.slot else { return };
        if self.config.ept_types == EptTypes::GuestMtrrs {
            // See: kvm_tdp_page_fault(), as of 6.1
            let mtrrs = &self.vcpus[vcpu as usize].types.mtrrs;
            while fault.max_level > 1 && !mtrrs.is_uniform(fault.gfn, fault.max_level) {
                fault.max_level -= 1;
            }
        }
        if fault.max_level == 1 || slot.logs_dirty() {
            return;
        }
        fault.req_level = self.max_mapping_level(&slot, fault.gfn, fault.max_level, host);
        fault.goal_level = fault.req_level;
        fault.pfn = round_gfn(fault.pfn, fault.goal_level);
    }

    /// `kvm_mmu_max_mapping_level`.
    pub(crate) fn max_mapping_level(&self, slot: &Slot, gfn: u64, max_level: u8, host: &dyn Host) -> u8 {
        let host_level =
            ((self.config.backing_shift - 12) / 9 + 1).min(if self.config.gbpages { 3 } else { 2 });
        let allowed = |level: &u8| self.large.allowed(slot, gfn, *level) && is_whole(slot, gfn, *level, host);
        (2..=max_level.min(host_level)).rev().find(allowed).unwrap_or(1)
    }
}

/// Whether the host's tables have a large page there: of one with pages that are not there they have only the others
/// (`host_pfn_mapping_level`).
fn is_whole(slot: &Slot, gfn: u64, level: u8, host: &dyn Host) -> bool {
    let size = PAGE_SIZE << frames_shift(level);
    host.resident(slot.hpa(round_gfn(gfn, level) << 12), size) == size
}
