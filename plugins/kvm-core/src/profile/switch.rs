//! The switches by number and name.

use vmtape_arch::open_enum;

open_enum! {
    /// A switch by number; its name is how options spell it.
    pub struct Switch(u32) {
        // Module parameters.
        EPT = 1 => "ept",
        EPTAD = 2 => "eptad",
        ENABLE_APICV = 3 => "enable_apicv",
        UNRESTRICTED_GUEST = 4 => "unrestricted_guest",
        ALLOW_SMALLER_MAXPHYADDR = 5 => "allow_smaller_maxphyaddr",
        FLEXPRIORITY = 6 => "flexpriority",
        TDP_MMU = 7 => "tdp_mmu",
        MMIO_CACHING = 8 => "mmio_caching",
        FASTEOI = 13 => "fasteoi",
        PML = 14 => "pml",
        NPT = 15 => "npt",
        NRIPS = 16 => "nrips",
        // A quirk of the VM (KVM_CAP_DISABLE_QUIRKS2), without its prefix KVM_X86_QUIRK.
        FIX_HYPERCALL_INSN = 17 => "fix_hypercall_insn",
        /// Numbers from 100 on: patches. First those about guests narrower than their host.
        SMALLER_MAXPHYADDR = 100 => "smaller-maxphyaddr",
        SMALLER_MAXPHYADDR_DEFAULT_OFF = 101 => "smaller-maxphyaddr-default-off",
        PF_FIXUP = 102 => "pf-fixup",
        NEED_PF_INTERCEPT = 103 => "need-pf-intercept",
        EPT_VIOLATION_EMULATE = 104 => "ept-violation-emulate",
        PFEC_MASK_MATCH = 105 => "pfec-mask-match",
        TRANSLATE_GPA_CHECK = 106 => "translate-gpa-check",
        DECODE_KEEPS_FAULT = 107 => "decode-keeps-fault",
        PFEC_WITH_INTERCEPT = 108 => "pfec-with-intercept",
        PFEC_SKIPS_RSVD = 109 => "pfec-skips-rsvd",
        V1_RSVD_PF = 110 => "v1-rsvd-pf",
        V1_EPT_VIOLATION_CHECK = 111 => "v1-ept-violation-check",
        V1_EPT_MISCONFIG_CHECK = 112 => "v1-ept-misconfig-check",
        V1_NPF_CHECK = 113 => "v1-npf-check",
        V1_TRANSLATE_GPA_CHECK = 114 => "v1-translate-gpa-check",
        V2_NPF_EMULATE = 120 => "v2-npf-emulate",
        V2_SVM_NEED_PF_INTERCEPT = 121 => "v2-svm-need-pf-intercept",
        V2_SVM_PF_FIXUP = 122 => "v2-svm-pf-fixup",
        /// Addresses that the level below cannot map.
        GUEST_PHYS_BITS = 130 => "guest-phys-bits",
        MAXPHYADDR_NOT_GUEST_PHYS_BITS = 131 => "maxphyaddr-not-guest-phys-bits",
        EPT_5LEVEL_FLAG = 132 => "ept-5level-flag",
        EARLY_INTERNAL_ERROR_EXIT = 133 => "early-internal-error-exit",
        EARLY_MEMORY_FAULT_EXIT = 134 => "early-memory-fault-exit",
        CAP_ADVERTISED_GPA = 135 => "cap-advertised-gpa",
        MAX_USABLE_GPA_IOCTL = 136 => "max-usable-gpa-ioctl",
        MEMORY_FAULT_INFO = 137 => "memory-fault-info",
        EMULATION_FAILURE_DATA = 138 => "emulation-failure-data",
        /// KVM_SET_CPUID2 after KVM_RUN.
        WARN_CPUID_AFTER_RUN = 150 => "warn-cpuid-after-run",
        FORBID_CPUID_AFTER_RUN = 151 => "forbid-cpuid-after-run",
        ALLOW_SAME_CPUID = 152 => "allow-same-cpuid",
        FORBID_CPUID_IN_GUEST_MODE = 153 => "forbid-cpuid-in-guest-mode",
        ROLE_HAS_CPUID = 154 => "role-has-cpuid",
        GFN_TRACK_ON_DEMAND = 155 => "gfn-track-on-demand",
        CPUID_256_ENTRIES = 156 => "cpuid-256-entries",
        DROP_REFUSED_CPUID = 157 => "drop-refused-cpuid",
        KEEP_CPUID_ON_ERROR = 158 => "keep-cpuid-on-error",
        IMMUTABLE_FEATURE_MSRS = 159 => "immutable-feature-msrs",
        ACC_READ_MASK = 160 => "acc-read-mask",
        /// Dirty logging.
        PML_IN_WRITE_ORDER = 170 => "pml-in-write-order",
        DIRTY_LOG_INITIALLY_SET = 171 => "dirty-log-initially-set",
        DIRTY_LOG_RING = 172 => "dirty-log-ring",
        DIRTY_LOG_RING_ACQ_REL = 173 => "dirty-log-ring-acq-rel",
        /// What KVM tells a VMM to save.
        NESTED_TSC_SCALING = 190 => "nested-tsc-scaling",
        PMU_MSRS_APART = 191 => "pmu-msrs-apart",
        LBR_MSRS_LISTED = 192 => "lbr-msrs-listed",
        /// Numbers from 1000 on: silicon.
        EPT4_WIDE_GPA_VIOLATION = 1000 => "ept4-wide-gpa-violation",
        AMD_ACCESSED_BEFORE_NPF = 1001 => "amd-accessed-before-npf",
        NPT4_WIDE_GPA_FAULT = 1002 => "npt4-wide-gpa-fault",
        AMD_DIRTY_BEFORE_NPF = 1003 => "amd-dirty-before-npf",
        AMD_VMCB_CLEAN_BITS = 1004 => "amd-vmcb-clean-bits",
    }
}
