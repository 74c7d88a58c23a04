//! Which MSRs KVM tells a VMM of: those to save with a vCPU, and those that define its model.
//!
//! The lists are those of Linux 5.10, 6.1 and 6.12. Left out is what the modelled silicon and kernel never have: bound
//! registers, processor trace, XFD, the TSX control, performance counters of Intel's (`enable_pmu` is off), and Hyper-V's
//! enlightenments (CONFIG_KVM_HYPERV).
//!
//! See: KVM x86.c msrs_to_save_base[], msrs_to_save_pmu[], emulated_msrs_all[], kvm_init_msr_lists()

use crate::{
    cpuid::{Feature, feature},
    profile::{Options, Switch},
    smm::Smm,
};
use vmtape_arch::{
    cpuid::CpuidEntry,
    host::{Silicon, Vendor},
};

/// When a register is in a list.
enum When {
    Always,
    /// The silicon is this vendor's.
    Vendor(Vendor),
    /// RDMSR works on the silicon: it has one of these features.
    Silicon(&'static [Feature]),
    /// KVM gives a guest one of these features, and the silicon has it.
    Supported(&'static [Feature]),
    /// The silicon is AMD's, and KVM has the change.
    AmdSince(Switch),
    /// KVM has the change.
    Since(Switch),
    /// KVM has SMM.
    Smm,
    /// The silicon is AMD's, and KVM does not have the change.
    AmdUntil(Switch),
}

/// `msrs_to_save_base[]` and `msrs_to_save_pmu[]`: registers of silicon.
const TO_SAVE: &[(u32, When)] = &[
    (0x174, When::Always), // MSR_IA32_SYSENTER_CS
    (0x175, When::Always),
    (0x176, When::Always),
    (0xc000_0081, When::Always),                                        // MSR_STAR
    (0xc000_0083, When::Always),                                        // MSR_CSTAR
    (0xc000_0102, When::Always),                                        // MSR_KERNEL_GS_BASE
    (0xc000_0084, When::Always),                                        // MSR_SYSCALL_MASK
    (0xc000_0082, When::Always),                                        // MSR_LSTAR
    (0x10, When::Always),                                               // MSR_IA32_TSC
    (0x277, When::Always),                                              // MSR_IA32_CR_PAT
    (0xc001_0117, When::Vendor(Vendor::AMD)),                           // MSR_VM_HSAVE_PA
    (0x3a, When::Vendor(Vendor::INTEL)),                                // MSR_IA32_FEAT_CTL
    (0xc000_0103, When::Supported(&[feature::RDTSCP, feature::RDPID])), // MSR_TSC_AUX
    (
        0x48, // MSR_IA32_SPEC_CTRL
        When::Silicon(&[feature::SPEC_CTRL, feature::AMD_IBRS, feature::AMD_STIBP, feature::AMD_SSBD]),
    ),
    (0xe1, When::Supported(&[feature::WAITPKG])), // MSR_IA32_UMWAIT_CONTROL
    (0x1d9, When::Since(Switch::LBR_MSRS_LISTED)), // MSR_IA32_DEBUGCTLMSR
    (0x1db, When::AmdSince(Switch::LBR_MSRS_LISTED)), // MSR_IA32_LASTBRANCHFROMIP
    (0x1dc, When::AmdSince(Switch::LBR_MSRS_LISTED)),
    (0x1dd, When::Since(Switch::LBR_MSRS_LISTED)), // MSR_IA32_LASTINTFROMIP
    (0x1de, When::Since(Switch::LBR_MSRS_LISTED)),
    (0xc001_0000, When::AmdUntil(Switch::PMU_MSRS_APART)), // MSR_K7_EVNTSEL0
    (0xc001_0001, When::AmdUntil(Switch::PMU_MSRS_APART)),
    (0xc001_0002, When::AmdUntil(Switch::PMU_MSRS_APART)),
    (0xc001_0003, When::AmdUntil(Switch::PMU_MSRS_APART)),
    (0xc001_0004, When::AmdUntil(Switch::PMU_MSRS_APART)), // MSR_K7_PERFCTR0
    (0xc001_0005, When::AmdUntil(Switch::PMU_MSRS_APART)),
    (0xc001_0006, When::AmdUntil(Switch::PMU_MSRS_APART)),
    (0xc001_0007, When::AmdUntil(Switch::PMU_MSRS_APART)),
];

/// `emulated_msrs_all[]` as `has_emulated_msr` of the vendor filters it; VMX's capabilities go with `nested`.
const EMULATED: &[(u32, When)] = &[
    (0x12, When::Always),                                      // MSR_KVM_SYSTEM_TIME
    (0x11, When::Always),                                      // MSR_KVM_WALL_CLOCK
    (0x4b56_4d01, When::Always),                               // MSR_KVM_SYSTEM_TIME_NEW
    (0x4b56_4d00, When::Always),                               // MSR_KVM_WALL_CLOCK_NEW
    (0x4b56_4d02, When::Always),                               // MSR_KVM_ASYNC_PF_EN
    (0x4b56_4d03, When::Always),                               // MSR_KVM_STEAL_TIME
    (0x4b56_4d04, When::Always),                               // MSR_KVM_PV_EOI_EN
    (0x4b56_4d06, When::Since(Switch::ASYNC_PF_INT)),          // MSR_KVM_ASYNC_PF_INT
    (0x4b56_4d07, When::Since(Switch::ASYNC_PF_INT)),          // MSR_KVM_ASYNC_PF_ACK
    (0x3b, When::Always),                                      // MSR_IA32_TSC_ADJUST
    (0x6e0, When::Always),                                     // MSR_IA32_TSC_DEADLINE
    (0x10a, When::Always),                                     // MSR_IA32_ARCH_CAPABILITIES
    (0x345, When::Always),                                     // MSR_IA32_PERF_CAPABILITIES
    (0x1a0, When::Always),                                     // MSR_IA32_MISC_ENABLE
    (0x17a, When::Always),                                     // MSR_IA32_MCG_STATUS
    (0x17b, When::Always),                                     // MSR_IA32_MCG_CTL
    (0x4d0, When::Vendor(Vendor::INTEL)),                      // MSR_IA32_MCG_EXT_CTL
    (0x9e, When::Smm),                                         // MSR_IA32_SMBASE
    (0x34, When::Always),                                      // MSR_SMI_COUNT
    (0xce, When::Always),                                      // MSR_PLATFORM_INFO
    (0x140, When::Always),                                     // MSR_MISC_FEATURES_ENABLES
    (0xc001_011f, When::Vendor(Vendor::AMD)),                  // MSR_AMD64_VIRT_SPEC_CTRL
    (0xc000_0104, When::AmdSince(Switch::NESTED_TSC_SCALING)), // MSR_AMD64_TSC_RATIO
    (0x1fc, When::Always),                                     // MSR_IA32_POWER_CTL
    (0x8b, When::Always),                                      // MSR_IA32_UCODE_REV
    (0xc001_0015, When::Always),                               // MSR_K7_HWCR
    (0x4b56_4d05, When::Always),                               // MSR_KVM_POLL_CONTROL
];

/// `msr_based_features_all[]` as `get_msr_feature` of the vendor filters it.
const FEATURES: &[(u32, When)] = &[
    (0xc001_1029, When::Vendor(Vendor::AMD)), // MSR_AMD64_DE_CFG
    (0x8b, When::Always),                     // MSR_IA32_UCODE_REV
    (0x10a, When::Always),                    // MSR_IA32_ARCH_CAPABILITIES
    (0x345, When::Always),                    // MSR_IA32_PERF_CAPABILITIES
];

/// What decides about a list.
pub struct Lists<'a> {
    pub host: &'a Silicon,
    pub options: &'a Options,
    /// The silicon's own CPUID, and what KVM_GET_SUPPORTED_CPUID gives of it.
    pub silicon: &'a [CpuidEntry],
    pub supported: &'a [CpuidEntry],
}

impl Lists<'_> {
    /// KVM_GET_MSR_INDEX_LIST, in KVM's order.
    pub fn to_save(&self) -> Vec<u32> {
        self.listed(TO_SAVE).chain(self.listed(EMULATED)).collect()
    }

