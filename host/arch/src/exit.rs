//! Exits: reason, qualification, and how their handling ended.

use crate::{
    access::Access, exception::PageFaultError, flag::Flag, layout, level::Level, open_enum,
    sensitive::Sensitive,
};
use bitfield_struct::bitfield;
use serde::{Deserialize, Serialize};

open_enum! {
    /// Whose numbers an exit uses; the values of the kernel's `kvm_exit` tracepoint.
    pub struct Isa(u32) {
        VMX = 1 => "vmx",
        SVM = 2 => "svm",
    }
}

open_enum! {
    /// Basic VMX exit reasons with the kernel's names. See: SDM vol. 3D appendix C VMX Basic Exit Reasons
    pub struct VmxReason(u32) {
        EXCEPTION_NMI = 0 => "EXCEPTION_NMI",
        EXTERNAL_INTERRUPT = 1 => "EXTERNAL_INTERRUPT",
        TRIPLE_FAULT = 2 => "TRIPLE_FAULT",
        INIT_SIGNAL = 3 => "INIT_SIGNAL",
        SIPI_SIGNAL = 4 => "SIPI_SIGNAL",
        INTERRUPT_WINDOW = 7 => "INTERRUPT_WINDOW",
        NMI_WINDOW = 8 => "NMI_WINDOW",
        TASK_SWITCH = 9 => "TASK_SWITCH",
        CPUID = 10 => "CPUID",
        HLT = 12 => "HLT",
        INVD = 13 => "INVD",
        INVLPG = 14 => "INVLPG",
        RDPMC = 15 => "RDPMC",
        RDTSC = 16 => "RDTSC",
        VMCALL = 18 => "VMCALL",
        VMCLEAR = 19 => "VMCLEAR",
        VMLAUNCH = 20 => "VMLAUNCH",
        VMPTRLD = 21 => "VMPTRLD",
        VMPTRST = 22 => "VMPTRST",
        VMREAD = 23 => "VMREAD",
        VMRESUME = 24 => "VMRESUME",
        VMWRITE = 25 => "VMWRITE",
        VMOFF = 26 => "VMOFF",
        VMON = 27 => "VMON",
        CR_ACCESS = 28 => "CR_ACCESS",
        DR_ACCESS = 29 => "DR_ACCESS",
        IO_INSTRUCTION = 30 => "IO_INSTRUCTION",
        MSR_READ = 31 => "MSR_READ",
        MSR_WRITE = 32 => "MSR_WRITE",
        INVALID_STATE = 33 => "INVALID_STATE",
        MSR_LOAD_FAIL = 34 => "MSR_LOAD_FAIL",
        MWAIT_INSTRUCTION = 36 => "MWAIT_INSTRUCTION",
        MONITOR_TRAP_FLAG = 37 => "MONITOR_TRAP_FLAG",
        MONITOR_INSTRUCTION = 39 => "MONITOR_INSTRUCTION",
        PAUSE_INSTRUCTION = 40 => "PAUSE_INSTRUCTION",
        MCE_DURING_VMENTRY = 41 => "MCE_DURING_VMENTRY",
        TPR_BELOW_THRESHOLD = 43 => "TPR_BELOW_THRESHOLD",
        APIC_ACCESS = 44 => "APIC_ACCESS",
        EOI_INDUCED = 45 => "EOI_INDUCED",
        GDTR_IDTR = 46 => "GDTR_IDTR",
        LDTR_TR = 47 => "LDTR_TR",
        EPT_VIOLATION = 48 => "EPT_VIOLATION",
        EPT_MISCONFIG = 49 => "EPT_MISCONFIG",
        INVEPT = 50 => "INVEPT",
        RDTSCP = 51 => "RDTSCP",
        PREEMPTION_TIMER = 52 => "PREEMPTION_TIMER",
        INVVPID = 53 => "INVVPID",
        WBINVD = 54 => "WBINVD",
        XSETBV = 55 => "XSETBV",
        APIC_WRITE = 56 => "APIC_WRITE",
        RDRAND = 57 => "RDRAND",
        INVPCID = 58 => "INVPCID",
        VMFUNC = 59 => "VMFUNC",
        ENCLS = 60 => "ENCLS",
        RDSEED = 61 => "RDSEED",
        PML_FULL = 62 => "PML_FULL",
        XSAVES = 63 => "XSAVES",
        XRSTORS = 64 => "XRSTORS",
        UMWAIT = 67 => "UMWAIT",
        TPAUSE = 68 => "TPAUSE",
        BUS_LOCK = 74 => "BUS_LOCK",
        NOTIFY = 75 => "NOTIFY",
    }
}

