//! x87 arithmetic.

use super::super::{
    Done,
    soft::{Class, Context, F32, F64, F80, Number},
};
use super::{HANDLED, Operand, nan};
use crate::{
    core::Core,
    insn::{Handler, Insn, Kind},
};
use iced_x86::{
    Code, Instruction,
    Mnemonic::{self, *},
};

/// What a two-operand instruction computes from its destination `a` and its source `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Add,
    Sub,
    SubReversed,
    Mul,
    Div,
    DivReversed,
}

pub fn handler(i: &Instruction) -> Option<Handler> {
    if operation(i.mnemonic()).is_some() {
        return Some(two_operands);
    }
    Some(match i.mnemonic() {
        Fsqrt | Frndint => one_operand,
        Fchs | Fabs => change_sign,
        Fxtract => extract,
        Fscale => scale,
        Fprem | Fprem1 => remainder,
        _ => return None,
    })
}

fn operation(op: Mnemonic) -> Option<Op> {
    Some(match op {
        Fadd | Faddp | Fiadd => Op::Add,
        Fsub | Fsubp | Fisub => Op::Sub,
        Fsubr | Fsubrp | Fisubr => Op::SubReversed,
        Fmul | Fmulp | Fimul => Op::Mul,
        Fdiv | Fdivp | Fidiv => Op::Div,
        Fdivr | Fdivrp | Fidivr => Op::DivReversed,
        _ => return None,
    })
}

fn two_operands(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let Some(op) = operation(insn.code.mnemonic()) else { return HANDLED };
    let destination = if insn.kinds[0] == Kind::Reg { insn.regs[0] } else { 0 };
    let mut cx = core.x87_context(true);
    let Some(source) = source(core, insn)? else {
        return stack_underflow(core, insn, destination);
    };
    if core.is_empty(destination) {
        return stack_underflow(core, insn, destination);
    }
    let a = core.st_number(destination);
    let (a, b) = if matches!(op, Op::SubReversed | Op::DivReversed) { (source, a) } else { (a, source) };
    let result = match nan(&mut cx, a, b) {
        Some(nan) => nan,
        None => match op {
            Op::Add => cx.add(F80, a, b),
            Op::Sub | Op::SubReversed => cx.sub(F80, a, b),
            Op::Mul => cx.mul(F80, a, b),
            Op::Div | Op::DivReversed => cx.div(F80, a, b),
        },
    };
    if core.raise_x87(&cx) {
        core.set_st(destination, result);
        pop_if(core, insn);
    }
    Ok(())
}

fn stack_underflow(core: &mut Core<'_>, insn: &Insn, destination: u8) -> Done {
    if core.stack_fault(false) {
        core.set_st(destination, F80.indefinite());
        pop_if(core, insn);
    }
    HANDLED
}

fn pop_if(core: &mut Core<'_>, insn: &Insn) {
    if matches!(insn.code.mnemonic(), Faddp | Fsubp | Fsubrp | Fmulp | Fdivp | Fdivrp) {
        core.pop_st();
    }
}

/// The source operand; `None` if its register is empty.
fn source(core: &mut Core<'_>, insn: &Insn) -> Operand {
    if insn.kinds[0] == Kind::Reg {
        let n = insn.regs[1];
        return Ok((!core.is_empty(n)).then(|| core.st_number(n)));
    }
    use Code::*;
    let bits = match insn.code {
        Fadd_m32fp | Fmul_m32fp | Fsub_m32fp | Fsubr_m32fp | Fdiv_m32fp | Fdivr_m32fp => {
            return core.read_real(insn, F32).map(Some);
        }
        Fadd_m64fp | Fmul_m64fp | Fsub_m64fp | Fsubr_m64fp | Fdiv_m64fp | Fdivr_m64fp => {
            return core.read_real(insn, F64).map(Some);
        }
        Fiadd_m16int | Fimul_m16int | Fisub_m16int | Fisubr_m16int | Fidiv_m16int | Fidivr_m16int => 16,
        _ => 32,
    };
    let value = core.read_integer(insn, bits)?;
    let exact = Context::exact_integer(F80, value);
    Ok(Some(Number::unpack(F80, exact)))
}

