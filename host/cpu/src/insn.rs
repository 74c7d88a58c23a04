//! The decoded form of an instruction: what a handler needs, in one cache line.

use crate::{core::Core, env::Interrupted};
use iced_x86::{Code, Instruction, OpKind, Register};

/// Executes one instruction. RIP still points at it; on an error nothing has changed.
pub type Handler = fn(&mut Core<'_>, &Insn) -> Result<(), Interrupted>;

/// What an operand is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// No operand, or one that the code implies.
    #[default]
    None,
    /// A register of the class that the code says; its number is in `regs`.
    Reg,
    /// The memory operand.
    Mem,
    /// `imm`, extended as the code says.
    Imm,
}

/// Bits of [`Insn::prefixes`].
pub mod prefix {
    pub const LOCK: u8 = 1;
    /// F3.
    pub const REP: u8 = 2;
    /// F2.
    pub const REPNE: u8 = 4;
}

/// No base or index register.
const NO_REG: u8 = 0xff;
/// The base is RIP: the displacement counts from the instruction's first byte.
const RIP_BASE: u8 = 0xfe;
/// AH, CH, DH and BH are numbered from here; other registers are 0 to 15.
pub(crate) const HIGH_BYTE: u8 = 16;

/// A decoded instruction.
#[derive(Clone, Copy, Debug)]
pub struct Insn {
    pub handler: Handler,
    /// Displacement of the memory operand, extended.
    pub disp: u64,
    /// The immediate, extended to 64 bits. Near branches: the target minus the instruction's address.
    /// Far branches: the offset.
    pub imm: u64,
    pub code: Code,
    /// ENTER: the nesting level. Far branches: the selector.
    pub imm2: u16,
    pub len: u8,
    pub prefixes: u8,
    pub kinds: [Kind; 4],
    pub regs: [u8; 4],
    base: u8,
    index: u8,
    scale: u8,
    /// Right shift of all ones that gives the address-size mask.
    mask_shift: u8,
    /// Segment of the memory operand (or of the source of a string instruction), as [`vmtape_arch::vcpu::seg`].
    pub seg: u8,
    /// Bits of the code segment: 16, 32 or 64.
    pub bits: u8,
    /// Nothing after it in the block: it branches, or it changes what decoding depends on.
    pub(crate) ends_block: bool,
    /// It may change what [`Core::refresh`] caches.
    pub(crate) refresh: bool,
}

impl Insn {
    /// From iced's form; `handler` is chosen by the caller.
    pub(crate) fn new(i: &Instruction, handler: Handler) -> Self {
        let mut insn = Self {
            handler,
            disp: 0,
            imm: 0,
            code: i.code(),
            imm2: 0,
            len: i.len() as u8,
            prefixes: prefixes(i),
            kinds: [Kind::None; 4],
            regs: [0; 4],
            base: NO_REG,
            index: NO_REG,
            scale: 0,
            mask_shift: 0,
            seg: 3,
            bits: bits(i),
            ends_block: false,
            refresh: false,
        };
        for n in 0..i.op_count().min(4) {
            insn.operand(i, n);
        }
        insn
    }

    fn operand(&mut self, i: &Instruction, n: u32) {
        let slot = n as usize;
        let ip = i.ip();
        self.kinds[slot] = match i.op_kind(n) {
            OpKind::Register => {
                self.regs[slot] = number(i.op_register(n));
                Kind::Reg
            }
            OpKind::Memory => {
                self.memory(i);
                Kind::Mem
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                self.imm = i.near_branch_target().wrapping_sub(ip);
                Kind::Imm
            }
            OpKind::FarBranch16 | OpKind::FarBranch32 => {
                let wide = i.op_kind(n) == OpKind::FarBranch32;
                self.imm = if wide { u64::from(i.far_branch32()) } else { u64::from(i.far_branch16()) };
                self.imm2 = i.far_branch_selector();
                Kind::Imm
            }
            OpKind::Immediate8_2nd => {
                self.imm2 = u16::from(i.immediate8_2nd());
                Kind::Imm
            }
            OpKind::MemorySegSI | OpKind::MemorySegDI => self.string(i, 48),
            OpKind::MemorySegESI | OpKind::MemorySegEDI => self.string(i, 32),
            OpKind::MemorySegRSI | OpKind::MemorySegRDI => self.string(i, 0),
            OpKind::MemoryESDI => self.string_destination(48),
            OpKind::MemoryESEDI => self.string_destination(32),
            OpKind::MemoryESRDI => self.string_destination(0),
            _ => {
                self.imm = i.immediate(n);
                Kind::Imm
            }
        };
    }

