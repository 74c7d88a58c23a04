//! CMPXCHG, CMPXCHG8B, CMPXCHG16B.

use crate::{
    core::{Core, gp},
    env::Interrupted,
    flags::{self, ZF},
    insn::{Handler, Insn, Kind},
    integer::{operand_size, sized},
    operand::Int,
};
use iced_x86::{Instruction, Mnemonic};
use vmtape_arch::vcpu::gpr::{RAX, RBX, RCX, RDX};

type Done = Result<(), Interrupted>;

pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Mnemonic::Cmpxchg => sized!(operand_size(i, 0), T => cmpxchg::<T>),
        Mnemonic::Cmpxchg8b => cmpxchg8b,
        Mnemonic::Cmpxchg16b => cmpxchg16b,
        _ => return None,
    })
}

/// Memory is written whatever the comparison says: with its old value if it differs. A register is not: its upper half
/// survives a 32-bit comparison that fails.
fn cmpxchg<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let expected = T::get(core, RAX as u8);
    let new = T::get(core, insn.regs[1]);
    let old = match insn.kinds[0] {
        Kind::Reg => T::get(core, insn.regs[0]),
        _ => core.modify(insn, 0, |old: T| (if old == expected { new } else { old }, old))?,
    };
    if old != expected {
        old.set(core, RAX as u8);
    } else if insn.kinds[0] == Kind::Reg {
        new.set(core, insn.regs[0]);
    }
    core.set_status(flags::sub(expected, old, false).1);
    Ok(())
}

fn cmpxchg8b(core: &mut Core<'_>, insn: &Insn) -> Done {
    let pair = |high, low| u64::from(u32::get(core, high)) << 32 | u64::from(u32::get(core, low));
    let (expected, new) = (pair(RDX as u8, RAX as u8), pair(RCX as u8, RBX as u8));
    let address = insn.address(core);
    let old = core.rmw(insn.seg, address, |old: u64| (if old == expected { new } else { old }, old))?;
    if old != expected {
        (old as u32).set(core, RAX as u8);
        ((old >> 32) as u32).set(core, RDX as u8);
    }
    core.set_flags(ZF, if old == expected { ZF } else { 0 });
    Ok(())
}

fn cmpxchg16b(core: &mut Core<'_>, insn: &Insn) -> Done {
    let gpr = &core.state.gpr;
    let pair = |high: usize, low: usize| u128::from(gpr[high]) << 64 | u128::from(gpr[low]);
    let (expected, new) = (pair(RDX, RAX), pair(RCX, RBX));
    let address = insn.address(core);
    if !address.wrapping_add(core.segment_base(insn.seg)).is_multiple_of(16) {
        return gp(0);
    }
    let old = core.rmw(insn.seg, address, |old: u128| (if old == expected { new } else { old }, old))?;
    if old != expected {
        core.state.gpr[RAX] = old as u64;
        core.state.gpr[RDX] = (old >> 64) as u64;
    }
    core.set_flags(ZF, if old == expected { ZF } else { 0 });
    Ok(())
}