/// A one-operand instruction's ST(0); `None` if it is empty, which has been dealt with.
fn top(core: &mut Core<'_>) -> Option<Number> {
    if !core.is_empty(0) {
        return Some(core.st_number(0));
    }
    if core.stack_fault(false) {
        core.set_st(0, F80.indefinite());
    }
    None
}

fn one_operand(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let Some(a) = top(core) else { return HANDLED };
    let square_root = insn.code.mnemonic() == Fsqrt;
    let mut cx = core.x87_context(square_root);
    let result = match nan(&mut cx, a, a) {
        Some(nan) => nan,
        None if square_root => cx.sqrt(F80, a),
        None => {
            cx.note_denormals(&[a]);
            cx.round_to_integral(F80, a, false)
        }
    };
    if core.raise_x87(&cx) {
        core.set_st(0, result);
    }
    Ok(())
}

fn change_sign(core: &mut Core<'_>, insn: &Insn) -> Done {
    const SIGN: u128 = 1 << 79;
    core.check_x87()?;
    let Some(_) = top(core) else { return HANDLED };
    let value = core.st(0);
    let status = core.status();
    core.set_status_word(status.with_c1(false));
    core.set_st(0, if insn.code.mnemonic() == Fchs { value ^ SIGN } else { value & !SIGN });
    Ok(())
}

/// FXTRACT: the exponent replaces ST(0), the significand is pushed.
fn extract(core: &mut Core<'_>, _: &Insn) -> Done {
    core.check_x87()?;
    if core.is_empty(0) || !core.is_empty(7) {
        let overflow = !core.is_empty(0);
        if core.stack_fault(overflow) {
            core.set_st(0, F80.indefinite());
            core.turn(7);
            core.set_st(0, F80.indefinite());
        }
        return HANDLED;
    }
    let a = core.st_number(0);
    let mut cx = core.x87_context(false);
    let (exponent, significand) = match (nan(&mut cx, a, a), a.class) {
        (Some(nan), _) => (nan, nan),
        (None, Class::Infinity) => (F80.infinity(false), F80.infinity(a.sign)),
        (None, Class::Zero) => {
            cx.flags.set_zero_divide(true);
            (F80.infinity(true), F80.zero(a.sign))
        }
        _ => {
            cx.note_denormals(&[a]);
            let mut exact = Context::DEFAULT;
            (Context::exact_integer(F80, a.exp.into()), exact.repack(F80, Number { exp: 0, ..a }))
        }
    };
    if core.raise_x87(&cx) {
        core.set_st(0, exponent);
        core.turn(7);
        core.set_st(0, significand);
    }
    Ok(())
}

/// Both operands of an instruction on ST(0) and ST(1).
fn top_two(core: &mut Core<'_>) -> Option<(Number, Number)> {
    if core.is_empty(0) || core.is_empty(1) {
        if core.stack_fault(false) {
            core.set_st(0, F80.indefinite());
        }
        return None;
    }
    Some((core.st_number(0), core.st_number(1)))
}

fn scale(core: &mut Core<'_>, _: &Insn) -> Done {
    core.check_x87()?;
    let Some((a, b)) = top_two(core) else { return HANDLED };
    let mut cx = core.x87_context(false);
    let result = match nan(&mut cx, a, b) {
        Some(nan) => nan,
        None => scaled(&mut cx, a, b),
    };
    if core.raise_x87(&cx) {
        core.set_st(0, result);
    }
    Ok(())
}