    fn string(&mut self, i: &Instruction, mask_shift: u8) -> Kind {
        self.seg = segment(i);
        self.mask_shift = mask_shift;
        Kind::None
    }

    fn string_destination(&mut self, mask_shift: u8) -> Kind {
        self.mask_shift = mask_shift;
        Kind::None
    }

    fn memory(&mut self, i: &Instruction) {
        let size = address_size(i);
        self.seg = segment(i);
        self.mask_shift = 64 - size * 8;
        self.disp = i.memory_displacement64();
        self.base = match i.memory_base() {
            Register::None => NO_REG,
            Register::RIP | Register::EIP => {
                self.disp = self.disp.wrapping_sub(i.ip());
                RIP_BASE
            }
            base => number(base),
        };
        if i.memory_index() != Register::None {
            self.index = number(i.memory_index());
            self.scale = i.memory_index_scale().trailing_zeros() as u8;
        }
    }

    /// The offset of the memory operand in its segment.
    #[inline(always)]
    pub fn address(&self, core: &Core<'_>) -> u64 {
        let mut at = self.disp;
        if self.base < 16 {
            at = at.wrapping_add(core.state.gpr[(self.base & 15) as usize]);
        } else if self.base == RIP_BASE {
            at = at.wrapping_add(core.state.rip);
        }
        if self.index < 16 {
            at = at.wrapping_add(core.state.gpr[(self.index & 15) as usize] << (self.scale & 3));
        }
        at & self.address_mask()
    }

    /// All ones of the address size.
    #[inline(always)]
    pub fn address_mask(&self) -> u64 {
        u64::MAX >> (self.mask_shift & 63)
    }

    /// Address size in bytes.
    pub fn address_bytes(&self) -> u8 {
        (64 - self.mask_shift) / 8
    }

    #[inline(always)]
    pub fn is_64bit(&self) -> bool {
        self.bits == 64
    }

    /// Whether operand `n` is in memory.
    #[inline(always)]
    pub fn is_mem(&self, n: usize) -> bool {
        self.kinds[n] == Kind::Mem
    }

    #[inline(always)]
    pub fn has(&self, prefix: u8) -> bool {
        self.prefixes & prefix != 0
    }
}

fn prefixes(i: &Instruction) -> u8 {
    let mut bits = 0;
    for (on, bit) in [
        (i.has_lock_prefix(), prefix::LOCK),
        (i.has_rep_prefix(), prefix::REP),
        (i.has_repne_prefix(), prefix::REPNE),
    ] {
        if on {
            bits |= bit;
        }
    }
    bits
}

fn bits(i: &Instruction) -> u8 {
    match i.code_size() {
        iced_x86::CodeSize::Code16 => 16,
        iced_x86::CodeSize::Code32 => 32,
        _ => 64,
    }
}

/// A register's number in its class; high bytes from [`HIGH_BYTE`].
fn number(register: Register) -> u8 {
    let number = register.number() as u8;
    match (register.is_gpr8(), number) {
        (true, 4..8) => HIGH_BYTE + number - 4,
        (true, 8..) => number - 4,
        _ => number,
    }
}

/// The segment of the memory operand. 64-bit code ignores overrides other than FS and GS, also for the choice between
/// #SS and #GP.
// See: SDM vol. 1 3.3.4 Modes of Operation vs. Address, Stack, and Operand Sizes
fn segment(i: &Instruction) -> u8 {
    let ignored = matches!(i.segment_prefix(), Register::ES | Register::CS | Register::SS | Register::DS);
    if i.code_size() != iced_x86::CodeSize::Code64 || !ignored {
        return number(i.memory_segment());
    }
    let on_stack = matches!(i.memory_base().full_register(), Register::RSP | Register::RBP);
    number(if on_stack { Register::SS } else { Register::DS })
}

/// Address size of the memory operand in bytes.
fn address_size(i: &Instruction) -> u8 {
    let of = |register: Register| match register {
        Register::RIP => Some(8),
        Register::EIP => Some(4),
        r if r.is_gpr16() => Some(2),
        r if r.is_gpr32() => Some(4),
        r if r.is_gpr64() => Some(8),
        _ => None,
    };
    of(i.memory_base()).or_else(|| of(i.memory_index())).unwrap_or(match i.memory_displ_size() {
        2 => 2,
        4 => 4,
        8 => 8,
        _ => bits(i) / 8,
    })
}
