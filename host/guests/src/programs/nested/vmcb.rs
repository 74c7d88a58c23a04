//! The VMCB as the guests that are hypervisors write it: fields, intercepts, events.
//!
//! Manual: AMD64 Architecture Programmer's Manual volume 2 (24593), revision 3.42.

/// A field: its offset in the VMCB and its size in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub offset: u64,
    pub size: u64,
}

const fn field(offset: u64, size: u64) -> Field {
    Field { offset, size }
}

// See: Appendix B Table B-1. VMCB Layout, Control Area
pub const INTERCEPTS: Field = field(0x000, 4);
pub const IOPM_BASE_PA: Field = field(0x040, 8);
pub const MSRPM_BASE_PA: Field = field(0x048, 8);
pub const GUEST_ASID: Field = field(0x058, 4);
pub const TLB_CONTROL: Field = field(0x05c, 1);
pub const INT_CTL: Field = field(0x060, 4);
pub const INT_VECTOR: Field = field(0x064, 4);
pub const INT_STATE: Field = field(0x068, 4);
pub const EXITCODE: Field = field(0x070, 8);
pub const EXITINFO1: Field = field(0x078, 8);
pub const EXITINFO2: Field = field(0x080, 8);
pub const EXITINTINFO: Field = field(0x088, 4);
pub const NP_ENABLE: Field = field(0x090, 8);
pub const EVENTINJ: Field = field(0x0a8, 4);
pub const EVENTINJ_ERROR: Field = field(0x0ac, 4);
pub const N_CR3: Field = field(0x0b0, 8);
pub const VIRT_EXT: Field = field(0x0b8, 8);
pub const CLEAN: Field = field(0x0c0, 4);

// See: Table B-2. VMCB Layout, State Save Area, which begins at 0x400
pub const GDTR: u64 = 0x460;
pub const IDTR: u64 = 0x480;
pub const IDTR_LIMIT: Field = field(IDTR + 4, 4);
pub const IDTR_BASE: Field = field(IDTR + 8, 8);
pub const ES: u64 = 0x400;
pub const CS: u64 = 0x410;
pub const SS: u64 = 0x420;
pub const DS: u64 = 0x430;
pub const CS_ATTRIB: Field = field(CS + 2, 2);
pub const CPL: Field = field(0x4cb, 1);
pub const EFER: Field = field(0x4d0, 8);
pub const CR4: Field = field(0x548, 8);
pub const CR3: Field = field(0x550, 8);
pub const CR0: Field = field(0x558, 8);
pub const DR7: Field = field(0x560, 8);
pub const DR6: Field = field(0x568, 8);
pub const RFLAGS: Field = field(0x570, 8);
pub const RIP: Field = field(0x578, 8);
pub const RSP: Field = field(0x5d8, 8);
pub const RAX: Field = field(0x5f8, 8);
pub const STAR: Field = field(0x600, 8);
pub const CR2: Field = field(0x640, 8);
pub const G_PAT: Field = field(0x668, 8);

/// Exit codes; below 0xc0 the number of the intercept's bit too. See: Appendix C SVM Intercept Exit Codes
pub mod exit {
    pub const CR0_READ: u32 = 0x00;
    pub const CR3_READ: u32 = 0x03;
    pub const CR4_READ: u32 = 0x04;
    pub const CR0_WRITE: u32 = 0x10;
    pub const CR4_WRITE: u32 = 0x14;
    pub const DR0_READ: u32 = 0x20;
    pub const DR7_WRITE: u32 = 0x37;
    /// The first of 32, by vector.
    pub const EXCEPTION: u32 = 0x40;
    pub const INTR: u32 = 0x60;
    pub const NMI: u32 = 0x61;
    pub const SMI: u32 = 0x62;
    pub const INIT: u32 = 0x63;
    pub const VINTR: u32 = 0x64;
    pub const CR0_SEL_WRITE: u32 = 0x65;
    pub const IDTR_READ: u32 = 0x66;
    pub const TR_READ: u32 = 0x69;
    pub const GDTR_WRITE: u32 = 0x6b;
    pub const RDTSC: u32 = 0x6e;
    pub const PUSHF: u32 = 0x70;
    pub const POPF: u32 = 0x71;
    pub const CPUID: u32 = 0x72;
    pub const IRET: u32 = 0x74;
    pub const SWINT: u32 = 0x75;
    pub const INVD: u32 = 0x76;
    pub const PAUSE: u32 = 0x77;
    pub const HLT: u32 = 0x78;
    pub const INVLPG: u32 = 0x79;
    pub const INVLPGA: u32 = 0x7a;
    pub const IOIO: u32 = 0x7b;
    pub const MSR: u32 = 0x7c;
    pub const SHUTDOWN: u32 = 0x7f;
    pub const VMRUN: u32 = 0x80;
    pub const VMMCALL: u32 = 0x81;
    pub const VMLOAD: u32 = 0x82;
    pub const VMSAVE: u32 = 0x83;
    pub const STGI: u32 = 0x84;
    pub const CLGI: u32 = 0x85;
    pub const SKINIT: u32 = 0x86;
    pub const WBINVD: u32 = 0x89;
    pub const NPF: u32 = 0x400;
}

/// The word of the intercepts that holds the bit of an exit code, and the bit.
pub const fn intercept(code: u32) -> (Field, u32) {
    (field(INTERCEPTS.offset + (code / 32 * 4) as u64, 4), 1 << (code % 32))
}

// See: 15.20 Event Injection
pub const EVENT_VALID: u32 = 1 << 31;
pub const EVENT_ERROR_CODE: u32 = 1 << 11;
pub const EVENT_EXCEPTION: u32 = 3 << 8;
pub const EVENT_SOFTWARE_INTERRUPT: u32 = 4 << 8;

// See: 15.21.2 Virtualizing APIC.TPR, 15.21.4 Injecting Virtual (INTR) Interrupts
pub const V_IRQ: u32 = 1 << 8;
pub const V_INTR_PRIO_SHIFT: u32 = 16;
pub const V_INTR_MASKING: u32 = 1 << 24;

/// VMCB clean bit: nCR3 and G_PAT. See: 15.15.3 VMCB Clean Field
pub const CLEAN_NP: u32 = 1 << 4;
