//! The PAT of L1 and the PAT of L2: one for both up to v6.12, the series of 2026 as posted, and the form that was merged.

use super::{Entry, Scope, Switch};

/// hPAT and gPAT: what was merged, and the series as posted.
pub const GPAT: &[Entry] = &[
    Entry::patch(
        Switch::GPAT_CLEAN_BIT,
        Scope::NPT,
        "A PAT write clears the clean bit of nCR3 and G_PAT in each VMCB that it changes; before, only in the one \
         that runs, so that silicon may keep L1's old PAT after #VMEXIT",
    )
    .commit("0a8aeb15848e", "KVM: x86: nSVM: Clear VMCB_NPT clean bit when updating hPAT from guest mode")
    .source("svm/svm.h vmcb_set_gpat()")
    .since("v7.2"),
    Entry::patch(
        Switch::GPAT_CHECKED,
        Scope::NPT,
        "VMRUN caches G_PAT of vmcb12, and fails under nested paging if it is not valid (this and the next four: \
         with the quirk nested_svm_shared_pat off)",
    )
    .commit("4b83e4ba836e", "KVM: x86: nSVM: Cache and validate vmcb12 g_pat")
    .source("svm/nested.c nested_vmcb_check_save()")
    .since("v7.2"),
    Entry::patch(
        Switch::GPAT_IN_VMCB02,
        Scope::NPT,
        "Under nested paging vmcb02 has vmcb12's G_PAT, unless the clean bit of vmcb12 says that it is the same; \
         before, L1's PAT",
    )
    .commit("02233c73f8ae", "KVM: x86: nSVM: Set vmcb02.g_pat correctly for nested NPT")
    .source("svm/nested.c nested_vmcb02_prepare_save()")
    .since("v7.2"),
    Entry::patch(
        Switch::GPAT_MSR,
        Scope::NPT,
        "IA32_PAT of L2 under nested paging is gPAT; L1 and the host reach hPAT",
    )
    .commit("posted 7 Apr 2026", "KVM: x86: nSVM: Redirect IA32_PAT accesses to either hPAT or gPAT")
    .source("svm/svm.c svm_get_pat(), svm_set_pat()")
    .since("v7.2"),
    Entry::patch(
        Switch::GPAT_STORED,
        Scope::NPT,
        "#VMEXIT stores gPAT in vmcb12",
    )
    .commit("d65cf222b899", "KVM: x86: nSVM: Save gPAT to vmcb12.g_pat on VMEXIT")
    .source("svm/nested.c nested_svm_vmexit()")
    .since("v7.2"),
    Entry::patch(
        Switch::GPAT_STATE,
        Scope::NPT,
        "Nested state has gPAT at byte 16 of its header, which must be valid",
    )
    .commit("4f256d5770fe", "KVM: x86: nSVM: Save/restore gPAT with KVM_{GET,SET}_NESTED_STATE")
    .source("svm/nested.c svm_get_nested_state(), svm_set_nested_state()")
    .since("v7.2"),
    Entry::patch(
        Switch::PAT_ACCESS_WARNS,
        Scope::AMD,
        "A host-initiated access of IA32_PAT warns once while the vCPU wants to run (no VMM's call comes then: no effect here)",
    )
    .commit("posted 7 Apr 2026", "KVM: x86: nSVM: Redirect IA32_PAT accesses to either hPAT or gPAT")
    .source("svm/svm.c svm_set_pat()")
    .since("v7.2"),
    Entry::patch(
        Switch::V3_GPAT_CHECKED,
        Scope::NPT,
        "v3: VMRUN caches G_PAT of vmcb12, and fails under nested paging if it is not valid",
    )
    .commit("posted 5 Feb 2026", "KVM: x86: nSVM: Cache and validate vmcb12 g_pat")
    .source("as posted, svm/nested.c"),
    Entry::patch(
        Switch::V3_GPAT_IN_VMCB02,
        Scope::NPT,
        "v3: under nested paging vmcb02 has vmcb12's G_PAT; before, L1's PAT",
    )
    .commit("posted 5 Feb 2026", "KVM: x86: nSVM: Set vmcb02.g_pat correctly for nested NPT")
    .source("as posted, svm/nested.c"),
    Entry::patch(
        Switch::V3_GPAT_MSR,
        Scope::NPT,
        "v3: IA32_PAT of L2 under nested paging is gPAT; L1 and the host reach hPAT",
    )
    .commit("posted 5 Feb 2026", "KVM: x86: nSVM: Redirect IA32_PAT accesses to either hPAT or gPAT")
    .source("as posted, svm/svm.c svm_set_msr()"),
    Entry::patch(
        Switch::V3_GPAT_STORED,
        Scope::NPT,
        "v3: #VMEXIT stores gPAT in vmcb12",
    )
    .commit("posted 5 Feb 2026", "KVM: x86: nSVM: Save gPAT to vmcb12 g_pat on VMEXIT")
    .source("as posted, svm/nested.c"),
    Entry::patch(
        Switch::V3_GPAT_STATE,
        Scope::NPT,
        "v3: nested state has gPAT at byte 24 of its header, and the flag KVM_STATE_SVM_VALID_GPAT at byte 16",
    )
    .commit("posted 5 Feb 2026", "KVM: x86: nSVM: Save/restore gPAT with KVM_{GET,SET}_NESTED_STATE")
    .source("as posted, svm/nested.c"),
    Entry::patch(
        Switch::V3_GPAT_LEGACY,
        Scope::NPT,
        "v3: nested state without the flag gives gPAT the value of IA32_PAT, which host writes follow until the \
         first KVM_RUN (legacy_gpat_semantics)",
    )
    .commit("posted 5 Feb 2026", "KVM: x86: nSVM: Handle restore of legacy nested state")
    .source("as posted, svm/nested.c"),
    Entry::patch(
        Switch::V1_GPAT_STATE,
        Scope::NPT,
        "v1: nested state has L1's PAT in the saved VMCB, IA32_PAT of a vCPU in L2 is gPAT, and the flag \
         KVM_STATE_SVM_VALID_GPAT at byte 16 says so",
    )
    .commit("posted 13 Jan 2026", "KVM: x86: nSVM: Save/restore gPAT with KVM_{GET,SET}_NESTED_STATE")
    .source("as posted, svm/nested.c"),
    Entry::patch(
        Switch::V2_GPAT_STATE,
        Scope::NPT,
        "v2: nested state has gPAT in the saved VMCB, with the flag only under nested paging; without it gPAT \
         becomes IA32_PAT at the next KVM_RUN (restore_gpat_from_pat)",
    )
    .commit("posted 15 Jan 2026", "KVM: x86: nSVM: Save/restore gPAT with KVM_{GET,SET}_NESTED_STATE")
    .source("as posted, svm/nested.c"),
];
