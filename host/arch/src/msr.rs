//! Model-specific registers by number.

use crate::{level::Level, open_enum};
use serde::{Deserialize, Serialize};

/// IA32_PAT after reset. See: SDM vol. 3A 12.12.4 Programming the PAT
pub const PAT_POWER_ON: u64 = 0x0007_0406_0007_0406;

open_enum! {
    /// Which page-attribute table an access to IA32_PAT reached.
    pub struct ReachedPat(u8) {
        /// The one that there is, whichever level runs; or the access was to another MSR.
        ONLY = 0 => "PAT",
        /// L1's, where L2 has one of its own.
        HPAT = 1 => "hPAT",
        /// L2's own.
        GPAT = 2 => "gPAT",
    }
}

/// One access to an MSR: whose, who let it through, and what it reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrAccess {
    /// What was written, or what the read gave.
    pub value: u64,
    pub index: u32,
    pub write: bool,
    /// The access gave #GP.
    pub exception: bool,
    /// No guest's instruction: an ioctl, or a switch of worlds.
    pub host_initiated: bool,
    /// It was not intercepted: silicon did it.
    pub passed: bool,
    /// Who was running.
    pub level: Level,
    pub pat: ReachedPat,
    pub pad: [u8; 6],
}

open_enum! {
    /// MSR numbers with the kernel's names. See: SDM vol. 4 and APM vol. 2 appendix A
    pub struct Msr(u32) {
        IA32_TSC = 0x10 => "IA32_TSC",
        IA32_APIC_BASE = 0x1b => "IA32_APIC_BASE",
        IA32_FEAT_CTL = 0x3a => "IA32_FEAT_CTL",
        IA32_TSC_ADJUST = 0x3b => "IA32_TSC_ADJUST",
        IA32_SPEC_CTRL = 0x48 => "IA32_SPEC_CTRL",
        IA32_PRED_CMD = 0x49 => "IA32_PRED_CMD",
        IA32_UCODE_REV = 0x8b => "IA32_UCODE_REV",
        MTRRCAP = 0xfe => "MTRRcap",
        IA32_ARCH_CAPABILITIES = 0x10a => "IA32_ARCH_CAPABILITIES",
        IA32_FLUSH_CMD = 0x10b => "IA32_FLUSH_CMD",
        IA32_SYSENTER_CS = 0x174 => "IA32_SYSENTER_CS",
        IA32_SYSENTER_ESP = 0x175 => "IA32_SYSENTER_ESP",
        IA32_SYSENTER_EIP = 0x176 => "IA32_SYSENTER_EIP",
        IA32_MCG_CAP = 0x179 => "IA32_MCG_CAP",
        IA32_MCG_STATUS = 0x17a => "IA32_MCG_STATUS",
        IA32_MISC_ENABLE = 0x1a0 => "IA32_MISC_ENABLE",
        IA32_DEBUGCTL = 0x1d9 => "IA32_DEBUGCTL",
        LASTBRANCHFROMIP = 0x1db => "LASTBRANCHFROMIP",
        LASTBRANCHTOIP = 0x1dc => "LASTBRANCHTOIP",
        LASTINTFROMIP = 0x1dd => "LASTINTFROMIP",
        LASTINTTOIP = 0x1de => "LASTINTTOIP",
        IA32_PAT = 0x277 => "IA32_PAT",
        MTRR_DEF_TYPE = 0x2ff => "MTRRdefType",
        IA32_PERF_CAPABILITIES = 0x345 => "IA32_PERF_CAPABILITIES",
        IA32_VMX_EPT_VPID_CAP = 0x48c => "IA32_VMX_EPT_VPID_CAP",
        IA32_TSC_DEADLINE = 0x6e0 => "IA32_TSC_DEADLINE",
        X2APIC_FIRST = 0x800 => "x2APIC (first)",
        X2APIC_LAST = 0x8ff => "x2APIC (last)",
        IA32_XSS = 0xda0 => "IA32_XSS",
        EFER = 0xc000_0080 => "EFER",
        STAR = 0xc000_0081 => "STAR",
        LSTAR = 0xc000_0082 => "LSTAR",
        CSTAR = 0xc000_0083 => "CSTAR",
        SYSCALL_MASK = 0xc000_0084 => "SYSCALL_MASK",
        FS_BASE = 0xc000_0100 => "FS_BASE",
        GS_BASE = 0xc000_0101 => "GS_BASE",
        KERNEL_GS_BASE = 0xc000_0102 => "KERNEL_GS_BASE",
        TSC_AUX = 0xc000_0103 => "TSC_AUX",
        TSC_RATIO = 0xc000_0104 => "TSC_RATIO",
        VM_CR = 0xc001_0114 => "VM_CR",
        VM_IGNNE = 0xc001_0115 => "VM_IGNNE",
        VM_HSAVE_PA = 0xc001_0117 => "VM_HSAVE_PA",
    }
}