open_enum! {
    /// SVM exit codes with the kernel's names. See: APM vol. 2 appendix C SVM Intercept Exit Codes
    pub struct SvmExitCode(u32) {
        READ_CR0 = 0x000 => "read_cr0",
        READ_CR2 = 0x002 => "read_cr2",
        READ_CR3 = 0x003 => "read_cr3",
        READ_CR4 = 0x004 => "read_cr4",
        READ_CR8 = 0x008 => "read_cr8",
        WRITE_CR0 = 0x010 => "write_cr0",
        WRITE_CR2 = 0x012 => "write_cr2",
        WRITE_CR3 = 0x013 => "write_cr3",
        WRITE_CR4 = 0x014 => "write_cr4",
        WRITE_CR8 = 0x018 => "write_cr8",
        READ_DR0 = 0x020 => "read_dr0",
        READ_DR1 = 0x021 => "read_dr1",
        READ_DR2 = 0x022 => "read_dr2",
        READ_DR3 = 0x023 => "read_dr3",
        READ_DR4 = 0x024 => "read_dr4",
        READ_DR5 = 0x025 => "read_dr5",
        READ_DR6 = 0x026 => "read_dr6",
        READ_DR7 = 0x027 => "read_dr7",
        WRITE_DR0 = 0x030 => "write_dr0",
        WRITE_DR1 = 0x031 => "write_dr1",
        WRITE_DR2 = 0x032 => "write_dr2",
        WRITE_DR3 = 0x033 => "write_dr3",
        WRITE_DR4 = 0x034 => "write_dr4",
        WRITE_DR5 = 0x035 => "write_dr5",
        WRITE_DR6 = 0x036 => "write_dr6",
        WRITE_DR7 = 0x037 => "write_dr7",
        EXCP_DE = 0x040 => "DE excp",
        EXCP_DB = 0x041 => "DB excp",
        EXCP_BP = 0x043 => "BP excp",
        EXCP_OF = 0x044 => "OF excp",
        EXCP_BR = 0x045 => "BR excp",
        EXCP_UD = 0x046 => "UD excp",
        EXCP_NM = 0x047 => "NM excp",
        EXCP_DF = 0x048 => "DF excp",
        EXCP_TS = 0x04a => "TS excp",
        EXCP_NP = 0x04b => "NP excp",
        EXCP_SS = 0x04c => "SS excp",
        EXCP_GP = 0x04d => "GP excp",
        EXCP_PF = 0x04e => "PF excp",
        EXCP_MF = 0x050 => "MF excp",
        EXCP_AC = 0x051 => "AC excp",
        EXCP_MC = 0x052 => "MC excp",
        EXCP_XM = 0x053 => "XF excp",
        INTR = 0x060 => "interrupt",
        NMI = 0x061 => "nmi",
        SMI = 0x062 => "smi",
        INIT = 0x063 => "init",
        VINTR = 0x064 => "vintr",
        CR0_SEL_WRITE = 0x065 => "cr0_sel_write",
        IDTR_READ = 0x066 => "read_idtr",
        GDTR_READ = 0x067 => "read_gdtr",
        LDTR_READ = 0x068 => "read_ldtr",
        TR_READ = 0x069 => "read_rt",
        IDTR_WRITE = 0x06a => "write_idtr",
        GDTR_WRITE = 0x06b => "write_gdtr",
        LDTR_WRITE = 0x06c => "write_ldtr",
        TR_WRITE = 0x06d => "write_rt",
        RDTSC = 0x06e => "rdtsc",
        RDPMC = 0x06f => "rdpmc",
        PUSHF = 0x070 => "pushf",
        POPF = 0x071 => "popf",
        CPUID = 0x072 => "cpuid",
        RSM = 0x073 => "rsm",
        IRET = 0x074 => "iret",
        SWINT = 0x075 => "swint",
        INVD = 0x076 => "invd",
        PAUSE = 0x077 => "pause",
        HLT = 0x078 => "hlt",
        INVLPG = 0x079 => "invlpg",
        INVLPGA = 0x07a => "invlpga",
        IOIO = 0x07b => "io",
        MSR = 0x07c => "msr",
        TASK_SWITCH = 0x07d => "task_switch",
        FERR_FREEZE = 0x07e => "ferr_freeze",
        SHUTDOWN = 0x07f => "shutdown",
        VMRUN = 0x080 => "vmrun",
        VMMCALL = 0x081 => "hypercall",
        VMLOAD = 0x082 => "vmload",
        VMSAVE = 0x083 => "vmsave",
        STGI = 0x084 => "stgi",
        CLGI = 0x085 => "clgi",
        SKINIT = 0x086 => "skinit",
        RDTSCP = 0x087 => "rdtscp",
        ICEBP = 0x088 => "icebp",
        WBINVD = 0x089 => "wbinvd",
        MONITOR = 0x08a => "monitor",
        MWAIT = 0x08b => "mwait",
        XSETBV = 0x08d => "xsetbv",
        RDPRU = 0x08e => "rdpru",
        INVPCID = 0x0a2 => "invpcid",
        NPF = 0x400 => "npf",
        AVIC_INCOMPLETE_IPI = 0x401 => "avic_incomplete_ipi",
        AVIC_UNACCELERATED_ACCESS = 0x402 => "avic_unaccelerated_access",
        VMGEXIT = 0x403 => "vmgexit",
        /// Of software: KVM's own, which its table of names does not have.
        SW = 0xf000_0000 => "0xf0000000",
        ERR = 0xffff_ffff => "invalid_guest_state",
    }
}

