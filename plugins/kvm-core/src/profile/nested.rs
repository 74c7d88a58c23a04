//! Nested SVM, which stable updates rewrote. What is guest-visible is a switch each; a profile stands for a point release: v5.10
//! for 5.10.262, v6.1 for 6.1.192, v6.12 for 6.12.117, v7.2 for 7.2.13, and those between two of them for the older one.
//!
//! Subjects are those of Debian's changelogs of stable updates and of the pull requests; where no id is known the first stable update
//! stands for it.

use super::{Entry, Scope, Switch};

/// What all four releases read have: kernels before their stable updates do not.
pub const NESTED_OLD: &[Entry] = &[
    Entry::patch(
        Switch::NESTED_INT_CTL_FILTERED,
        Scope::AMD,
        "Of vmcb12's int_ctl only what L1 may decide reaches vmcb02; before, L2 could turn AVIC on \
         (CVE-2021-3653)",
    )
    .commit("0f923e07124d", "KVM: nSVM: avoid picking up unsupported bits from L2 in int_ctl")
    .source("svm/nested.c nested_vmcb02_prepare_control()")
    .since("v5.10"),
    Entry::patch(
        Switch::NESTED_VLS_INTERCEPTED,
        Scope::AMD,
        "VMLOAD and VMSAVE of L2 exit unless their virtualization is on for L2; before, they reached memory of \
         the host (CVE-2021-3656)",
    )
    .commit("c7dfa4009965", "KVM: nSVM: always intercept VMLOAD/VMSAVE when nested")
    .source("svm/nested.c recalc_intercepts()")
    .since("v5.10"),
    Entry::patch(
        Switch::HSAVE_PA_VALIDATED,
        Scope::AMD,
        "A guest's write of VM_HSAVE_PA raises #GP unless the page is aligned and within its width",
    )
    .commit("in stable 5.10.52", "(subject unverified)")
    .source("svm/svm.c svm_set_msr(); stable 5.10.52")
    .since("v5.10"),
    Entry::patch(
        Switch::NESTED_INVALID_CODE_HIGH,
        Scope::AMD,
        "A VMRUN that KVM fails writes an exit code of -1 in 64 bits; before, 0xffffffff",
    )
    .commit("in stable 5.10.248", "KVM: nSVM: Set exit_code_hi to -1 when synthesizing SVM_EXIT_ERR (failed VMRUN)")
    .source("svm/nested.c nested_svm_vmrun(); stable 5.10.248, 6.1.160, 6.12.64")
    .since("v5.10"),
    Entry::patch(
        Switch::NESTED_INVALID_CLEARS_GIF,
        Scope::AMD,
        "A VMRUN that fails KVM's checks clears GIF, as every #VMEXIT does",
    )
    .commit("f85a6ce06e4a", "KVM: nSVM: Clear GIF on nested #VMEXIT(INVALID)")
    .source("svm/nested.c nested_svm_vmrun(); stable 5.10.258, 6.1.175, 6.12.86")
    .since("v5.10"),
    Entry::patch(
        Switch::NESTED_SHADOW_SYNCED,
        Scope::AMD,
        "The interrupt shadow of L2 is in the cached vmcb12 after each run, so that saved state has it \
         (CVE-2026-45987)",
    )
    .commit("03bee264f8eb", "KVM: nSVM: Sync interrupt shadow to cached vmcb12 after VMRUN of L2")
    .source("svm/nested.c nested_sync_control_from_vmcb02(); stable 5.10.258, 6.1.175, 6.12.86")
    .since("v5.10"),
    Entry::patch(
        Switch::NCR3_LOW_BITS_IGNORED,
        Scope::NPT,
        "nCR3[4:0] is ignored where the PDPTEs of L1's nested tables are read",
    )
    .commit("in stable 5.10.229", "KVM: nSVM: Ignore nCR3[4:0] when loading PDPTEs from memory")
    .source("svm/nested.c nested_svm_get_tdp_pdptr(); stable 5.10.229, 6.1.115")
    .since("v5.10"),
    Entry::patch(
        Switch::NESTED_LMSW_SELECTIVE,
        Scope::AMD,
        "LMSW that KVM emulates for L2 always has the selective intercept of CR0 writes",
    )
    .commit("in stable 5.10.248", "KVM: nSVM: Propagate SVM_EXIT_CR0_SEL_WRITE correctly for LMSW emulation")
    .source("svm/svm.c svm_check_intercept(); stable 5.10.248, 6.1.160, 6.12.64")
    .since("v5.10"),
];

