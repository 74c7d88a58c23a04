//! The registers that a tape tells by mask ([`Registers::mask`](crate::event::Registers::mask)).

use vmtape_arch::open_enum;

open_enum! {
    /// A register by the number of its bit.
    pub struct Register(u32) {
        RAX = 0 => "rax",
        RCX = 1 => "rcx",
        RDX = 2 => "rdx",
        RBX = 3 => "rbx",
        RSP = 4 => "rsp",
        RBP = 5 => "rbp",
        RSI = 6 => "rsi",
        RDI = 7 => "rdi",
        R8 = 8 => "r8",
        R9 = 9 => "r9",
        R10 = 10 => "r10",
        R11 = 11 => "r11",
        R12 = 12 => "r12",
        R13 = 13 => "r13",
        R14 = 14 => "r14",
        R15 = 15 => "r15",
        RFLAGS = 16 => "rflags",
        CR0 = 17 => "cr0",
        CR2 = 18 => "cr2",
        CR3 = 19 => "cr3",
        CR4 = 20 => "cr4",
        CR8 = 21 => "cr8",
        EFER = 22 => "efer",
        CPL = 23 => "cpl",
        PKRU = 24 => "pkru",
        XCR0 = 25 => "xcr0",
        /// Shadows of STI and MOV SS, and blocking by NMI.
        INTERRUPTIBILITY = 26 => "blocking",
        /// Two values: attributes and base.
        CS = 27 => "cs.attr",
        /// The base.
        GDTR = 28 => "gdt",
        /// The base.
        IDTR = 29 => "idt",
        DR7 = 30 => "dr7",
        /// One of the FPU, in three values: its number, low and high half. Behind the FPU's: 48 is the last branch, 49 the last one
        /// before an interrupt or exception, from where and to where; from 50 on debug registers and segments; [`numbered::CHAIN`] is none.
        FPU = 31 => "vector",
    }
}

/// Numbers of [`Register::FPU`] that are no registers.
pub mod numbered {
    /// What all digests of a vCPU's changed registers make together, up to the exit that it stands with or the tape's end.
    pub const CHAIN: u64 = 80;
}

impl Register {
    /// Its bit.
    pub const fn mask(self) -> u32 {
        1 << self.0
    }
}
