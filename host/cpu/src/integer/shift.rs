//! ROL, ROR, RCL, RCR, SHL, SHR, SAR, SHLD, SHRD.

use crate::{
    core::Core,
    env::Interrupted,
    flags::{self, CF, OF, STATUS},
    insn::{Handler, Insn},
    integer::{operand_size, sized},
    operand::Int,
};
use iced_x86::{Instruction, Mnemonic, OpKind};

type Done = Result<(), Interrupted>;

const ROL: u8 = 0;
const ROR: u8 = 1;
const RCL: u8 = 2;
const RCR: u8 = 3;
const SHL: u8 = 4;
const SHR: u8 = 5;
const SAR: u8 = 7;

pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    let size = operand_size(i, 0);
    Some(match i.mnemonic() {
        Mnemonic::Rol => sized!(size, T => form::<ROL, T>(i)),
        Mnemonic::Ror => sized!(size, T => form::<ROR, T>(i)),
        Mnemonic::Rcl => sized!(size, T => form::<RCL, T>(i)),
        Mnemonic::Rcr => sized!(size, T => form::<RCR, T>(i)),
        Mnemonic::Shl | Mnemonic::Sal => sized!(size, T => form::<SHL, T>(i)),
        Mnemonic::Shr => sized!(size, T => form::<SHR, T>(i)),
        Mnemonic::Sar => sized!(size, T => form::<SAR, T>(i)),
        Mnemonic::Shld => sized!(size, T => double::<T, true>),
        Mnemonic::Shrd => sized!(size, T => double::<T, false>),
        _ => return None,
    })
}

fn form<const OP: u8, T: Int>(i: &Instruction) -> Handler {
    match (i.op0_kind(), i.op1_kind()) {
        (OpKind::Register, OpKind::Immediate8) => reg_imm::<OP, T>,
        _ => any::<OP, T>,
    }
}

/// Counts are taken modulo 32, or 64 for 64-bit operands.
#[inline(always)]
fn count_of<T: Int>(count: u64) -> u32 {
    count as u32 & if T::BITS == 64 { 0x3f } else { 0x1f }
}

fn reg_imm<const OP: u8, T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let count = count_of::<T>(insn.imm);
    let (result, mask, status) = compute::<OP, T>(T::get(core, insn.regs[0]), count, core.carry());
    result.set(core, insn.regs[0]);
    core.set_flags(mask, status);
    Ok(())
}

fn any<const OP: u8, T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let count = count_of::<T>(core.get::<u8>(insn, 1)?.into());
    let carry = core.carry();
    let (mask, status) = core.modify(insn, 0, |a: T| {
        let (result, mask, status) = compute::<OP, T>(a, count, carry);
        (result, (mask, status))
    })?;
    core.set_flags(mask, status);
    Ok(())
}

/// The result, which flags change, and their values. A count of zero changes none.
#[inline(always)]
fn compute<const OP: u8, T: Int>(a: T, count: u32, carry: bool) -> (T, u64, u64) {
    if count == 0 {
        return (a, 0, 0);
    }
    match OP {
        SHL | SHR | SAR => {
            let (result, status) = shift::<OP, T>(a, count);
            (result, STATUS, status)
        }
        ROL | ROR => {
            let (result, status) = rotate::<OP, T>(a, count);
            (result, CF | OF, status)
        }
        _ => {
            let (result, mask, status) = rotate_through_carry::<OP, T>(a, count, carry);
            (result, mask, status)
        }
    }
}

#[inline(always)]
fn top<T: Int>(value: u64) -> u64 {
    value >> (T::BITS - 1) & 1
}

/// Counts beyond the operand's width shift everything out; OF is what a shift by one would give.
#[inline(always)]
fn shift<const OP: u8, T: Int>(a: T, count: u32) -> (T, u64) {
    let x = a.to_u64();
    let (wide, carry, overflow) = match OP {
        SHL => {
            // One bit more than the operand, so that the last bit shifted out stays.
            let wide = u128::from(x) << count;
            let carry = (wide >> T::BITS) as u64 & 1;
            (wide as u64, carry, carry ^ top::<T>(wide as u64))
        }
        SHR => (x >> count, x >> (count - 1) & 1, top::<T>(x)),
        _ => {
            let signed = a.to_i64();
            ((signed >> count) as u64, (signed >> (count - 1)) as u64 & 1, 0)
        }
    };
    let result = T::from_u64(wide);
    (result, flags::szp(result) | carry | overflow << 11)
}

#[inline(always)]
fn rotate<const OP: u8, T: Int>(a: T, count: u32) -> (T, u64) {
    let x = a.to_u64();
    let by = count % T::BITS;
    let left = if OP == ROL { by } else { (T::BITS - by) % T::BITS };
    let result = T::from_u64(if left == 0 { x } else { x << left | x >> (T::BITS - left) });
    let r = result.to_u64();
    let (carry, overflow) = if OP == ROL {
        (r & 1, (r & 1) ^ top::<T>(r))
    } else {
        (top::<T>(r), top::<T>(r) ^ top::<T>(r << 1))
    };
    (result, carry | overflow << 11)
}

/// Rotates the operand with CF as one more bit. 8- and 16-bit counts are taken modulo 9 and 17.
fn rotate_through_carry<const OP: u8, T: Int>(a: T, count: u32, carry: bool) -> (T, u64, u64) {
    let width = T::BITS + 1;
    let by = count % width;
    if by == 0 {
        return (a, 0, 0);
    }
    let wide = u128::from(a.to_u64()) | u128::from(carry) << T::BITS;
    let left = if OP == RCL { by } else { width - by };
    let turned = wide << left | wide >> (width - left);
    let result = T::from_u64(turned as u64);
    let r = result.to_u64();
    let carry = (turned >> T::BITS) as u64 & 1;
    let overflow = if OP == RCL { carry ^ top::<T>(r) } else { top::<T>(r) ^ top::<T>(r << 1) };
    (result, CF | OF, carry | overflow << 11)
}

/// SHLD and SHRD. 16-bit counts above 16 are undefined; the source's bits come round again.
fn double<T: Int, const LEFT: bool>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let count = count_of::<T>(core.get::<u8>(insn, 2)?.into());
    let fill = T::get(core, insn.regs[1]).to_u64();
    let status = core.modify(insn, 0, |a: T| {
        let (result, status) = double_shift::<T, LEFT>(a, fill, count);
        (result, status)
    })?;
    if count != 0 {
        core.set_status(status);
    }
    Ok(())
}

fn double_shift<T: Int, const LEFT: bool>(a: T, fill: u64, count: u32) -> (T, u64) {
    if count == 0 {
        return (a, 0);
    }
    let x = a.to_u64();
    let bits = T::BITS;
    let (wide, carry) = if LEFT {
        let pair = u128::from(x) << bits | u128::from(fill);
        let triple_low = if count > bits { x << (count - bits) >> bits } else { 0 };
        let moved = (pair << count) >> bits;
        (moved as u64 | triple_low, (pair >> (2 * bits - count)) as u64 & 1)
    } else {
        let pair = u128::from(fill) << bits | u128::from(x);
        let again = if count > bits { x << (2 * bits - count) } else { 0 };
        ((pair >> count) as u64 | again, (pair >> (count - 1)) as u64 & 1)
    };
    let result = T::from_u64(wide);
    let overflow = top::<T>(x ^ result.to_u64());
    (result, flags::szp(result) | carry | overflow << 11)
}