/// What 6.1.192 has and 5.10.262 has not.
pub const NESTED_6_1: &[Entry] = &[
    Entry::patch(
        Switch::NESTED_VMCB02,
        Scope::AMD,
        "L2 has a VMCB of its own, vmcb02, which keeps its state between runs; of vmcb12's clean bits those of \
         segments, descriptor tables and debug registers are honoured",
    )
    .commit("4995a3685f1b", "KVM: SVM: Use a separate vmcb for the nested L2 guest")
    .source("svm/nested.c nested_vmcb02_prepare_save()")
    .since("v5.13"),
    Entry::patch(
        Switch::NESTED_GIF_TAKES_INIT,
        Scope::AMD,
        "A pending INIT is taken as soon as GIF is set; before, at the next event that something else makes KVM \
         look for",
    )
    .commit("0bba8fc24c75", "KVM: SVM: Make an event request if INIT or SIPI is pending when GIF is set")
    .source("svm/svm.c svm_set_gif()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_WALK_OF_L1,
        Scope::NPT,
        "L1's nested tables are walked by L1's CR0, CR4 and EFER of VMRUN; before, by L2's",
    )
    .commit("in 6.1.192, not in 5.10.262", "(subject unverified)")
    .source("svm/nested.c nested_svm_init_mmu_context()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_GUEST_MODE_FIRST,
        Scope::NPT,
        "Guest mode is entered before the MMU for L1's nested tables is made, so that their role has it",
    )
    .commit("in stable 6.1.129", "KVM: nSVM: Enter guest mode before initializing nested NPT MMU")
    .source("svm/nested.c nested_vmcb02_prepare_control(); stable 6.1.129, 6.12.16")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_TSC_OF_L1,
        Scope::AMD,
        "#VMEXIT loads L1's TSC multiplier by L1's state and not by L2's",
    )
    .commit("in stable 6.1.54", "KVM: nSVM: Load L1's TSC multiplier based on L1 state, not L2 state")
    .source("svm/nested.c nested_svm_vmexit(); stable 6.1.54")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_CHECK_TLB_CTL,
        Scope::AMD,
        "VMRUN fails on a TLB_CONTROL other than 0 and 1 (which values: unverified)",
    )
    .commit("174a921b6975", "nSVM: Check for reserved encodings of TLB_CONTROL in nested VMCB")
    .source("svm/nested.c __nested_vmcb_check_controls(); stable 6.1.0 to 6.1.75")
    .since("v5.16")
    .until("v6.1", "reverted in stable 6.1.76"),
    Entry::patch(
        Switch::NESTED_SYNTHETIC_CODE_HIGH,
        Scope::AMD,
        "An exit that KVM makes up for L1 has a high half of zero; before, what the last exit left",
    )
    .commit("in stable 6.1.160", "KVM: nSVM: Clear exit_code_hi in VMCB when synthesizing nested VM-Exits")
    .source("svm/nested.c nested_svm_simple_vmexit(); stable 6.1.160, 6.12.64")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_CR0_WRITE_FIRST,
        Scope::AMD,
        "Where KVM emulates a CR0 write of L2, the plain intercept goes before the selective one",
    )
    .commit("in stable 6.1.160", "KVM: nSVM: Avoid incorrect injection of SVM_EXIT_CR0_SEL_WRITE")
    .source("svm/svm.c svm_check_intercept(); stable 6.1.160, 6.12.64")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_VMRUN_MARKS_DIRTY,
        Scope::AMD,
        "VMRUN clears the clean bits of permission maps and of nCR3 with G_PAT in vmcb02",
    )
    .commit("in stable 6.1.160", "KVM: SVM: Mark VMCB_PERM_MAP as dirty on nested VMRUN")
    .source("svm/nested.c nested_vmcb02_prepare_control(); stable 6.1.160, 6.12.64")
    .since("v6.1"),
    Entry::patch(
        Switch::VMLOAD_ON_VMCB01,
        Scope::AMD,
        "VMLOAD and VMSAVE that KVM emulates work on vmcb01, where that state is; before, in L2 on vmcb02",
    )
    .commit("in stable 6.1.165", "KVM: nSVM: Always use vmcb01 in VMLOAD/VMSAVE emulation")
    .source("svm/svm.c vmload_vmsave_interception(); stable 6.1.165, 6.12.75")
    .since("v6.1"),
    Entry::patch(
        Switch::VMRUN_UNMAPPED_GP,
        Scope::AMD,
        "VMRUN raises #GP whatever keeps KVM from mapping vmcb12; before, memory of a device that could not be \
         mapped skipped the instruction",
    )
    .commit("01ddcdc55e09", "KVM: nSVM: Always inject a #GP if mapping VMCB12 fails on nested VMRUN")
    .source("svm/nested.c nested_svm_vmrun(); stable 6.1.175, 6.12.86")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_CHECK_CR0_HIGH,
        Scope::AMD,
        "VMRUN fails on bits 63:32 of CR0",
    )
    .commit("in 6.1.192, not in 5.10.262", "KVM: nSVM: Add missing consistency check for EFER, CR0, CR4, and CS")
    .source("svm/nested.c __nested_vmcb_check_save()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_CHECK_EFER,
        Scope::AMD,
        "VMRUN fails on EFER bits that L1 could not set itself",
    )
    .commit("96bd3e76a171", "KVM: nSVM: Add missing consistency check for EFER, CR0, CR4, and CS")
    .source("svm/nested.c __nested_vmcb_check_save(); stable 6.1.175, 6.12.86")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_CHECK_CS,
        Scope::AMD,
        "VMRUN fails on CS.L with CS.D in long mode",
    )
    .commit("96bd3e76a171", "KVM: nSVM: Add missing consistency check for EFER, CR0, CR4, and CS")
    .source("svm/nested.c __nested_vmcb_check_save(); stable 6.1.175, 6.12.86")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_CHECK_NCR3,
        Scope::AMD,
        "VMRUN fails on an nCR3 beyond L1's width",
    )
    .commit("b71138fcc362", "KVM: nSVM: Add missing consistency check for nCR3 validity")
    .source("svm/nested.c __nested_vmcb_check_controls(); stable 6.1.175, 6.12.86")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_CHECK_MAPS,
        Scope::AMD,
        "VMRUN fails on permission maps beyond L1's width",
    )
    .commit("in 6.1.192, not in 5.10.262", "KVM: nSVM: Check addresses of MSR and IO permission maps")
    .source("svm/nested.c nested_svm_check_bitmap_pa()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_CR2_OF_VCPU,
        Scope::AMD,
        "vmcb12 gets the CR2 that KVM keeps; before, vmcb02's, without what KVM injected",
    )
    .commit("5c247d08bc81", "KVM: nSVM: Use vcpu->arch.cr2 when updating vmcb12 on nested #VMEXIT")
    .source("svm/nested.c nested_svm_vmexit(); stable 6.1.175, 6.12.86")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_NEXT_RIP_SYNCED,
        Scope::AMD,
        "The next RIP of L2 is in the cached vmcb12 after each run, so that saved state has it",
    )
    .commit("778d8c1b2a6f", "KVM: nSVM: Sync NextRIP to cached vmcb12 after VMRUN of L2")
    .source("svm/svm.c svm_vcpu_run(); stable 6.1.175, 6.12.86")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_TRACKING_DROPPED,
        Scope::AMD,
        "#VMEXIT forgets that L1 injected an NMI or a software interrupt into L2",
    )
    .commit("8998e1d012f3", "KVM: nSVM: Clear tracking of L1->L2 NMI and soft IRQ on nested #VMEXIT")
    .source("svm/nested.c nested_svm_vmexit(); stable 6.1.175, 6.12.86")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_RESTORE_ALL_DIRTY,
        Scope::AMD,
        "KVM_SET_NESTED_STATE marks all of vmcb02 dirty; before, what KVM_SET_SREGS restored could count as clean",
    )
    .commit("e63fb1379f4b", "KVM: nSVM: Mark all of vmcb02 dirty when restoring nested state")
    .source("svm/nested.c svm_set_nested_state(); stable 6.1.175, 6.12.86")
    .since("v6.1"),
    Entry::patch(
        Switch::INVLPGA_CHECKED,
        Scope::AMD,
        "INVLPGA raises #UD without EFER.SVME and #GP outside ring 0 (CVE-2026-46082)",
    )
    .commit("d99df02ff427", "KVM: SVM: Inject #UD for INVLPGA if EFER.SVME=0")
    .source("svm/svm.c invlpga_interception(); stable 6.1.175, 6.12.86")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_ACTIVE_MSRPM,
        Scope::AMD,
        "Whether an MSR is intercepted is looked up in the map of the VMCB that runs (CVE-2026-98716)",
    )
    .commit("in stable 6.1.191", "KVM: SVM: Use the active VMCB's MSR bitmap when checking if MSR is intercepted")
    .source("svm/svm.c msr_write_intercepted(); stable 6.1.191, 6.12.113, 7.2.10")
    .since("v6.1"),
    Entry::patch(
        Switch::VMCB12_LBR_CLEAN_KEPT,
        Scope::AMD,
        "#VMEXIT no longer clears the clean bit of LBRs in vmcb12 (CVE-2026-46071)",
    )
    .commit("b53ab5167a81", "KVM: nSVM: Avoid clearing VMCB_LBR in vmcb12")
    .source("svm/svm.c svm_copy_lbrs(); stable 6.1.191, 6.12.114")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_NEXT_RIP_CACHED,
        Scope::AMD,
        "After the first run vmcb02's next RIP is that of the cached vmcb12 (CVE-2026-46059)",
    )
    .commit("8d397582f6b5", "KVM: nSVM: Always use NextRIP as vmcb02's NextRIP after first L2 VMRUN")
    .source("svm/nested.c nested_vmcb02_prepare_control(); stable 6.1.191, 6.12.114")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_HOST_CR3_SHUTDOWN,
        Scope::AMD,
        "#VMEXIT to an L1 whose CR3 is no longer legal is a triple fault; before, the rest of the exit was left \
         out (CVE-2026-46032)",
    )
    .commit("5d291ef0585e", "KVM: nSVM: Triple fault if restore host CR3 fails on nested #VMEXIT")
    .source("svm/nested.c nested_svm_vmexit(); stable 6.1.191, 6.12.114")
    .since("v6.1"),
    Entry::patch(
        Switch::HSAVE_PA_REQUIRED,
        Scope::AMD,
        "VMRUN raises #GP while VM_HSAVE_PA is zero",
    )
    .commit("in 6.1.192, not in 5.10.262", "(subject unverified)")
    .source("svm/nested.c nested_svm_vmrun()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_EXCEPTIONS_APART,
        Scope::AMD,
        "An exception that L1 intercepts is queued as an exit of its own and never merged into a double fault; \
         before, merged first",
    )
    .commit("7709aba8f716", "KVM: x86: Morph pending exceptions to pending VM-Exits at queue time")
    .source("svm/nested.c nested_svm_inject_exception_vmexit()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_TRIPLE_FAULT,
        Scope::AMD,
        "A triple fault that KVM makes in L2 is a SHUTDOWN exit for an L1 that intercepts it",
    )
    .commit("92e7d5c83aff", "KVM: x86: allow L1 to not intercept triple fault")
    .source("svm/nested.c nested_svm_triple_fault()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_EXIT_SINGLE_STEPS,
        Scope::AMD,
        "After #VMEXIT an L1 that single-steps VMRUN gets its #DB",
    )
    .commit("9a7de6ecc3ed", "KVM: nSVM: If VMRUN is single-stepped, queue the #DB intercept in nested_svm_vmexit()")
    .source("svm/nested.c nested_svm_vmexit()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_LBRV,
        Scope::AMD,
        "L1 may virtualize the LBRs of L2",
    )
    .commit("d20c796ca370", "KVM: x86: nSVM: implement nested LBR virtualization")
    .source("svm/nested.c nested_vmcb02_prepare_save()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_VLS,
        Scope::AMD,
        "L1 may virtualize VMLOAD and VMSAVE of L2",
    )
    .commit("b9f3973ab3a8", "KVM: x86: nSVM: implement nested VMLOAD/VMSAVE")
    .source("svm/nested.c nested_vmcb_needs_vls_intercept()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_VGIF,
        Scope::AMD,
        "L1 may give L2 a GIF of its own",
    )
    .commit("0b349662184b", "KVM: x86: nSVM: implement nested vGIF")
    .source("svm/nested.c nested_vmcb02_prepare_control()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_PAUSE_FILTER,
        Scope::AMD,
        "CPUID tells L1 of the pause filter, which starts from L0's counts; before, L1's were used as they were \
         and written back",
    )
    .commit("74fd41ed16fd", "KVM: x86: nSVM: support PAUSE filtering when L0 doesn't intercept PAUSE")
    .source("svm/nested.c nested_vmcb02_prepare_control()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_SET_CHECKS_L1,
        Scope::AMD,
        "KVM_SET_NESTED_STATE checks L1's saved state as VMRUN checks L2's, and loads CR3; before, only CR0.PG \
         and EFER.SVME",
    )
    .commit("in 6.1.192, not in 5.10.262", "(subject unverified)")
    .source("svm/nested.c svm_set_nested_state()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_SET_GIF,
        Scope::AMD,
        "KVM_SET_NESTED_STATE sets GIF in guest mode too",
    )
    .commit("in 6.1.192, not in 5.10.262", "(subject unverified)")
    .source("svm/nested.c svm_set_nested_state()")
    .since("v6.1"),
    Entry::patch(
        Switch::VMCBCLEAN_TOLD,
        Scope::AMD,
        "CPUID tells L1 of VMCB clean bits, and that RAX of SVM's instructions is checked before their intercepts",
    )
    .commit("in 6.1.192, not in 5.10.262", "(subject unverified)")
    .source("svm/svm.c svm_set_cpu_caps()")
    .since("v6.1"),
    Entry::patch(
        Switch::NESTED_ENTRIES_TRACED,
        Scope::AMD,
        "kvm_nested_vmenter traces a VMRUN, with RIP behind it, and kvm_nested_vmenter_failed the check that \
         failed; before, kvm_nested_vmrun with RIP at it",
    )
    .commit("in 6.1.192, not in 5.10.262", "(subject unverified)")
    .source("trace.h")
    .since("v6.1"),
];