/// The name of an exit reason as the kernel's tracepoints print it.
pub fn reason_name(isa: Isa, reason: u32) -> Option<&'static str> {
    match isa {
        Isa::VMX => VmxReason(reason & 0xffff).name(),
        Isa::SVM => SvmExitCode(reason).name(),
        _ => None,
    }
}

/// Exit qualification of an EPT violation. See: SDM vol. 3C Table 28-7. Exit Qualification for EPT Violations
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct EptQualification {
    pub read: bool,
    pub write: bool,
    pub fetch: bool,
    pub perm_r: bool,
    pub perm_w: bool,
    pub perm_x: bool,
    pub perm_xu: bool,
    pub gva_valid: bool,
    /// The access was to the final translation, not to a guest paging-structure entry.
    pub gva_translated: bool,
    // Advanced exit information.
    pub gva_user: bool,
    pub gva_writable: bool,
    pub gva_nx: bool,
    pub nmi_unblocking: bool,
    #[bits(51)]
    __: u64,
}

/// EXITINFO1 of a nested page fault. See: APM vol. 2 15.25.6 Nested versus Guest Page Faults, Fault Ordering
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct NpfInfo {
    /// The #PF error code of the nested walk.
    #[bits(31)]
    pub code: u32,
    pub rmp: bool,
    /// The final guest physical address.
    pub final_page: bool,
    /// A guest page-table address.
    pub table: bool,
    pub enc: bool,
    pub sizem: bool,
    pub vmpl: bool,
    pub sss: bool,
    #[bits(26)]
    __: u64,
}

impl NpfInfo {
    /// The error-code half as bits.
    pub fn error(self) -> PageFaultError {
        PageFaultError::from_bits(self.code())
    }
}

open_enum! {
    /// What a backend was asked when it answered with an exit.
    pub struct StimulusKind(u32) {
        ACCESS = 0 => "access",
        SENSITIVE = 1 => "instruction",
        EXCEPTION = 2 => "exception",
        /// Nothing that the guest did.
        HOST = 3 => "host",
    }
}

