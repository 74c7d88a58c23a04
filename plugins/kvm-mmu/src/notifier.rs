//! The host takes pages of guest memory back.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c kvm_unmap_gfn_range(), as of 6.12

use crate::{large::round_gfn, mmu::Mmu, slots::PRIVATE_SLOT};
use vmtape_abi::{ALL_VCPUS, FlushScope, Host};

impl Mmu {
    /// No leaf maps the range of host physical memory any more, at any level.
    pub fn unmap_range(&mut self, hpa: u64, size: u64, host: &mut dyn Host) {
        let end = hpa.saturating_add(size);
        let slots: Vec<_> = self.slots.iter().filter(|slot| slot.id < PRIVATE_SLOT).copied().collect();
        for slot in slots {
            let (first, last) = (hpa.max(slot.hpa), end.min(slot.hpa + slot.size));
            if first < last {
                let gfn = |hpa: u64| (slot.gpa + (hpa - slot.hpa)) >> 12;
                self.tdp_unmap(gfn(first), gfn(last - 1) + 1);
                self.shadow_unmap(gfn(first), gfn(last - 1) + 1);
            }
        }
        self.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0, host);
    }

    /// `kvm_unmap_rmapp` for each frame and level.
    fn shadow_unmap(&mut self, start: u64, end: u64) {
        for level in 1..=3 {
            for sptep in self.shadow.leaves_within(level, round_gfn(start, level), end) {
                self.drop_leaf(sptep);
            }
        }
    }
}