/// What 6.12.117 has and 6.1.192 has not.
pub const NESTED_6_12: &[Entry] = &[
    Entry::patch(
        Switch::NESTED_CR3_WITHOUT_LAM,
        Scope::AMD,
        "The check of CR3 leaves out LAM's bits, which AMD's silicon does not have here",
    )
    .commit("in 6.12.107, not in 6.1.192", "(subject unverified)")
    .source("svm/nested.c __nested_vmcb_check_save()")
    .since("v6.12"),
    Entry::patch(
        Switch::FLUSHBYASID_TOLD,
        Scope::AMD,
        "CPUID tells L1 of flushes by ASID",
    )
    .commit("in 6.12.107, not in 6.1.192", "(subject unverified)")
    .source("svm/svm.c svm_set_cpu_caps()")
    .since("v6.12"),
    Entry::patch(
        Switch::NESTED_VNMI,
        Scope::AMD,
        "L1 may virtualize the NMIs of L2; VMRUN fails if it does without intercepting NMIs",
    )
    .commit("in 6.12.107, not in 6.1.192", "(subject unverified)")
    .source("svm/nested.c __nested_vmcb_check_controls()")
    .since("v6.12"),
    Entry::patch(
        Switch::NESTED_EVENT_INJ_CLEARED,
        Scope::AMD,
        "#VMEXIT and a failed VMRUN clear EVENTINJ in vmcb12; before, it was written back from the cache, or left",
    )
    .commit("69b721a86d0d", "KVM: nSVM: Clear EVENTINJ fields in vmcb12 on nested #VMEXIT")
    .source("svm/nested.c nested_svm_vmexit(); stable 6.12.86")
    .since("v6.12"),
    Entry::patch(
        Switch::NESTED_VMMCALL_INTERCEPTED,
        Scope::AMD,
        "VMMCALL of L2 that L1 does not intercept is #UD; before, an endless loop of #UD exits (CVE-2026-46076)",
    )
    .commit("33d3617a52f9", "KVM: nSVM: Always intercept VMMCALL when L2 is active")
    .source("svm/nested.c recalc_intercepts(); stable 6.12.86")
    .since("v6.12"),
    Entry::patch(
        Switch::NESTED_LBR_SIMPLIFIED,
        Scope::AMD,
        "The LBRs are always copied, from vmcb12 or from vmcb01, and DEBUGCTL.LBR decides",
    )
    .commit("in stable 6.12.61", "KVM: nSVM: Fix and simplify LBR virtualization handling with nested")
    .source("svm/nested.c nested_vmcb02_prepare_save(); stable 6.12.61")
    .since("v6.12"),
    Entry::patch(
        Switch::LBR_MSRS_SAVED,
        Scope::AMD,
        "A VMM can write the LBR MSRs, and nested state has L1's (CVE-2026-46014)",
    )
    .commit("3700f0788da6", "KVM: SVM: Add missing save/restore handling of LBR MSRs")
    .source("svm/svm.c svm_set_msr(), svm/nested.c svm_copy_vmrun_state(); stable 6.12.114")
    .since("v6.12"),
    Entry::patch(
        Switch::NESTED_WINDOW_KEPT,
        Scope::AMD,
        "While L2 runs under V_INTR_MASKING, L0's interrupt window stays intercepted if L1 has interrupts \
         enabled, and CR8 reads stay as they are",
    )
    .commit("in 6.12.107, not in 6.1.192", "(subject unverified)")
    .source("svm/nested.c recalc_intercepts()")
    .since("v6.12"),
    Entry::patch(
        Switch::VMRUN_FAILED_KEEPS,
        Scope::AMD,
        "A VMRUN that silicon fails leaves TLB_CONTROL and clean bits as they were (CVE-2026-98714, \
         CVE-2026-98715)",
    )
    .commit("in stable 6.12.117", "KVM: SVM: Preserve TLB control (i.e. pending TLB flush) on failed VMRUN")
    .source("svm/svm.c svm_vcpu_run(); stable 6.12.117, 7.2.10")
    .since("v6.12"),
    Entry::patch(
        Switch::ASID_OF_BOTH_VMCBS,
        Scope::AMD,
        "A vCPU on another CPU gets a new ASID for both its VMCBs; before, for the one that runs",
    )
    .commit("in stable 6.12.117", "KVM: SVM: Trigger new ASID allocation in both VMCBs on pCPU switch")
    .source("svm/svm.c svm_vcpu_load(); stable 6.12.117, 7.3.2; not in 7.2.13")
    .since("v6.12")
    .until("v6.13", "newer than 7.2.13"),
    Entry::patch(
        Switch::NESTED_LMA_IGNORED,
        Scope::AMD,
        "EFER.LMA of vmcb12 is ignored without LME",
    )
    .commit("in stable 6.12.117", "KVM: nSVM: Ignore EFER.LMA if EFER.LME=0 when preparing L2 state")
    .source("svm/nested.c nested_vmcb02_prepare_save(); stable 6.12.117, 7.3.2; not in 7.2.13")
    .since("v6.12")
    .until("v6.13", "newer than 7.2.13"),
    Entry::patch(
        Switch::NESTED_PAGES_REQUESTED_AGAIN,
        Scope::AMD,
        "Nested state whose pages cannot be read ends each KVM_RUN with an internal error; before, only the first \
         one, and L2 then ran with L0's map (CVE-2026-98863)",
    )
    .commit("in stable 6.12.117", "KVM: x86: Re-pend GET_NESTED_STATE_PAGES if getting said pages fails")
    .source("x86.c vcpu_enter_guest(); stable 6.12.117, 7.2.10")
    .since("v6.12"),
    Entry::patch(
        Switch::NESTED_SET_CHECKS_LMA,
        Scope::AMD,
        "KVM_SET_NESTED_STATE refuses an L1 with EFER.LMA and without LME",
    )
    .commit("in stable 6.12.118", "(subject unverified)")
    .source("svm/nested.c svm_set_nested_state(); stable 6.12.118, 7.3.2: newer than the four profiles"),
    Entry::patch(
        Switch::NESTED_DUMMY_ROOT,
        Scope::NPT,
        "An nCR3 in no memory slot gives L2 a nested page fault; before, a triple fault",
    )
    .commit("in 6.12.107, not in 6.1.192", "(subject unverified)")
    .source("mmu/mmu.c mmu_alloc_shadow_roots()")
    .since("v6.12"),
];

