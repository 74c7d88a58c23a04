//! Names that the tracepoints print for numbers.

use std::fmt::Write;
use vmtape_arch::{
    exit::{Isa, SvmExitCode, VmxReason},
    open_enum,
};

open_enum! {
    /// `kvm_run.exit_reason` as `kvm_userspace_exit` prints it. Later reasons print as numbers.
    pub struct UserspaceReason(u32) {
        UNKNOWN = 0 => "KVM_EXIT_UNKNOWN",
        EXCEPTION = 1 => "KVM_EXIT_EXCEPTION",
        IO = 2 => "KVM_EXIT_IO",
        HYPERCALL = 3 => "KVM_EXIT_HYPERCALL",
        DEBUG = 4 => "KVM_EXIT_DEBUG",
        HLT = 5 => "KVM_EXIT_HLT",
        MMIO = 6 => "KVM_EXIT_MMIO",
        IRQ_WINDOW_OPEN = 7 => "KVM_EXIT_IRQ_WINDOW_OPEN",
        SHUTDOWN = 8 => "KVM_EXIT_SHUTDOWN",
        FAIL_ENTRY = 9 => "KVM_EXIT_FAIL_ENTRY",
        INTR = 10 => "KVM_EXIT_INTR",
        SET_TPR = 11 => "KVM_EXIT_SET_TPR",
        TPR_ACCESS = 12 => "KVM_EXIT_TPR_ACCESS",
        NMI = 16 => "KVM_EXIT_NMI",
        INTERNAL_ERROR = 17 => "KVM_EXIT_INTERNAL_ERROR",
        WATCHDOG = 21 => "KVM_EXIT_WATCHDOG",
        SYSTEM_EVENT = 24 => "KVM_EXIT_SYSTEM_EVENT",
        IOAPIC_EOI = 26 => "KVM_EXIT_IOAPIC_EOI",
        HYPERV = 27 => "KVM_EXIT_HYPERV",
        X86_RDMSR = 29 => "KVM_EXIT_X86_RDMSR",
        X86_WRMSR = 30 => "KVM_EXIT_X86_WRMSR",
    }
}

open_enum! {
    /// Registers of the local APIC.
    pub struct ApicRegister(u32) {
        ID = 0x20 => "APIC_ID",
        LVR = 0x30 => "APIC_LVR",
        TASKPRI = 0x80 => "APIC_TASKPRI",
        ARBPRI = 0x90 => "APIC_ARBPRI",
        PROCPRI = 0xa0 => "APIC_PROCPRI",
        EOI = 0xb0 => "APIC_EOI",
        RRR = 0xc0 => "APIC_RRR",
        LDR = 0xd0 => "APIC_LDR",
        DFR = 0xe0 => "APIC_DFR",
        SPIV = 0xf0 => "APIC_SPIV",
        ISR = 0x100 => "APIC_ISR",
        TMR = 0x180 => "APIC_TMR",
        IRR = 0x200 => "APIC_IRR",
        ESR = 0x280 => "APIC_ESR",
        ICR = 0x300 => "APIC_ICR",
        ICR2 = 0x310 => "APIC_ICR2",
        LVTT = 0x320 => "APIC_LVTT",
        LVTTHMR = 0x330 => "APIC_LVTTHMR",
        LVTPC = 0x340 => "APIC_LVTPC",
        LVT0 = 0x350 => "APIC_LVT0",
        LVT1 = 0x360 => "APIC_LVT1",
        LVTERR = 0x370 => "APIC_LVTERR",
        TMICT = 0x380 => "APIC_TMICT",
        TMCCT = 0x390 => "APIC_TMCCT",
        TDCR = 0x3e0 => "APIC_TDCR",
        SELF_IPI = 0x3f0 => "APIC_SELF_IPI",
        EFEAT = 0x400 => "APIC_EFEAT",
        ECTRL = 0x410 => "APIC_ECTRL",
    }
}

open_enum! {
    /// `kvm_mmio`'s type.
    pub struct MmioKind(u8) {
        UNSATISFIED_READ = 0 => "unsatisfied-read",
        READ = 1 => "read",
        WRITE = 2 => "write",
    }
}

/// `role.access` of a shadow page: bit 0 execute, bit 1 write, bit 2 user.
pub const ACCESS: [&str; 8] = ["---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux"];

/// Bits of a page-fault error code that have letters; the others print as one number.
const PFERR: [(u64, &str); 5] = [(1, "P"), (2, "W"), (4, "U"), (8, "RSVD"), (16, "F")];
/// Letters that releases from 7.2 on have besides.
const PFERR_LATER: [(u64, &str); 3] = [(1 << 5, "PK"), (1 << 6, "SS"), (1 << 15, "SGX")];

/// The letters of an error code, as `__print_flags` writes them.
pub fn pferr(code: u64) -> String {
    let mut rest = code;
    let mut words: Vec<String> = Vec::new();
    for (bit, name) in PFERR {
        if code & bit != 0 {
            words.push(name.to_owned());
            rest &= !bit;
        }
    }
    if rest != 0 {
        words.push(format!("{rest:#x}"));
    }
    words.join("|")
}

/// The inverse of [`pferr`].
pub fn parse_pferr(text: &str) -> Option<u64> {
    let mut code = 0;
    for word in text.split('|').filter(|word| !word.is_empty()) {
        let named = PFERR.iter().chain(&PFERR_LATER).find(|(_, name)| *name == word);
        code |= match named {
            Some((bit, _)) => *bit,
            None => u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()?,
        };
    }
    Some(code)
}

/// VMX: bits of the exit reason beside the basic reason.
const FAILED_VMENTRY: u32 = 1 << 31;

/// An exit reason as `kvm_exit` prints it.
pub fn reason(isa: Isa, reason: u32) -> String {
    let (basic, mut flags) = if isa == Isa::VMX { (reason & 0xffff, reason & !0xffff) } else { (reason, 0) };
    let name = vmtape_arch::exit::reason_name(isa, basic);
    let mut text = name.map_or_else(|| format!("{basic:#x}"), str::to_owned);
    if flags & FAILED_VMENTRY != 0 {
        text.push_str(" FAILED_VMENTRY");
        flags &= !FAILED_VMENTRY;
    }
    if flags != 0 {
        let _ = write!(text, " {flags:#x}");
    }
    text
}

/// The inverse of [`reason`]; a number says nothing about the architecture, which `last` does then.
pub fn parse_reason(text: &str, last: Isa) -> Option<(Isa, u32)> {
    if let Some(code) = SvmExitCode::from_name(text) {
        return Some((Isa::SVM, code.0));
    }
    let hex = |word: &str| u32::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let mut words = text.split(' ');
    let first = words.next()?;
    let (isa, mut reason) = match VmxReason::from_name(first) {
        Some(reason) => (Isa::VMX, reason.0),
        None => (last, hex(first)?),
    };
    for word in words {
        reason |= if word == "FAILED_VMENTRY" { FAILED_VMENTRY } else { hex(word)? };
    }
    Some((isa, reason))
}
