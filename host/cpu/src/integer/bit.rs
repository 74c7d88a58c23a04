//! BT, BTS, BTR, BTC, BSF, BSR, TZCNT, LZCNT, POPCNT.

use crate::{
    core::Core,
    env::Interrupted,
    features::Features,
    flags::{self, CF, ZF},
    insn::{Handler, Insn, Kind},
    integer::{operand_size, sized},
    operand::Int,
};
use iced_x86::{Instruction, Mnemonic};

type Done = Result<(), Interrupted>;

const BT: u8 = 0;
const BTS: u8 = 1;
const BTR: u8 = 2;
const BTC: u8 = 3;

/// Without the extension, TZCNT and LZCNT are BSF and BSR with a prefix that means nothing.
pub(crate) fn handler(i: &Instruction, features: &Features) -> Option<Handler> {
    let size = operand_size(i, 0);
    Some(match i.mnemonic() {
        Mnemonic::Bt => sized!(size, T => bit::<BT, T>),
        Mnemonic::Bts => sized!(size, T => bit::<BTS, T>),
        Mnemonic::Btr => sized!(size, T => bit::<BTR, T>),
        Mnemonic::Btc => sized!(size, T => bit::<BTC, T>),
        Mnemonic::Tzcnt if features.bmi1 => sized!(size, T => tzcnt::<T>),
        Mnemonic::Lzcnt if features.lzcnt => sized!(size, T => lzcnt::<T>),
        Mnemonic::Bsf | Mnemonic::Tzcnt => sized!(size, T => bsf::<T>),
        Mnemonic::Bsr | Mnemonic::Lzcnt => sized!(size, T => bsr::<T>),
        Mnemonic::Popcnt => sized!(size, T => popcnt::<T>),
        _ => return None,
    })
}

/// A register as bit offset reaches beyond a memory operand, as a signed number.
fn bit<const OP: u8, T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let mut offset = insn.imm as i64;
    let mut address = insn.address(core);
    if insn.kinds[1] == Kind::Reg {
        offset = T::get(core, insn.regs[1]).to_i64();
        let element = offset >> T::BITS.trailing_zeros();
        address = address.wrapping_add((element as u64).wrapping_mul(T::BYTES)) & insn.address_mask();
    }
    let mask = 1 << (offset as u64 % u64::from(T::BITS));
    let change = |old: T| {
        let x = old.to_u64();
        let new = match OP {
            BTS => x | mask,
            BTR => x & !mask,
            BTC => x ^ mask,
            _ => x,
        };
        (T::from_u64(new), x & mask != 0)
    };
    let was_set = match (insn.kinds[0], OP) {
        (Kind::Reg, BT) => change(T::get(core, insn.regs[0])).1,
        (Kind::Reg, _) => core.modify(insn, 0, change)?,
        (_, BT) => change(core.read(insn.seg, address)?).1,
        _ => core.rmw(insn.seg, address, change)?,
    };
    core.set_flags(CF, u64::from(was_set));
    Ok(())
}

/// A source of zero leaves the destination alone, which processors do and AMD documents.
fn bsf<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let source = core.get::<T>(insn, 1)?.to_u64();
    scan::<T>(core, insn, source, source.trailing_zeros())
}

fn bsr<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let source = core.get::<T>(insn, 1)?.to_u64();
    scan::<T>(core, insn, source, 63u32.wrapping_sub(source.leading_zeros()))
}

fn scan<T: Int>(core: &mut Core<'_>, insn: &Insn, source: u64, index: u32) -> Done {
    if source != 0 {
        T::from_u64(index.into()).set(core, insn.regs[0]);
    }
    core.set_flags(ZF, if source == 0 { ZF } else { 0 });
    Ok(())
}

fn tzcnt<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let source = core.get::<T>(insn, 1)?.to_u64();
    count::<T>(core, insn, source.trailing_zeros().min(T::BITS))
}

fn lzcnt<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let source = core.get::<T>(insn, 1)?.to_u64();
    count::<T>(core, insn, source.leading_zeros() - (64 - T::BITS))
}

/// CF: the source was zero. ZF: the result is.
fn count<T: Int>(core: &mut Core<'_>, insn: &Insn, result: u32) -> Done {
    T::from_u64(result.into()).set(core, insn.regs[0]);
    let carry = if result == T::BITS { CF } else { 0 };
    core.set_flags(CF | ZF, carry | if result == 0 { ZF } else { 0 });
    Ok(())
}

fn popcnt<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let source = core.get::<T>(insn, 1)?.to_u64();
    T::from_u64(source.count_ones().into()).set(core, insn.regs[0]);
    core.set_status(if source == 0 { ZF } else { 0 } & flags::STATUS);
    Ok(())
}
