//! The rules that decide outcomes, as the plugins export them.

use vmtape_abi::TableRow;
use vmtape_arch::{note::Note, open_enum};
use vmtape_kvm_core::kvm::Decided;

open_enum! {
    /// A rule by number.
    pub struct Rule(u32) {
        RESERVED_BY_HOST_WIDTH = 1 => "reserved-by-host-width",
        NESTED_PAGE_FAULT = 2 => "nested-page-fault",
        ACCESSED_BEFORE_NPF = 3 => "accessed-before-npf",
        TABLE_WALK_IS_WRITE = 4 => "table-walk-is-write",
        NPT4_WIDE_GPA = 5 => "npt4-wide-gpa",
        SHADOW_FAULT = 6 => "shadow-page-fault",
        RESERVED_BY_GUEST_WIDTH = 7 => "reserved-by-guest-width",
        MMIO = 8 => "mmio",
        EVENT_REINJECTED = 9 => "event-reinjected",
        UNPROTECTED = 10 => "page-table-unprotected",
        EMULATED_BY_GUEST_WIDTH = 11 => "emulated-by-guest-width",
        FIXED_UP = 12 => "page-fault-fixed-up",
        RESERVED_BY_V1 = 13 => "reserved-by-v1",
        UNMAPPABLE_EXIT = 14 => "unmappable-exit",
        NPT4_ALIAS = 15 => "npt4-alias",
        HYPERCALL_PATCHED = 16 => "hypercall-patched",
        SHARED_PAT = 30 => "shared-pat",
        GUEST_PAT = 31 => "guest-pat",
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
            Decided::Alias => Self::NPT4_ALIAS,
            Decided::GuestFault => Self::RESERVED_BY_GUEST_WIDTH,
            Decided::Unmappable => Self::UNMAPPABLE_EXIT,
            Decided::Unprotected => Self::UNPROTECTED,
            Decided::Mmio | Decided::Emulated => Self::MMIO,
            Decided::HypercallPatched => Self::HYPERCALL_PATCHED,
        };
        Some(rule.note())
    }
}

/// Which of the two plugins a rule belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Npt,
    Shadow,
    Both,
}