/// One departure from guest mode. The first six fields are those of the kernel's `kvm_exit` tracepoint and mean the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub isa: Isa,
    /// VMX: the full exit reason. SVM: the low half of the exit code.
    pub reason: u32,
    /// VMX: exit qualification. SVM: EXITINFO1.
    pub info1: u64,
    /// VMX: IDT-vectoring information. SVM: EXITINFO2.
    pub info2: u64,
    /// VMX: exit interruption information. SVM: EXITINTINFO.
    pub intr_info: u32,
    pub error_code: u32,
    /// Guest physical address, where the exit reports one.
    pub gpa: u64,
    /// Guest linear address, where the exit reports one.
    pub gva: u64,
    pub stimulus: StimulusKind,
    /// The instruction completes before the exit (APIC_WRITE, data breakpoints, ...).
    pub trap: Flag,
    /// Who was running.
    pub level: Level,
    pub pad: [u8; 2],
    /// `stimulus` ACCESS: the access, with the event in delivery.
    pub access: Access,
    /// `stimulus` SENSITIVE: the instruction or condition.
    pub insn: Sensitive,
    /// `stimulus` EXCEPTION: the exception the guest was about to take.
    pub exception: crate::exception::Exception,
}

layout!(Exit: 168, info1: 8, gpa: 32, stimulus: 48, access: 56, insn: 88, exception: 152);

open_enum! {
    /// How the handling of an exit ended, with the numbers of `kvm_run.exit_reason` where KVM returns to userspace.
    pub struct ResumeKind(u32) {
        /// KVM_EXIT_UNKNOWN.
        UNKNOWN = 0 => "KVM_EXIT_UNKNOWN",
        IO = 2 => "KVM_EXIT_IO",
        DEBUG = 4 => "KVM_EXIT_DEBUG",
        HLT = 5 => "KVM_EXIT_HLT",
        MMIO = 6 => "KVM_EXIT_MMIO",
        SHUTDOWN = 8 => "KVM_EXIT_SHUTDOWN",
        FAIL_ENTRY = 9 => "KVM_EXIT_FAIL_ENTRY",
        INTERNAL_ERROR = 17 => "KVM_EXIT_INTERNAL_ERROR",
        SYSTEM_EVENT = 24 => "KVM_EXIT_SYSTEM_EVENT",
        DIRTY_RING_FULL = 31 => "KVM_EXIT_DIRTY_RING_FULL",
        MEMORY_FAULT = 39 => "KVM_EXIT_MEMORY_FAULT",
        /// Back into the guest. KVM_RUN does not return.
        RESUME = 0x1_0000 => "resume",
        /// The vCPU is blocked in the kernel (HLT with the in-kernel irqchip) until an event is pending.
        BLOCKED = 0x1_0001 => "blocked",
        /// KVM_RUN fails with `errno`.
        ERRNO = 0x1_0002 => "errno",
        /// The model has no answer; `data[0]` holds a `SensitiveKind` or zero.
        NOT_MODELLED = 0x1_0003 => "not modelled",
        /// The backend itself is broken: it panicked, or answered against the ABI. Written by the host's side of the
        /// ABI, never by a backend.
        BACKEND_FAILED = 0x1_0004 => "backend failed",
    }
}

/// The end of an exit's handling.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    pub kind: ResumeKind,
    /// Negative errno, or zero.
    pub errno: i32,
    /// INTERNAL_ERROR: suberror, ndata, data... MEMORY_FAULT: flags, gpa, size.
    pub data: [u64; 6],
}

layout!(Resume: 56, errno: 4, data: 8);

impl Resume {
    /// Back into the guest.
    pub const GUEST: Self = Self { kind: ResumeKind::RESUME, errno: 0, data: [0; 6] };

    /// An ending without data.
    pub const fn new(kind: ResumeKind) -> Self {
        Self { kind, errno: 0, data: [0; 6] }
    }

    /// KVM_RUN returns `-errno`.
    pub const fn errno(errno: i32) -> Self {
        Self { kind: ResumeKind::ERRNO, errno, data: [0; 6] }
    }
}
