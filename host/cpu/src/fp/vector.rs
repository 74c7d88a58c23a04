//! Packed integer instructions whose two operands have the same width.

use super::{Done, packed, uses_mmx};
use crate::{
    core::{Core, ud},
    insn::{Handler, Insn, Kind},
};
use iced_x86::{Instruction, Mnemonic};

pub fn handler(i: &Instruction) -> Option<Handler> {
    let op = i.mnemonic();
    if packed::widen(op).is_some() {
        return Some(widen);
    }
    packed::binary(op)?;
    Some(match (uses_mmx(i), reads_half(op)) {
        (false, _) => sse,
        (true, false) => mmx,
        (true, true) => mmx_low,
    })
}

/// The MMX forms that read only 32 bits of memory.
fn reads_half(op: Mnemonic) -> bool {
    matches!(op, Mnemonic::Punpcklbw | Mnemonic::Punpcklwd | Mnemonic::Punpckldq)
}

fn sse(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let Some(f) = packed::binary(insn.code.mnemonic()) else { return ud() };
    let b = core.vector(insn, 1)?;
    let a = core.xmm(insn.regs[0]);
    core.set_xmm(insn.regs[0], f(a, b, 16));
    Ok(())
}

fn mmx(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_mmx()?;
    let b = core.mmx_source(insn, 1)?;
    mmx_apply(core, insn, b)
}

fn mmx_low(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_mmx()?;
    let b = match insn.kinds[1] {
        Kind::Mem => u64::from(core.read::<u32>(insn.seg, insn.address(core))?),
        _ => core.mm(insn.regs[1]),
    };
    mmx_apply(core, insn, b)
}

fn mmx_apply(core: &mut Core<'_>, insn: &Insn, b: u64) -> Done {
    let Some(f) = packed::binary(insn.code.mnemonic()) else { return ud() };
    let a = core.mm(insn.regs[0]);
    core.enter_mmx();
    core.set_mm(insn.regs[0], f(u128::from(a), u128::from(b), 8) as u64);
    Ok(())
}

fn widen(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let Some((bytes, f)) = packed::widen(insn.code.mnemonic()) else { return ud() };
    let source = match bytes {
        2 => core.scalar::<u16>(insn, 1)?,
        4 => core.scalar::<u32>(insn, 1)?,
        _ => core.scalar::<u64>(insn, 1)?,
    };
    core.set_xmm(insn.regs[0], f(source));
    Ok(())
}

impl Core<'_> {
    /// Operand `n`: an MMX register, eight bytes of memory, or an immediate.
    pub(super) fn mmx_source(&mut self, insn: &Insn, n: usize) -> Result<u64, crate::Interrupted> {
        match insn.kinds[n] {
            Kind::Reg => Ok(self.mm(insn.regs[n])),
            Kind::Imm => Ok(insn.imm),
            _ => self.read(insn.seg, insn.address(self)),
        }
    }
}
