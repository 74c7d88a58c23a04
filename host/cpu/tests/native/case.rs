//! One encoded instruction, and the states it is run from.

use crate::{
    forms::Form,
    random::{chance, double, extended, pick, range, single, value, vector},
    silicon::{Context, DATA, DATA_SIZE, Mode, RIP, TARGET},
};
use iced_x86::{Encoder, Instruction, Mnemonic, OpKind, Register};
use rand_pcg::{Pcg64, rand_core::Rng};

/// The part of the data pages that states fill and comparisons look at, across the page boundary.
pub const WINDOW: usize = 0xe00;
pub const WINDOW_SIZE: usize = 0x400;
/// Operands lie around the middle.
const MIDDLE: u64 = DATA + 0x1000;

/// An instruction with operands.
pub struct Case {
    pub instruction: Instruction,
    pub bytes: Vec<u8>,
    pub mode: Mode,
    /// Where its explicit memory operand lies, as a linear address.
    address: u64,
    /// What states begin with. Each renews the general registers, the vector registers that are operands, and the
    /// memory around the operand.
    context: Context,
    data: [u8; WINDOW_SIZE],
    vectors: Vec<usize>,
}

const STATUS: u64 = 0x8d5;
const DIRECTION: u64 = 0x400;
const ALIGNMENT_CHECK: u64 = 0x4_0000;

impl Case {
    /// Encodes the form with random operands.
    pub fn new(form: &Form, rng: &mut Pcg64) -> Option<Self> {
        let address = operand_address(form, rng);
        let mode = form.mode;
        let instruction = form.instruction(rng, address - mode.data_base())?;
        let mut encoder = Encoder::new(mode.bits());
        let rip = RIP - mode.code_base();
        encoder.encode(&instruction, rip).ok()?;
        let bytes = encoder.take_buffer();
        // What was encoded, read back: the decoder fills in what the encoder derived.
        let mut decoder =
            iced_x86::Decoder::with_ip(mode.bits(), &bytes, rip, iced_x86::DecoderOptions::NONE);
        let instruction = decoder.decode();
        if bytes.len() > 15 || instruction.is_invalid() {
            return None;
        }
        let mut context = Context::new();
        random_vectors(rng, &mut context);
        let mut data = [0; WINDOW_SIZE];
        fill(rng, &mut data);
        let vectors = vector_operands(&instruction);
        Some(Self { instruction, bytes, mode, address, context, data, vectors })
    }

    /// A random state from which the instruction stays inside the data pages.
    pub fn state(&self, rng: &mut Pcg64) -> (Context, [u8; WINDOW_SIZE]) {
        let mut context = self.context.clone();
        let mut data = self.data;
        if let Some(operand) = window_offset(self.address, 32) {
            let operand = operand & !15;
            fill(rng, &mut data[operand..operand + 32]);
        }
        for register in &mut context.gpr {
            *register = value(rng);
        }
        self.renew_vectors(rng, &mut context);
        context.rflags = 2 | rng.next_u64() & (STATUS | DIRECTION);
        if self.vectors.is_empty() && !self.uses_x87() && chance(rng, 5) {
            context.rflags |= ALIGNMENT_CHECK;
        }
        context.set_mxcsr(mxcsr(rng));
        if self.uses_x87() {
            x87(rng, &mut context);
        }
        self.constrain(rng, &mut context, &mut data);
        if self.mode != Mode::Bits64 {
            context.gpr.iter_mut().for_each(|register| *register &= 0xffff_ffff);
        }
        (context, data)
    }

    fn mnemonic(&self) -> Mnemonic {
        self.instruction.mnemonic()
    }

    fn branches(&self) -> bool {
        branches(self.mnemonic())
    }

    /// Vector operands, independent of each other or of one kind: like magnitudes find more than noise does.
    fn renew_vectors(&self, rng: &mut Pcg64, context: &mut Context) {
        let exponent = range(rng, 0x7ff);
        let near =
            |rng: &mut Pcg64| double(rng) & !(0x7ff << 52) | (exponent + range(rng, 3)).min(0x7fe) << 52;
        let kind = range(rng, 4);
        for n in &self.vectors {
            let value = match kind {
                0 => [double(rng), double(rng)],
                1 => [single(rng) | single(rng) << 32, single(rng) | single(rng) << 32],
                2 => [near(rng), near(rng)],
                _ => vector(rng),
            };
            context.set_xmm(*n, value);
        }
    }

