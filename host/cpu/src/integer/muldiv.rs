//! MUL, IMUL, DIV, IDIV.

use crate::{
    core::{Core, fault},
    env::Interrupted,
    flags::{CF, OF},
    insn::{HIGH_BYTE, Handler, Insn},
    integer::{operand_size, sized},
    operand::Int,
};
use iced_x86::{Instruction, Mnemonic};
use vmtape_arch::{
    exception::Vector,
    vcpu::gpr::{RAX, RDX},
};

type Done = Result<(), Interrupted>;

pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    let size = operand_size(i, 0);
    Some(match (i.mnemonic(), i.op_count()) {
        (Mnemonic::Mul, _) => sized!(size, T => mul::<T>),
        (Mnemonic::Imul, 1) => sized!(size, T => imul::<T>),
        (Mnemonic::Imul, 2) => sized!(size, T => imul_to::<T, 0, 1>),
        (Mnemonic::Imul, _) => sized!(size, T => imul_to::<T, 1, 2>),
        (Mnemonic::Div, _) => sized!(size, T => div::<T>),
        (Mnemonic::Idiv, _) => sized!(size, T => idiv::<T>),
        _ => return None,
    })
}

/// The double-width accumulator: AX for bytes, else rDX:rAX.
fn accumulator<T: Int>(core: &Core<'_>) -> u128 {
    if T::BITS == 8 {
        return u128::from(u16::get(core, RAX as u8));
    }
    let high = u128::from(T::get(core, RDX as u8).to_u64());
    high << T::BITS | u128::from(T::get(core, RAX as u8).to_u64())
}

fn set_pair<T: Int>(core: &mut Core<'_>, low: u64, high: u64) {
    let high_register = if T::BITS == 8 { HIGH_BYTE + RAX as u8 } else { RDX as u8 };
    T::from_u64(low).set(core, RAX as u8);
    T::from_u64(high).set(core, high_register);
}

/// CF and OF say whether the upper half matters; the others are undefined and stay.
fn set_overflow(core: &mut Core<'_>, overflow: bool) {
    core.set_flags(CF | OF, if overflow { CF | OF } else { 0 });
}

fn mul<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let b = core.get::<T>(insn, 0)?;
    let product = u128::from(T::get(core, RAX as u8).to_u64()) * u128::from(b.to_u64());
    let high = (product >> T::BITS) as u64;
    set_pair::<T>(core, product as u64, high);
    set_overflow(core, high != 0);
    Ok(())
}

/// The product, and whether it does not fit.
#[inline(always)]
fn signed_product<T: Int>(a: T, b: T) -> (i128, bool) {
    let product = i128::from(a.to_i64()) * i128::from(b.to_i64());
    let fits = i128::from(T::from_u64(product as u64).to_i64()) == product;
    (product, !fits)
}

fn imul<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let b = core.get::<T>(insn, 0)?;
    let (product, overflow) = signed_product(T::get(core, RAX as u8), b);
    set_pair::<T>(core, product as u64, (product >> T::BITS) as u64);
    set_overflow(core, overflow);
    Ok(())
}

fn imul_to<T: Int, const A: usize, const B: usize>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let (a, b) = (core.get::<T>(insn, A)?, core.get::<T>(insn, B)?);
    let (product, overflow) = signed_product(a, b);
    T::from_u64(product as u64).set(core, insn.regs[0]);
    set_overflow(core, overflow);
    Ok(())
}

fn div<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let divisor = u128::from(core.get::<T>(insn, 0)?.to_u64());
    let dividend = accumulator::<T>(core);
    let Some(quotient) = dividend.checked_div(divisor) else { return fault(Vector::DE) };
    if quotient >> T::BITS != 0 {
        return fault(Vector::DE);
    }
    set_pair::<T>(core, quotient as u64, (dividend % divisor) as u64);
    Ok(())
}

fn idiv<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let divisor = i128::from(core.get::<T>(insn, 0)?.to_i64());
    let unused = 128 - 2 * T::BITS;
    let dividend = (accumulator::<T>(core) << unused) as i128 >> unused;
    let Some(quotient) = dividend.checked_div(divisor) else { return fault(Vector::DE) };
    if i128::from(T::from_u64(quotient as u64).to_i64()) != quotient {
        return fault(Vector::DE);
    }
    set_pair::<T>(core, quotient as u64, (dividend % divisor) as u64);
    Ok(())
}