/// What 7.2.13 has and 6.12.118 has not.
pub const NESTED_7_2: &[Entry] = &[
    Entry::patch(
        Switch::NESTED_SANITIZED,
        Scope::AMD,
        "The cached vmcb12 loses what L1's CPUID does not have: NP_ENABLE, intercepts of missing instructions, \
         reserved bits of events",
    )
    .commit("c8123e827256", "KVM: nSVM: Sanitize INT/EVENTINJ fields when copying from vmcb12")
    .source("svm/nested.c __nested_copy_vmcb_control_to_cache()")
    .since("v7.2"),
    Entry::patch(
        Switch::NESTED_CHECK_EVENT_INJ,
        Scope::AMD,
        "VMRUN fails on an EVENTINJ of a reserved type, or of an exception that L1 does not have",
    )
    .commit("7e79f71bca5c", "KVM: nSVM: Add missing consistency check for EVENTINJ")
    .source("svm/nested.c nested_svm_check_event_inj()")
    .since("v7.2"),
    Entry::patch(
        Switch::VMRUN_CHECKS_FIRST,
        Scope::AMD,
        "VMRUN is skipped after its checks; before, it was skipped first, and KVM queued the #DB of one that L1 steps through and that \
         fails them",
    )
    .commit("in 7.2.13, not in 6.12.118", "(subject unverified)")
    .source("svm/nested.c nested_svm_vmrun()")
    .since("v7.2"),
    Entry::patch(
        Switch::VMCB_ADDRESS_CHECKED,
        Scope::AMD,
        "RAX of VMRUN, VMLOAD and VMSAVE is cut to the mode's width, and must be aligned and within L1's width; \
         before, 64 bits with the low ones dropped",
    )
    .commit("d2fbeb61e145", "KVM: SVM: Move RAX legality check to SVM insn interception handlers")
    .source("svm/nested.c nested_svm_vmrun(), svm/svm.c vmload_vmsave_interception()")
    .since("v7.2"),
    Entry::patch(
        Switch::VMCB_UNMAPPED_INTERNAL_ERROR,
        Scope::AMD,
        "A VMCB address without memory is KVM_EXIT_INTERNAL_ERROR",
    )
    .commit("2daf71bfd77d", "KVM: nSVM: Fail emulation of VMRUN/VMLOAD/VMSAVE if mapping vmcb12 fails")
    .source("svm/nested.c nested_svm_vmrun()")
    .since("v7.2"),
    Entry::patch(
        Switch::NESTED_EXIT_UNMAPPED_SHUTDOWN,
        Scope::AMD,
        "#VMEXIT to a vmcb12 that cannot be mapped is a triple fault; before, L2 went on",
    )
    .commit("1b30e7551767", "KVM: nSVM: Triple fault if mapping VMCB12 fails on nested #VMEXIT")
    .source("svm/nested.c nested_svm_vmexit()")
    .since("v7.2"),
    Entry::patch(
        Switch::NPF_STAGE_OF_WALK,
        Scope::NPT,
        "A nested page fault that KVM found in emulation tells L1 its own address and stage; before, those of the \
         exit that led there",
    )
    .commit("in 7.2.13, not in 6.12.118", "(subject unverified)")
    .source("svm/nested.c nested_svm_inject_npf_exit()")
    .since("v7.2"),
    Entry::patch(
        Switch::SVME_CLEARED_SHUTDOWN,
        Scope::AMD,
        "L2 that clears EFER.SVME is a triple fault; before, it went on as L1",
    )
    .commit("cdc69269b18a", "KVM: SVM: Triple fault L1 on unintercepted EFER.SVME clear by L2")
    .source("svm/svm.c svm_set_efer()")
    .since("v7.2"),
    Entry::patch(
        Switch::NESTED_PAUSE_OF_L1,
        Scope::AMD,
        "PAUSE of L2 is intercepted exactly where L1 wants it, with L1's counts",
    )
    .commit("in 7.2.13, not in 6.12.118", "(subject unverified)")
    .source("svm/nested.c recalc_intercepts()")
    .since("v7.2"),
    Entry::patch(
        Switch::NESTED_MSRPM_BYTES,
        Scope::AMD,
        "L1's MSR map is read in 8-byte chunks to merge it, and by the byte for an exit; before, by 4 bytes",
    )
    .commit("in 7.2.13, not in 6.12.118", "(subject unverified)")
    .source("svm/nested.c nested_svm_merge_msrpm(), nested_svm_exit_handled_msr()")
    .since("v7.2"),
    Entry::patch(
        Switch::NESTED_STATE_NEEDS_NESTED,
        Scope::AMD,
        "With nested=0 the ioctls of nested state are refused, and their capability is zero",
    )
    .commit("in stable 7.2.9", "(subject unverified)")
    .source("x86.c kvm_arch_vcpu_ioctl(); stable 7.2.9")
    .since("v7.2"),
    Entry::patch(
        Switch::NESTED_SET_GIF_FREE,
        Scope::AMD,
        "KVM_SET_NESTED_STATE takes GIF=0 with EFER.SVME=0",
    )
    .commit("in 7.2.13, not in 6.12.118", "(subject unverified)")
    .source("svm/nested.c svm_set_nested_state()")
    .since("v7.2"),
    Entry::patch(
        Switch::NESTED_WALK_WP,
        Scope::NPT,
        "L1's nested tables are walked with CR0.WP=1 and without SMAP; before, with WP=0 and L1's SMAP",
    )
    .commit("in 7.2.13, not in 6.12.118", "(subject unverified)")
    .source("svm/nested.c nested_svm_init_mmu_context()")
    .since("v7.2"),
    Entry::patch(
        Switch::DEBUGCTL_RESERVED_GP,
        Scope::AMD,
        "A write of DEBUGCTL[5:2] raises #GP; before, the bits were dropped",
    )
    .commit("in 7.2.13, not in 6.12.118", "(subject unverified)")
    .source("svm/svm.c svm_set_msr()")
    .since("v7.2"),
    Entry::patch(
        Switch::LBR_MSRS_VIRTUAL,
        Scope::AMD,
        "With LBR virtualization DEBUGCTL is the VMCB's, of which LBR alone is kept; before 6.12.19 BTF too",
    )
    .commit("in stable 6.12.19", "KVM: SVM: Suppress DEBUGCTL.BTF on AMD")
    .source("svm/svm.c svm_set_msr(); stable 6.12.19")
    .since("v6.12"),
    Entry::patch(
        Switch::SVM_INTERCEPTED_WITHOUT_SVME,
        Scope::AMD,
        "STGI and CLGI of a guest whose EFER.SVME is clear raise #UD; before, virtual GIF let silicon execute them",
    )
    .commit("460c7eb2e759", "KVM: SVM: Recalc instructions intercepts when EFER.SVME is toggled")
    .source("svm/svm.c svm_recalc_instruction_intercepts()")
    .since("v7.2"),
];