/// `a * 2^trunc(b)`. See: SDM vol. 2A Table 3-33. FSCALE Results
fn scaled(cx: &mut Context, a: Number, b: Number) -> u128 {
    match (a.class, b.class, b.sign) {
        (Class::Infinity, Class::Infinity, true) | (Class::Zero, Class::Infinity, false) => {
            return cx.invalid(F80);
        }
        _ => cx.note_denormals(&[a, b]),
    }
    match (a.class, b.class, b.sign) {
        (Class::Infinity, ..) => F80.infinity(a.sign),
        (Class::Zero, ..) => F80.zero(a.sign),
        (_, Class::Infinity, true) => F80.zero(a.sign),
        (_, Class::Infinity, false) => F80.infinity(a.sign),
        _ => {
            let truncated = Context { rounding: super::Rounding::Zero, ..Context::DEFAULT }.integer(b, 64);
            let by = truncated.unwrap_or(if b.sign { i64::MIN } else { i64::MAX }).clamp(-0x1_0000, 0x1_0000);
            cx.repack(F80, Number { exp: a.exp + by as i32, ..a })
        }
    }
}

/// FPREM (truncating) and FPREM1 (IEEE), at most 63 bits of quotient at a time.
fn remainder(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let status = core.status();
    core.set_status_word(status.with_c2(false));
    let Some((a, b)) = top_two(core) else { return HANDLED };
    let mut cx = core.x87_context(false);
    // A quotient's low bits and whether the reduction is incomplete; without one, the condition codes stay.
    let mut reduction = None;
    let result = match (nan(&mut cx, a, b), a.class, b.class) {
        (Some(nan), ..) => nan,
        (None, Class::Infinity, _) | (None, _, Class::Zero) => cx.invalid(F80),
        _ => {
            cx.note_denormals(&[a, b]);
            let (result, q, incomplete) = reduced(&mut cx, a, b, insn.code.mnemonic() == Fprem1);
            reduction = Some((q, incomplete));
            result
        }
    };
    if !core.raise_x87(&cx) {
        return HANDLED;
    }
    if let Some((quotient, incomplete)) = reduction {
        let bit = |n: u32| quotient >> n & 1 != 0;
        let status = core.status();
        core.set_status_word(status.with_c2(incomplete).with_c0(bit(2)).with_c3(bit(1)).with_c1(bit(0)));
    }
    core.set_st(0, result);
    Ok(())
}

/// The remainder, the low bits of the quotient, and whether the reduction is incomplete.
fn reduced(cx: &mut Context, a: Number, b: Number, nearest: bool) -> (u128, u64, bool) {
    if a.class == Class::Zero || b.class == Class::Infinity {
        return (cx.repack(F80, a), 0, false);
    }
    let distance = a.exp - b.exp;
    if distance >= 64 {
        // Any N of 32 to 63 bits is allowed; this one leaves a distance below 64 soonest.
        let step = 32 + (distance & 31);
        let rest = modulo(a.sig, b.sig, step).0;
        return (repack_integer(cx, a.sign, rest, b.exp + distance - step), 0, true);
    }
    if distance < -1 || distance < 0 && !nearest {
        return (cx.repack(F80, a), 0, false);
    }
    // With distance -1, `a` is between a quarter of `b` and `b`: one more bit of both.
    let (rest, quotient) = if distance < 0 { (a.sig as u128, 0) } else { modulo(a.sig, b.sig, distance) };
    let (unit, divisor) = if distance < 0 { (a.exp, (b.sig as u128) << 1) } else { (b.exp, b.sig as u128) };
    let above_half = rest * 2 > divisor || rest * 2 == divisor && quotient & 1 != 0;
    if nearest && above_half {
        return (repack_integer(cx, !a.sign, divisor - rest, unit), quotient + 1, false);
    }
    (repack_integer(cx, a.sign, rest, unit), quotient, false)
}

/// `(a << shift) % b` and the quotient's low bits, for `shift` below 64.
fn modulo(a: u64, b: u64, shift: i32) -> (u128, u64) {
    let dividend = (a as u128) << shift;
    (dividend % b as u128, (dividend / b as u128) as u64)
}

/// `value * 2^(exp - 63)`, which is exact.
fn repack_integer(cx: &mut Context, sign: bool, value: u128, exp: i32) -> u128 {
    if value == 0 {
        return F80.zero(sign);
    }
    let shift = value.leading_zeros() as i32;
    cx.round(F80, sign, exp + 64 - shift, value << shift)
}