    pub fn uses_x87(&self) -> bool {
        use iced_x86::CpuidFeature::{FPU, FPU287, FPU387, MMX};
        let mmx = (0..self.instruction.op_count()).any(|n| self.instruction.op_register(n).is_mm());
        mmx || self.instruction.cpuid_features().iter().any(|f| matches!(*f, FPU | FPU287 | FPU387 | MMX))
    }

    /// Points registers at the data pages, or at the branch target.
    fn constrain(&self, rng: &mut Pcg64, context: &mut Context, data: &mut [u8; WINDOW_SIZE]) {
        let base = self.mode.data_base();
        // Whether MASKMOVDQU checks bytes that it does not store is each processor's own.
        let masked = matches!(self.mnemonic(), Mnemonic::Maskmovdqu | Mnemonic::Maskmovq);
        let branches = self.branches();
        let near = |rng: &mut Pcg64| place(rng, branches || masked) - base;
        let target = TARGET - self.mode.code_base();
        let i = &self.instruction;
        context.gpr[4] = near(rng) & !7;
        if chance(rng, 20) {
            context.gpr[4] += range(rng, 8);
        }
        if self.mode == Mode::Bits64 && !branches && chance(rng, 2) {
            context.gpr[4] = non_canonical(rng);
        }
        if (0..i.op_count()).any(|n| is_string(i.op_kind(n))) {
            context.gpr[6] = near(rng);
            context.gpr[7] = near(rng);
            if i.has_rep_prefix() || i.has_repne_prefix() {
                context.gpr[1] = range(rng, 8);
            }
        }
        match self.mnemonic() {
            Mnemonic::Leave | Mnemonic::Enter => context.gpr[5] = near(rng) & !7,
            Mnemonic::Xlatb => {
                context.gpr[3] = near(rng).wrapping_sub(context.gpr[0] & 0xff);
                return;
            }
            Mnemonic::Div | Mnemonic::Idiv => divisible(rng, context),
            // AMD's misaligned exception mask is the one bit above 15 that a processor may accept.
            Mnemonic::Ldmxcsr => {
                if let Some(at) = window_offset(self.address, 4) {
                    data[at + 2] &= !2;
                    if chance(rng, 70) {
                        data[at + 2..at + 4].fill(0);
                    }
                }
            }
            Mnemonic::Ret => put(data, context.gpr[4] + base, target),
            _ => {}
        }
        self.limit_bit_offset(context);
        self.point(rng, context);
        if matches!(self.mnemonic(), Mnemonic::Jmp | Mnemonic::Call) {
            match i.op0_kind() {
                OpKind::Register => context.gpr[i.op0_register().full_register().number()] = target,
                OpKind::Memory => put(data, self.address, target),
                _ => {}
            }
        }
        let exchanges =
            matches!(self.mnemonic(), Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b | Mnemonic::Cmpxchg);
        if exchanges && chance(rng, 50) {
            self.make_equal(context, data);
        }
    }

    /// Makes the base and index registers give the operand's address.
    fn point(&self, rng: &mut Pcg64, context: &mut Context) {
        let i = &self.instruction;
        let (base, index) = (i.memory_base(), i.memory_index());
        if base == Register::None || matches!(base, Register::RIP | Register::EIP) {
            if index != Register::None {
                context.gpr[index.full_register().number()] = 0;
            }
            return;
        }
        let mut rest = (self.address - self.mode.data_base()).wrapping_sub(i.memory_displacement64());
        if index != Register::None {
            let scaled = range(rng, 256).wrapping_sub(128);
            context.gpr[index.full_register().number()] = scaled;
            rest = rest.wrapping_sub(scaled.wrapping_mul(u64::from(i.memory_index_scale())));
        }
        // An address ignores what lies above its size.
        let size = 8 * base.size() as u32;
        let ignored = u64::MAX.checked_shl(size).unwrap_or(0);
        if base.is_gpr64() && !self.branches() && chance(rng, 2) {
            rest = non_canonical(rng);
        }
        context.gpr[base.full_register().number()] = rest & !ignored | rng.next_u64() & ignored;
    }