const ROWS: &[(Rule, Of, &str, &str)] = &[
    (
        Rule::RESERVED_BY_HOST_WIDTH,
        Of::Npt,
        "The guest's tables are walked by the CPU, whose own MAXPHYADDR says which address bits are reserved",
        "APM vol. 2 5.6.1 Page-Translation Exceptions; 15.25.6",
    ),
    (
        Rule::NESTED_PAGE_FAULT,
        Of::Npt,
        "The nested page table has no translation, or not these rights, for a guest physical address",
        "APM vol. 2 15.25.6 Nested versus Guest Page Faults, Fault Ordering",
    ),
    (
        Rule::ACCESSED_BEFORE_NPF,
        Of::Npt,
        "AMD sets the guest's accessed bit (and, unverified, its dirty bit) before the nested page fault of the final \
         address, and software cannot undo it",
        "KVM svm/svm.c svm_hardware_setup(), commit 3edd68399dc1",
    ),
    (
        Rule::TABLE_WALK_IS_WRITE,
        Of::Npt,
        "Reading a guest's page table counts as a user's write of the nested page",
        "APM vol. 2 15.25.5 Nested Table Walk",
    ),
    (
        Rule::NPT4_WIDE_GPA,
        Of::Npt,
        "Under a 4-level nested page table a guest physical address with bits 51:48 is not present",
        "unverified; QEMU's software CPU ignores the bits",
    ),
    (
        Rule::SHADOW_FAULT,
        Of::Shadow,
        "The CPU walks KVM's shadow page tables and every page fault exits; its error code speaks of them, not of the \
         guest's tables",
        "KVM svm/svm.c pf_interception(), mmu/paging_tmpl.h page_fault()",
    ),
    (
        Rule::RESERVED_BY_GUEST_WIDTH,
        Of::Shadow,
        "KVM walks the guest's tables by software with the guest's own MAXPHYADDR and injects what that walk finds",
        "KVM mmu/paging_tmpl.h walk_addr_generic()",
    ),
    (
        Rule::MMIO,
        Of::Both,
        "The guest physical address is in no memory slot, or the page is write-protected: the access is emulated",
        "KVM mmu/mmu.c kvm_handle_noslot_fault(), kvm_mmu_page_fault()",
    ),
    (
        Rule::EVENT_REINJECTED,
        Of::Both,
        "An exit interrupted the delivery of an event, which is injected again",
        "KVM svm/svm.c svm_complete_interrupts()",
    ),
    (
        Rule::UNPROTECTED,
        Of::Shadow,
        "The instruction does not look like one that edits page tables: the page is no longer shadowed, and the guest \
         tries again",
        "KVM mmu/mmu.c __kvm_mmu_unprotect_gfn_and_retry()",
    ),
    (
        Rule::EMULATED_BY_GUEST_WIDTH,
        Of::Npt,
        "The guest physical address is beyond the guest's width: the instruction is emulated, which walks the guest's tables \
         again, by its width. The accessed bit that silicon has set stays",
        "patch \"KVM: SVM: Add guest physical address check in NPF/PF interception\", v2 of 19 Jun 2020, never merged",
    ),
    (
        Rule::FIXED_UP,
        Of::Npt,
        "A page fault of a guest narrower than its host is walked again by software, which adds the reserved flag that \
         silicon could not know of",
        "KVM x86.c kvm_fixup_and_inject_pf_error(), commit 897861479c06; under SVM only in v2 of 19 Jun 2020, never merged",
    ),
    (
        Rule::RESERVED_BY_V1,
        Of::Npt,
        "The guest physical address is beyond the guest's width: a page fault with the reserved flag alone, and with that \
         address in CR2. No CPU raises such a fault",
        "patch \"KVM: SVM: Add guest physical address check in NPF interception\" of 27 Feb 2020, never merged",
    ),
    (
        Rule::UNMAPPABLE_EXIT,
        Of::Npt,
        "4-level tables cannot translate the address of this memory: KVM leaves to userspace instead of trying for ever",
        "proposed in 2024, never merged",
    ),
    (
        Rule::NPT4_ALIAS,
        Of::Npt,
        "Under 4-level tables frames that differ in bits 51:48 of their address share an entry: MMIO at one takes the entry of \
         memory at the other, which is emulated from then on; memory does not (and Linux 6.12 would stop the host with BUG)",
        "KVM mmu/tdp_iter.c tdp_iter_refresh_sptep(), mmu/tdp_mmu.c handle_changed_spte()",
    ),
    (
        Rule::HYPERCALL_PATCHED,
        Of::Both,
        "VMCALL is #UD on AMD: KVM writes VMMCALL over it, which the guest executes instead",
        "KVM x86.c emulator_fix_hypercall(); quirk since commit f1a9761fbb00",
    ),
    (
        Rule::SHARED_PAT,
        Of::Both,
        "L1 and L2 share one PAT: IA32_PAT of L2 is L1's",
        "KVM svm/svm.c svm_set_msr() MSR_IA32_CR_PAT, and since v7.2 the quirk KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT; right where \
         L1 does not use nested paging (APM vol. 2 15.25.2)",
    ),
    (
        Rule::GUEST_PAT,
        Of::Npt,
        "Under nested paging IA32_PAT of L2 is gPAT, which VMRUN loads from vmcb12 and #VMEXIT stores there",
        "APM vol. 2 15.25.4; KVM svm/svm.c svm_get_pat(), svm_set_pat()",
    ),
];

/// The table that a plugin exports.
pub fn rows(npt: bool) -> Vec<TableRow> {
    let mine = if npt { Of::Npt } else { Of::Shadow };
    ROWS.iter()
        .filter(|(_, of, ..)| *of == mine || *of == Of::Both)
        .map(|(rule, _, text, source)| TableRow {
            id: rule.0,
            name: rule.name().unwrap_or_default().into(),
            text: (*text).into(),
            source: (*source).into(),
            ..Default::default()
        })
        .collect()
}
