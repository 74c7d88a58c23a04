//! What an MMU is made for, and what a guest's CPUID says about its page tables.

use crate::{
    dirty::DirtyRules,
    memory_type::EptTypes,
    spte::{Format, NONPRESENT},
};
use serde::{Deserialize, Serialize};

/// What the MMU is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Two-dimensional paging; otherwise shadow paging.
    pub tdp: bool,
    /// kvm.tdp_mmu: two-dimensional tables have an MMU of their own, otherwise they are shadow pages.
    pub tdp_mmu: bool,
    /// The format of the entries that silicon reads.
    pub format: Format,
    /// The host's MAXPHYADDR.
    pub host_width: u8,
    /// The host has 1 GiB pages.
    pub gbpages: bool,
    /// log2 of the largest page with which the host backs guest memory.
    pub backing_shift: u8,
    /// Most levels that TDP offers.
    pub max_tdp_level: u8,
    /// TDP has the host's paging mode and no choice (AMD).
    pub forced_tdp_level: bool,
    /// kvm.mmio_caching
    pub mmio_caching: bool,
    /// Silicon logs writes to pages whose dirty bit KVM clears (page-modification logging).
    pub pml: bool,
    /// What of dirty logging changed between releases.
    pub dirty: DirtyRules,
    /// Silicon is AMD's.
    pub amd: bool,
    /// With 4 levels, address bits 51:48 fault instead of being ignored.
    pub wide_gpa_faults: bool,
    /// AMD's accessed bit comes before the final nested fault.
    pub accessed_before_nested_fault: bool,
    /// ... and the dirty bit with it.
    pub dirty_before_nested_fault: bool,
    /// vCPUs share a shadow page only if their CPUIDs give its entries the same meaning. No release does that.
    pub role_has_cpuid: bool,
    /// The counters of write tracking are allocated with the first shadow page instead of with each slot.
    pub gfn_track_on_demand: bool,
    /// KVM's software walk refuses addresses beyond the guest's width even where no entry has a reserved bit.
    pub translate_gpa_check: bool,
    /// Of the last MMIO page of shadow paging KVM does not know that it can be read.
    pub mmio_read_forgotten: bool,
    /// How KVM chooses the memory type of EPT entries.
    pub ept_types: EptTypes,
    /// What becomes of memory that the nested tables have too few levels for.
    pub unmappable: Unmappable,
    /// How the walk of L1's nested page table is set up.
    pub npt_rules: NptRules,
    /// Nothing is mapped over the local APIC's page: accesses are emulated.
    pub emulates_apic_page: bool,
    /// Slots and entries stay within the host's width (`kvm_mmu_max_gfn`); otherwise nobody looks.
    pub gfn_within_host: bool,
    /// A fault that needs a small page splits a large one of the TDP MMU, instead of dropping it.
    pub tdp_splits_on_fault: bool,
    /// EPT entries and those that are not present have the suppress-#VE bit.
    pub suppress_ve: bool,
    /// A signal ends the wait for a page that is not there.
    pub interruptible: bool,
    /// The MMU has all of a fault's code, not its lower half.
    pub full_fault_code: bool,
}

impl Config {
    /// An entry as this release has it: tables here have the suppress-#VE bit of later ones.
    pub(crate) fn told(&self, spte: u64) -> u64 {
        let is_extra = matches!(self.format, Format::Ept { .. }) || spte == NONPRESENT;
        if self.suppress_ve || !is_extra { spte } else { spte & !NONPRESENT }
    }
}

/// What KVM does about a fault in a memory slot whose address the nested tables cannot translate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unmappable {
    /// It maps the page, and the guest faults again: for ever.
    #[default]
    Map,
    /// It leaves to userspace at once with KVM_EXIT_INTERNAL_ERROR.
    InternalError,
    /// ... or with KVM_EXIT_MEMORY_FAULT.
    MemoryFault,
}

/// How KVM's walk of L1's nested page table is set up. See: KVM mmu/mmu.c kvm_init_shadow_npt_mmu()
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NptRules {
    /// By L1's CR4 and EFER of VMRUN. Otherwise only L1's paging mode counts, and NX, SMEP, SMAP, CR0.WP, PSE and LA57 are those of
    /// whoever runs, which is L2.
    pub of_l1: bool,
    /// With CR0.WP and without SMAP.
    pub with_wp: bool,
    /// The role says that it is for L2.
    pub guest_mode_first: bool,
}

impl Default for NptRules {
    fn default() -> Self {
        Self { of_l1: true, with_wp: false, guest_mode_first: true }
    }
}

impl Config {
    /// What unit tests have in common: four levels below a guest on a host of 46 bits, in small pages.
    #[cfg(test)]
    pub(crate) fn for_tests(format: Format) -> Self {
        Self {
            tdp: true,
            tdp_mmu: true,
            format,
            host_width: 46,
            gbpages: true,
            backing_shift: 12,
            max_tdp_level: 4,
            forced_tdp_level: true,
            mmio_caching: true,
            pml: false,
            dirty: DirtyRules::V6_12,
            amd: !matches!(format, Format::Ept { .. }),
            wide_gpa_faults: true,
            accessed_before_nested_fault: true,
            dirty_before_nested_fault: true,
            role_has_cpuid: false,
            gfn_track_on_demand: true,
            translate_gpa_check: false,
            mmio_read_forgotten: false,
            ept_types: EptTypes::default(),
            npt_rules: Default::default(),
            emulates_apic_page: false,
            gfn_within_host: true,
            tdp_splits_on_fault: true,
            suppress_ve: true,
            interruptible: true,
            full_fault_code: true,
            unmappable: Unmappable::Map,
        }
    }

    /// The bits of an address in KVM's own tables that silicon takes, all others being reserved.
    pub fn table_width(&self) -> u8 {
        match self.format {
            Format::X86 { width } => width,
            Format::Ept { .. } => self.host_width,
        }
    }
}

/// What a guest's CPUID says about its page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestWidth {
    pub maxphyaddr: u8,
    pub gbpages: bool,
    /// Bit 8 of upper entries is reserved.
    pub amd: bool,
}

impl Default for GuestWidth {
    fn default() -> Self {
        Self { maxphyaddr: 36, gbpages: false, amd: false }
    }
}