    /// BT and its kin reach as far as the bit offset says.
    fn limit_bit_offset(&self, context: &mut Context) {
        let i = &self.instruction;
        let bit_test =
            matches!(self.mnemonic(), Mnemonic::Bt | Mnemonic::Btc | Mnemonic::Btr | Mnemonic::Bts);
        if bit_test && i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register {
            let register = &mut context.gpr[i.op1_register().full_register().number()];
            *register = (*register & 0x7ff).wrapping_sub(0x400);
        }
    }

    /// Lets a comparison of CMPXCHG succeed.
    fn make_equal(&self, context: &mut Context, data: &mut [u8; WINDOW_SIZE]) {
        let i = &self.instruction;
        if i.op0_kind() != OpKind::Memory {
            context.gpr[0] = context.gpr[i.op0_register().full_register().number()];
            return;
        }
        let (rax, rdx) = (context.gpr[0], context.gpr[2]);
        match self.mnemonic() {
            Mnemonic::Cmpxchg8b => put(data, self.address, rax & 0xffff_ffff | rdx << 32),
            _ => {
                put(data, self.address, rax);
                put(data, self.address + 8, rdx);
            }
        }
    }
}

fn is_string(kind: OpKind) -> bool {
    use OpKind::*;
    matches!(
        kind,
        MemorySegSI
            | MemorySegESI
            | MemorySegRSI
            | MemoryESDI
            | MemoryESEDI
            | MemoryESRDI
            | MemorySegDI
            | MemorySegEDI
            | MemorySegRDI
    )
}

/// Random bytes, in pieces of sixteen.
fn fill(rng: &mut Pcg64, bytes: &mut [u8]) {
    for chunk in bytes.chunks_exact_mut(16) {
        let [low, high] = if chance(rng, 20) { extended_pair(rng) } else { vector(rng) };
        chunk[..8].copy_from_slice(&low.to_le_bytes());
        chunk[8..].copy_from_slice(&high.to_le_bytes());
    }
}

/// Where the data pages are used: in the middle mostly, else at their ends, beyond which nothing is mapped.
fn place(rng: &mut Pcg64, middle_only: bool) -> u64 {
    match range(rng, 16) {
        0 if !middle_only => DATA + DATA_SIZE as u64 - range(rng, 48),
        1 if !middle_only => DATA + range(rng, 16),
        _ => MIDDLE - 64 + range(rng, 128),
    }
}

/// Aligned mostly, so that aligned forms do not only fault; any alignment otherwise.
fn operand_address(form: &Form, rng: &mut Pcg64) -> u64 {
    let aligned = if form.mnemonic() == Mnemonic::Cmpxchg16b { 90 } else { 60 };
    let address = place(rng, branches(form.mnemonic()) || may_be_undefined(form.mnemonic()));
    if chance(rng, aligned) { address & !15 } else { address }
}

/// Whether control goes where memory says.
fn branches(op: Mnemonic) -> bool {
    matches!(op, Mnemonic::Jmp | Mnemonic::Call | Mnemonic::Ret)
}

/// Whether the result is undefined for some operands. Each state renews the window, but not what lies outside.
pub fn may_be_undefined(op: Mnemonic) -> bool {
    matches!(op, Mnemonic::Shld | Mnemonic::Shrd)
}

/// An address whose upper bits are not all equal, with 48 or 57 bits.
fn non_canonical(rng: &mut Pcg64) -> u64 {
    rng.next_u64() & !(1 << 63) | 1 << 62
}

/// Where `len` bytes lie in the window, if they do.
fn window_offset(address: u64, len: usize) -> Option<usize> {
    let at = (address - DATA) as usize;
    (WINDOW..=WINDOW + WINDOW_SIZE - len).contains(&at).then(|| at - WINDOW)
}

