//! What KVM checks of the VMCB that an L1 hypervisor runs, as its tracepoint names it.
//!
//! See: KVM arch/x86/kvm/svm/nested.c __nested_vmcb_check_save(), __nested_vmcb_check_controls(), nested_svm_load_cr3(); trace.h
//! kvm_nested_vmenter_failed

use crate::open_enum;

open_enum! {
    /// Why a VMRUN fails, as `kvm_nested_vmenter_failed` prints it: the condition in the words of KVM's source.
    pub struct VmrunCheck(u32) {
        SVME_CLEAR = 1 => "!(save->efer & EFER_SVME)",
        NW_WITHOUT_CD = 2 => "(save->cr0 & X86_CR0_CD) == 0 && (save->cr0 & X86_CR0_NW)",
        CR0_HIGH = 3 => "save->cr0 & ~0xffffffffULL",
        DR6_HIGH = 4 => "!kvm_dr6_valid(save->dr6)",
        DR7_HIGH = 5 => "!kvm_dr7_valid(save->dr7)",
        LONG_MODE_WITHOUT_PAE = 6 => "!(save->cr4 & X86_CR4_PAE)",
        LONG_MODE_WITHOUT_PE = 7 => "!(save->cr0 & X86_CR0_PE)",
        CR3_ILLEGAL = 8 => "!kvm_vcpu_is_legal_cr3(vcpu, save->cr3)",
        CS_LONG_AND_DEFAULT = 9 => "(save->cs.attrib & SVM_SELECTOR_L_MASK) && (save->cs.attrib & SVM_SELECTOR_DB_MASK)",
        CR4_INVALID = 10 => "!__kvm_is_valid_cr4(vcpu, save->cr4)",
        EFER_INVALID = 11 => "!kvm_valid_efer(vcpu, save->efer)",
        G_PAT_INVALID = 12 => "!kvm_pat_valid(save->g_pat)",
        VMRUN_NOT_INTERCEPTED = 20 => "!vmcb12_is_intercept(control, INTERCEPT_VMRUN)",
        ASID_ZERO = 21 => "control->asid == 0",
        NP_WITHOUT_NPT = 22 => "(control->nested_ctl & SVM_NESTED_CTL_NP_ENABLE) && !npt_enabled",
        NCR3_ILLEGAL = 23 =>
            "(control->nested_ctl & SVM_NESTED_CTL_NP_ENABLE) && !kvm_vcpu_is_legal_gpa(vcpu, control->nested_cr3)",
        TLB_CTL_RESERVED = 24 => "!nested_svm_check_tlb_ctl(vcpu, control->tlb_ctl)",
        MSRPM_ILLEGAL = 25 => "!nested_svm_check_bitmap_pa(vcpu, control->msrpm_base_pa, MSRPM_SIZE)",
        IOPM_ILLEGAL = 26 => "!nested_svm_check_bitmap_pa(vcpu, control->iopm_base_pa, IOPM_SIZE)",
        VNMI_WITHOUT_NMI = 27 =>
            "(control->int_ctl & V_NMI_ENABLE_MASK) && !vmcb12_is_intercept(control, INTERCEPT_NMI)",
        EVENT_INJ_INVALID = 28 => "!nested_svm_check_event_inj(vcpu, control->event_inj)",
        // The same checks in the words of other releases: 6.1 of CR3, 7.2 of nCR3.
        CR3_ILLEGAL_GPA = 30 => "kvm_vcpu_is_illegal_gpa(vcpu, save->cr3)",
        NCR3_ILLEGAL_MISC_CTL = 31 =>
            "(control->misc_ctl & SVM_MISC_ENABLE_NP) && !kvm_vcpu_is_legal_gpa(vcpu, control->nested_cr3)",
        // Not of the VMCB, but of CR3 when it is loaded.
        CR3_NOT_LEGAL = 40 => "!kvm_vcpu_is_legal_cr3(vcpu, cr3)",
        PDPTES_NOT_LOADED = 41 => "!load_pdptrs(vcpu, cr3)",
    }
}