    /// KVM_GET_MSR_FEATURE_INDEX_LIST, in KVM's order.
    pub fn features(&self) -> Vec<u32> {
        self.listed(FEATURES).collect()
    }

    fn listed(&self, all: &'static [(u32, When)]) -> impl Iterator<Item = u32> {
        all.iter().filter(|(_, when)| self.has(when)).map(|(index, _)| *index)
    }

    fn has(&self, when: &When) -> bool {
        let amd = self.host.vendor == Vendor::AMD;
        match when {
            When::Always => true,
            When::Vendor(vendor) => self.host.vendor == *vendor,
            When::Silicon(features) => features.iter().any(|feature| feature.is_in(self.silicon)),
            When::Supported(features) => features.iter().any(|feature| feature.is_in(self.supported)),
            When::AmdSince(switch) => amd && self.options.on(*switch),
            When::Since(switch) => self.options.on(*switch),
            When::Smm => Smm::is_supported(self.options),
            When::AmdUntil(switch) => amd && !self.options.on(*switch),
        }
    }
}

/// Whether some host lists the register: a VMM may read it and write 0 even where KVM does not know it.
/// See: KVM x86.c kvm_is_advertised_msr(), kvm_do_msr_access()
pub fn is_advertised(index: u32) -> bool {
    TO_SAVE.iter().chain(EMULATED).any(|(listed, _)| *listed == index)
}
