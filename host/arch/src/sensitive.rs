//! Instructions and conditions at which virtualization may begin.

use crate::{flag::Flag, layout, open_enum};
use serde::{Deserialize, Serialize};

open_enum! {
    /// What the guest is about to do. The value is also the bit in `Intercepts.sensitive`.
    pub struct SensitiveKind(u8) {
        CPUID = 0 => "CPUID",
        RDMSR = 1 => "RDMSR",
        WRMSR = 2 => "WRMSR",
        /// MOV to CR; `number` is the register, `value` the operand.
        CR_WRITE = 3 => "MOV to CR",
        CR_READ = 4 => "MOV from CR",
        CLTS = 5 => "CLTS",
        /// `value` is the 16-bit operand.
        LMSW = 6 => "LMSW",
        /// Reads CR0.
        SMSW = 7 => "SMSW",
        DR_WRITE = 8 => "MOV to DR",
        DR_READ = 9 => "MOV from DR",
        /// `address` is the linear address.
        INVLPG = 10 => "INVLPG",
        /// `value` is the type, `address` the descriptor's address, `aux` its PCID and `aux2` its linear address.
        INVPCID = 11 => "INVPCID",
        HLT = 12 => "HLT",
        /// `number` is the port, `size` bytes; OUT: `value`.
        IN = 13 => "IN",
        OUT = 14 => "OUT",
        /// String forms: `address` is the linear address of the operand.
        INS = 15 => "INS",
        OUTS = 16 => "OUTS",
        RDTSC = 17 => "RDTSC",
        RDTSCP = 18 => "RDTSCP",
        RDPMC = 19 => "RDPMC",
        WBINVD = 20 => "WBINVD",
        INVD = 21 => "INVD",
        MONITOR = 22 => "MONITOR",
        MWAIT = 23 => "MWAIT",
        PAUSE = 24 => "PAUSE",
        VMCALL = 25 => "VMCALL",
        VMMCALL = 26 => "VMMCALL",
        XSETBV = 27 => "XSETBV",
        /// LGDT, LIDT, SGDT, SIDT: `number` 0 GDTR, 1 IDTR; `value` 1 for a load.
        GDTR_IDTR = 28 => "GDTR/IDTR access",
        /// LLDT, LTR, SLDT, STR: `number` 0 LDTR, 1 TR; `value` 1 for a load.
        LDTR_TR = 29 => "LDTR/TR access",
        /// VMXON, VMXOFF, VMREAD, ...: Intel's nested instructions.
        VMX = 30 => "VMX instruction",
        /// VMRUN, VMLOAD, VMSAVE, STGI, CLGI, INVLPGA, SKINIT: AMD's; `number` is the opcode's last byte ([`svm`]), `value`
        /// RAX in the size of addresses, `aux` ECX. Wanted by a backend whose silicon has SVM. Natively such an instruction
        /// does what the backend has done to the state when it was asked.
        SVM = 31 => "SVM instruction",
        RDRAND = 32 => "RDRAND",
        RDSEED = 33 => "RDSEED",
        TASK_SWITCH = 34 => "task switch",
        IRET = 35 => "IRET",
        RSM = 36 => "RSM",
        /// Not instructions: conditions checked between instructions.
        INTERRUPT_WINDOW = 40 => "interrupt window",
        NMI_WINDOW = 41 => "NMI window",
        TRIPLE_FAULT = 42 => "triple fault",
        INIT = 43 => "INIT",
        SIPI = 44 => "SIPI",
        /// Accesses to a mapping of kind `APIC_PAGE`: `number` is the offset; write: `value`.
        APIC_READ = 45 => "APIC page read",
        APIC_WRITE = 46 => "APIC page write",
        /// An x87 or SSE instruction met CR0.TS or similar; not intercepted by current KVM.
        RDPRU = 47 => "RDPRU",
        GETSEC = 48 => "GETSEC",
        ENCLS = 49 => "ENCLS",
        /// A condition: the guest is left before its first instruction, after what is injected has been delivered.
        IMMEDIATE_EXIT = 50 => "immediate exit",
        PUSHF = 51 => "PUSHF",
        POPF = 52 => "POPF",
        /// INT n; `number` is the vector.
        INTN = 53 => "INT",
        /// INT1.
        ICEBP = 54 => "ICEBP",
    }
}

/// Last bytes of the opcodes 0F 01 of SVM: `Sensitive.number`. See: APM vol. 3 appendix A Table A-7
pub mod svm {
    pub const VMRUN: u32 = 0xd8;
    pub const VMLOAD: u32 = 0xda;
    pub const VMSAVE: u32 = 0xdb;
    pub const STGI: u32 = 0xdc;
    pub const CLGI: u32 = 0xdd;
    pub const SKINIT: u32 = 0xde;
    pub const INVLPGA: u32 = 0xdf;
}

impl SensitiveKind {
    /// Whether what surrounds the guest decides what the instruction gives it, or what becomes of what it writes. That is told by a
    /// comparison when the instruction has retired. The local APIC is left out: silicon or the backend answers for it, and
    /// what it answers reaches the guest's memory and interrupts.
    pub const fn has_outcome(self) -> bool {
        const KINDS: u64 = SensitiveKind::set(&[
            SensitiveKind::CPUID,
            SensitiveKind::RDMSR,
            SensitiveKind::WRMSR,
            SensitiveKind::CR_WRITE,
            SensitiveKind::CR_READ,
            SensitiveKind::CLTS,
            SensitiveKind::LMSW,
            SensitiveKind::SMSW,
            SensitiveKind::DR_WRITE,
            SensitiveKind::DR_READ,
            SensitiveKind::IN,
            SensitiveKind::OUT,
            SensitiveKind::INS,
            SensitiveKind::OUTS,
            SensitiveKind::RDTSC,
            SensitiveKind::RDTSCP,
            SensitiveKind::RDPMC,
            SensitiveKind::VMCALL,
            SensitiveKind::VMMCALL,
            SensitiveKind::XSETBV,
            SensitiveKind::RDRAND,
            SensitiveKind::RDSEED,
        ]);
        KINDS >> self.0 & 1 != 0
    }

    const fn set(kinds: &[Self]) -> u64 {
        let (mut set, mut n) = (0, 0);
        while n < kinds.len() {
            set |= 1 << kinds[n].0;
            n += 1;
        }
        set
    }
}

/// A sensitive instruction with the operands that an exit needs. The RIP of the vCPU state still points at it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sensitive {
    pub kind: SensitiveKind,
    /// Instruction length in bytes.
    pub len: u8,
    /// Operand or address size in bytes, where it matters.
    pub size: u8,
    /// General register of the operand (MOV CR/DR), 0-15.
    pub gpr: u8,
    /// Register or port number, APIC offset.
    pub number: u32,
    pub value: u64,
    pub address: u64,
    pub aux: u64,
    pub aux2: u64,
    /// REP prefix on INS and OUTS.
    pub rep: Flag,
    /// Port given as immediate.
    pub immediate: Flag,
    /// Memory operand instead of a register (LMSW, SMSW, SLDT, ...).
    pub memory: Flag,
    /// Segment register of OUTS, 0-5.
    pub segment: u8,
    /// Address size of string instructions in bytes.
    pub address_size: u8,
    pub bytes: [u8; 15],
}

layout!(Sensitive: 64, number: 4, value: 8, rep: 40, bytes: 45);