fn put(data: &mut [u8; WINDOW_SIZE], address: u64, value: u64) {
    if let Some(at) = window_offset(address, 8) {
        data[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

/// A dividend whose upper half is small, as compilers make it.
fn divisible(rng: &mut Pcg64, context: &mut Context) {
    match range(rng, 4) {
        0 => context.gpr[2] = range(rng, 4),
        1 => context.gpr[2] = (context.gpr[0] as i64 >> 63) as u64,
        2 => {
            context.gpr[0] = context.gpr[0] as i8 as i16 as u16 as u64;
            context.gpr[2] = 0;
        }
        _ => {}
    }
}

fn extended_pair(rng: &mut Pcg64) -> [u64; 2] {
    let value = u128::from_le_bytes(extended(rng));
    [value as u64, (value >> 64) as u64]
}

/// All vector registers, each with another kind of content.
pub fn random_vectors(rng: &mut Pcg64, context: &mut Context) {
    for index in 0..16 {
        context.set_xmm(index, vector(rng));
    }
    if is_x86_feature_detected!("avx") {
        context.ymm_hi = std::array::from_fn(|_| [rng.next_u64(), rng.next_u64()]);
    }
}

/// The vector registers among the operands; XMM0 may be one without being named.
fn vector_operands(i: &Instruction) -> Vec<usize> {
    let registers = (0..i.op_count()).filter(|n| i.op_kind(*n) == OpKind::Register).map(|n| i.op_register(n));
    let mut vectors: Vec<usize> = registers.filter(|r| r.is_vector_register()).map(|r| r.number()).collect();
    if !vectors.is_empty() {
        vectors.push(0);
    }
    vectors
}

pub fn mxcsr(rng: &mut Pcg64) -> u32 {
    const MASKS: u32 = 0x1f80;
    const FLAGS: u32 = 0x3f;
    const ROUNDING_DAZ_FTZ: u32 = 0xe040;
    match range(rng, 10) {
        0..4 => MASKS,
        4 => MASKS | FLAGS,
        5..9 => MASKS | rng.next_u32() & (ROUNDING_DAZ_FTZ | FLAGS),
        // Some exceptions unmasked; a pending flag by itself does not trap.
        _ => rng.next_u32() & (MASKS | ROUNDING_DAZ_FTZ),
    }
}

pub fn x87(rng: &mut Pcg64, context: &mut Context) {
    const MASKS: u16 = 0x3f;
    const CONDITIONS_AND_TOP: u16 = 0x7f00;
    let precision_and_rounding = pick(rng, &[0x300, 0x300, 0x200, 0x000]) | (range(rng, 4) as u16) << 10;
    let masks = if chance(rng, 90) { MASKS } else { range(rng, 64) as u16 };
    let control = 0x40 | masks | precision_and_rounding;
    let pending = if chance(rng, 50) { range(rng, 64) as u16 & masks } else { 0 };
    let status = pending | rng.next_u32() as u16 & CONDITIONS_AND_TOP;
    let tags = match range(rng, 4) {
        0 => rng.next_u32() as u8,
        1 => 0,
        _ => 0xff,
    };
    context.fx[0..2].copy_from_slice(&control.to_le_bytes());
    context.fx[2..4].copy_from_slice(&status.to_le_bytes());
    context.fx[4] = tags;
    for index in 0..8 {
        context.set_st(index, extended(rng));
    }
}

impl Case {
    /// The instruction and what it started from, for a report.
    pub fn describe(&self, before: &Context) -> String {
        let i = &self.instruction;
        let mut text = format!(
            "{:?} {:02x?} rflags {:#x} mxcsr {:#x}",
            i.code(),
            self.bytes,
            before.rflags,
            before.mxcsr()
        );
        for n in 0..i.op_count() {
            let register = if i.op_kind(n) == OpKind::Register { i.op_register(n) } else { Register::None };
            if register.is_gpr() {
                text += &format!(" {register:?}: {:#x}", before.gpr[register.full_register().number()]);
            } else if register.is_xmm() {
                text += &format!(" {register:?}: {:x?}", before.xmm(register.number()));
            }
        }
        if self.uses_x87() {
            let st = |n| u128::from_le_bytes(before.st(n));
            text += &format!(" FSW, FCW {:02x?}, {:#x}, {:#x}", &before.fx[..5], st(0), st(1));
        }
        if i.op_count() > 0 && (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
            text += &format!(" memory at {:#x}", self.address);
        }
        text
    }
}
