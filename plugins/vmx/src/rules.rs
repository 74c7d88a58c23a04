//! The rules that decide outcomes, as this plugin exports them.

use vmtape_abi::TableRow;
use vmtape_arch::{note::Note, open_enum};
use vmtape_kvm_core::kvm::Decided;

open_enum! {
    /// A rule by number.
    pub struct Rule(u32) {
        RESERVED_BY_HOST_WIDTH = 1 => "reserved-by-host-width",
        EPT_VIOLATION = 2 => "ept-violation",
        EPT_MISCONFIG = 3 => "ept-misconfiguration",
        EPT4_WIDE_GPA = 4 => "ept4-wide-gpa",
        SMALLER_MAXPHYADDR_GPA = 5 => "smaller-maxphyaddr-gpa",
        SMALLER_MAXPHYADDR_PF = 6 => "smaller-maxphyaddr-page-fault",
        MMIO = 7 => "mmio",
        EVENT_REINJECTED = 8 => "event-reinjected",
        UNMAPPABLE_EXIT = 9 => "unmappable-exit",
        EPT4_ALIAS = 10 => "ept4-alias",
        UNTRANSLATABLE_EMULATED = 11 => "untranslatable-emulated",
        V1_RSVD_PF = 12 => "v1-rsvd-pf",
        HYPERCALL_PATCHED = 13 => "hypercall-patched",
        PML_FULL = 14 => "pml-full",
    }
}

impl Rule {
    /// The note that this rule decided.
    pub fn note(self) -> Note {
        Note::Rule { id: self.0 }
    }

    /// The rule for what KVM decides for both vendors.
    pub fn of(decided: Decided) -> Option<Note> {
        let rule = match decided {
            Decided::Alias => Self::EPT4_ALIAS,
            Decided::Unmappable => Self::UNMAPPABLE_EXIT,
            Decided::Mmio => Self::MMIO,
            Decided::HypercallPatched => Self::HYPERCALL_PATCHED,
            Decided::GuestFault | Decided::Unprotected | Decided::Emulated => return None,
        };
        Some(rule.note())
    }
}

const ROWS: &[(Rule, &str, &str)] = &[
    (
        Rule::PML_FULL,
        "The log of page modifications has no room, and EPT has an accessed or dirty bit to set",
        "SDM vol. 3C 29.3.6 Page-Modification Logging",
    ),
    (
        Rule::RESERVED_BY_HOST_WIDTH,
        "The guest's tables are walked by the CPU, whose own MAXPHYADDR says which address bits are reserved",
        "SDM vol. 3A 4.7 Page-Fault Exceptions",
    ),
    (
        Rule::EPT_VIOLATION,
        "EPT has no translation, or not these rights, for a guest physical address",
        "SDM vol. 3C 29.3.3.2 EPT Violations",
    ),
    (
        Rule::EPT_MISCONFIG,
        "An EPT entry is present but malformed: KVM marks MMIO so",
        "SDM vol. 3C 29.3.3.1 EPT Misconfigurations; KVM mmu/spte.c kvm_mmu_set_ept_masks()",
    ),
    (
        Rule::EPT4_WIDE_GPA,
        "Under 4-level EPT a guest physical address with bits 51:48 always violates; no table can resolve it",
        "Intel, 5-Level Paging and 5-Level EPT; qualification bits 6:3 unverified",
    ),
    (
        Rule::SMALLER_MAXPHYADDR_GPA,
        "The guest physical address is beyond the guest's width: KVM emulates the instruction, whose own walk finds the \
         reserved bit",
        "KVM vmx/vmx.c handle_ept_violation(), commit 1dbf5d68af6f",
    ),
    (
        Rule::SMALLER_MAXPHYADDR_PF,
        "The guest is narrower than the CPU: KVM intercepts the page fault and walks again with the guest's width",
        "KVM x86.c kvm_fixup_and_inject_pf_error(), commit 897861479c06",
    ),
    (
        Rule::MMIO,
        "The guest physical address is in no memory slot: the access is emulated",
        "KVM mmu/mmu.c kvm_handle_noslot_fault()",
    ),
    (
        Rule::EVENT_REINJECTED,
        "An exit interrupted the delivery of an event, which is injected again",
        "KVM vmx/vmx.c __vmx_complete_interrupts()",
    ),
    (
        Rule::UNMAPPABLE_EXIT,
        "4-level EPT cannot translate the address of this memory: KVM leaves to userspace instead of trying for ever",
        "proposed in 2024, never merged",
    ),
    (
        Rule::EPT4_ALIAS,
        "Under 4-level EPT frames that differ in bits 51:48 of their address share an entry: MMIO at one takes the entry of \
         memory at the other, which is emulated from then on; memory does not (and Linux 6.12 would stop the host with BUG)",
        "KVM mmu/tdp_iter.c tdp_iter_refresh_sptep(), mmu/tdp_mmu.c handle_changed_spte()",
    ),
    (
        Rule::UNTRANSLATABLE_EMULATED,
        "4-level EPT cannot translate the address: KVM emulates the instruction with a walk of its own",
        "posting of 18 Dec 2023, never merged",
    ),
    (
        Rule::V1_RSVD_PF,
        "The address is beyond the guest's width: KVM injects #PF with RSVD alone as error code and the guest physical address \
         in CR2, neither of which hardware can do",
        "posting of 27 Feb 2020, kvm_inject_rsvd_bits_pf(), never merged",
    ),
    (
        Rule::HYPERCALL_PATCHED,
        "VMMCALL is #UD on Intel: KVM writes VMCALL over it, which the guest executes instead",
        "KVM x86.c emulator_fix_hypercall(); quirk since commit f1a9761fbb00",
    ),
];

/// The table that the plugin exports.
pub fn rows() -> Vec<TableRow> {
    ROWS.iter()
        .map(|(rule, text, source)| TableRow {
            id: rule.0,
            name: rule.name().unwrap_or_default().into(),
            text: (*text).into(),
            source: (*source).into(),
            ..Default::default()
        })
        .collect()
}
