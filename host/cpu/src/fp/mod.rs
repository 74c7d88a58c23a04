//! x87, MMX, SSE and the few AVX moves: floating-point and vector instructions.
//!
//! Handlers are chosen once, when an instruction is decoded; they read the mnemonic again where one handler serves a
//! family. Manual: SDM vol. 2 for each instruction; vol. 1 chapters 8, 10 and 11 for the environments.

mod aes;
mod arith;
mod avx;
mod convert;
mod float;
mod lanes;
mod moves;
mod mxcsr;
mod packed;
mod shuffle;
mod soft;
mod strings;
mod vector;
mod x87;
mod xsave;

pub use mxcsr::MXCSR_MASK;
pub use xsave::{XSAVE_COMPONENTS, XsaveComponent};

use crate::{
    core::{Core, fault, gp, ud},
    env::Interrupted,
    insn::{Handler, Insn, Kind},
    operand::Word,
};
use iced_x86::{Instruction, OpKind};
use mxcsr::Mxcsr;
use soft::Flags;
use vmtape_arch::exception::Vector;

/// What a handler returns.
type Done = Result<(), Interrupted>;

/// The handler of a floating-point or vector instruction; `None` if it is not one, or not implemented.
pub fn handler(i: &Instruction) -> Option<Handler> {
    xsave::handler(i)
        .or_else(|| avx::handler(i))
        .or_else(|| x87::handler(i))
        .or_else(|| moves::handler(i))
        .or_else(|| float::handler(i))
        .or_else(|| convert::handler(i))
        .or_else(|| shuffle::handler(i))
        .or_else(|| strings::handler(i))
        .or_else(|| aes::handler(i))
        .or_else(|| vector::handler(i))
}

/// Whether any operand is an MMX register.
fn uses_mmx(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm())
}

/// Whether any operand is an XMM register.
fn uses_xmm(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_xmm())
}

/// Availability. See: SDM vol. 3A 14.1 Providing Operating System Support for SSE Extensions
impl Core<'_> {
    /// #UD or #NM before an SSE instruction.
    #[inline(always)]
    pub(crate) fn check_sse(&self) -> Done {
        let cr0 = self.state.cr0();
        if cr0.em() || !self.state.cr4().osfxsr() {
            return ud();
        }
        if cr0.ts() { fault(Vector::NM) } else { Ok(()) }
    }

    /// #NM or #MF before an x87 instruction that waits for pending exceptions.
    fn check_x87(&self) -> Done {
        self.check_x87_control()?;
        if self.state.fpu.fsw & x87::ERROR_SUMMARY != 0 { fault(Vector::MF) } else { Ok(()) }
    }

    /// #NM before an x87 instruction that does not wait (FNINIT, FNSTSW, ...).
    fn check_x87_control(&self) -> Done {
        let cr0 = self.state.cr0();
        if cr0.em() || cr0.ts() { fault(Vector::NM) } else { Ok(()) }
    }

    /// #UD, #NM or #MF before an MMX instruction.
    fn check_mmx(&self) -> Done {
        if self.state.cr0().em() {
            return ud();
        }
        self.check_x87()
    }
}

/// Registers and memory operands.
impl Core<'_> {
    #[inline(always)]
    fn xmm(&self, n: u8) -> u128 {
        let [low, high] = self.state.fpu.xmm[(n & 15) as usize];
        low as u128 | (high as u128) << 64
    }

    #[inline(always)]
    fn set_xmm(&mut self, n: u8, value: u128) {
        self.state.fpu.xmm[(n & 15) as usize] = [value as u64, (value >> 64) as u64];
    }

    fn mm(&self, n: u8) -> u64 {
        self.state.fpu.st[(n & 7) as usize].first_chunk().map_or(0, |low| u64::from_le_bytes(*low))
    }

    /// Writes an MMX register; the exponent field becomes all ones.
    fn set_mm(&mut self, n: u8, value: u64) {
        let register = u128::from(value) | 0xffff << 64;
        self.state.fpu.st[(n & 7) as usize] = register.to_le_bytes();
    }

    /// What every MMX instruction but EMMS does to the x87 state. See: SDM vol. 1 9.5.2
    fn enter_mmx(&mut self) {
        self.state.fpu.fsw &= !x87::TOP;
        self.state.fpu.ftw = 0xff;
    }

    /// A memory operand that must lie on a boundary of its size.
    fn read_aligned<T: Word>(&mut self, insn: &Insn) -> Result<T, Interrupted> {
        self.check_boundary(insn, T::BYTES)?;
        self.read(insn.seg, insn.address(self))
    }

    fn write_aligned<T: Word>(&mut self, insn: &Insn, value: T) -> Done {
        self.check_boundary(insn, T::BYTES)?;
        self.write(insn.seg, insn.address(self), value)
    }

    /// #GP(0) unless the linear address of the memory operand is a multiple of `bytes`.
    fn check_boundary(&self, insn: &Insn, bytes: u64) -> Done {
        let linear = self.segments[(insn.seg & 7) as usize].base.wrapping_add(insn.address(self));
        if linear.is_multiple_of(bytes) { Ok(()) } else { gp(0) }
    }

    /// Operand `n`: an XMM register, 16 aligned bytes of memory, or an immediate.
    #[inline]
    fn vector(&mut self, insn: &Insn, n: usize) -> Result<u128, Interrupted> {
        match insn.kinds[n] {
            Kind::Reg => Ok(self.xmm(insn.regs[n])),
            Kind::Imm => Ok(u128::from(insn.imm)),
            _ => self.read_aligned(insn),
        }
    }

    /// Operand `n`: the low part of an XMM register, or as many bytes of memory with any alignment.
    fn scalar<T: Word + Into<u128>>(&mut self, insn: &Insn, n: usize) -> Result<u128, Interrupted> {
        if insn.kinds[n] == Kind::Reg {
            return Ok(self.xmm(insn.regs[n]) & (u128::MAX >> (128 - 8 * T::BYTES)));
        }
        Ok(self.read::<T>(insn.seg, insn.address(self))?.into())
    }

    fn mxcsr(&self) -> Mxcsr {
        Mxcsr::from_bits(self.state.fpu.mxcsr)
    }

    /// Sets exception flags in MXCSR; #XM (#UD without CR4.OSXMMEXCPT) if one is not masked.
    #[inline]
    fn raise_sse(&mut self, flags: Flags) -> Done {
        if flags == Flags::NONE {
            return Ok(());
        }
        let (mxcsr, trap) = self.mxcsr().raise(flags);
        self.state.fpu.mxcsr = mxcsr.into_bits();
        match trap {
            false => Ok(()),
            true if self.state.cr4().osxmmexcpt() => fault(Vector::XM),
            true => ud(),
        }
    }
}
