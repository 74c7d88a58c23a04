//! What shadow paging costs the host: pages that mirror, and the counters by which writes to guest page tables are seen.
//!
//! See: KVM arch/x86/kvm/mmu/page_track.c kvm_page_track_create_memslot(), as of 6.12

use crate::mmu::Mmu;

/// Bytes of a counter of `gfn_write_track`: an unsigned short is enough for all page roles that KVM has.
/// See: KVM include/asm/kvm_host.h union kvm_mmu_page_role, comment
const COUNTER: u64 = 2;
/// The same with what CPUID decides in the role, which makes more than 2^16 roles.
const COUNTER_WITH_CPUID: u64 = 4;

impl Mmu {
    /// Shadow pages in use (`n_used_mmu_pages`, without those of the TDP MMU).
    pub fn shadow_pages(&self) -> u64 {
        self.shadow.active.len() as u64
    }

    /// Bytes that write tracking takes: a counter for each frame of each slot (`gfn_write_track`).
    pub fn gfn_track_bytes(&self) -> u64 {
        if self.config.tdp && self.config.gfn_track_on_demand {
            return 0;
        }
        let frames: u64 = self.slots.iter().map(|slot| slot.size >> 12).sum();
        frames * if self.config.role_has_cpuid { COUNTER_WITH_CPUID } else { COUNTER }
    }
}
