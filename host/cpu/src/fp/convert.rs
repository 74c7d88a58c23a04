//! Conversions between integers and floating point, and between the two precisions.

use super::{
    Done,
    arith::Unit,
    lanes::{build, lane, replace, signed},
    soft::{F32, F64, Format, Rounding},
};
use crate::{
    core::Core,
    env::Interrupted,
    insn::{Handler, Insn, Kind},
    operand::Int,
};
use iced_x86::{
    Instruction,
    Mnemonic::{self, *},
    OpKind,
};

pub fn handler(i: &Instruction) -> Option<Handler> {
    let wide_register = |n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_gpr64();
    let wide = wide_register(0) || wide_register(1) || i.memory_size().size() == 8;
    Some(match i.mnemonic() {
        Cvtsi2ss | Cvtsi2sd if wide => from_general::<u64>,
        Cvtsi2ss | Cvtsi2sd => from_general::<u32>,
        Cvtss2si | Cvttss2si | Cvtsd2si | Cvttsd2si if wide_register(0) => to_general::<u64>,
        Cvtss2si | Cvttss2si | Cvtsd2si | Cvttsd2si => to_general::<u32>,
        Cvtss2sd | Cvtsd2ss => between_scalars,
        Cvtps2pd | Cvtdq2pd => widen,
        Cvtpd2ps | Cvtpd2dq | Cvttpd2dq => narrow,
        Cvtdq2ps | Cvtps2dq | Cvttps2dq => same_width,
        Cvtpi2ps | Cvtpi2pd => from_mmx,
        Cvtps2pi | Cvttps2pi | Cvtpd2pi | Cvttpd2pi => to_mmx,
        _ => return None,
    })
}

fn truncates(op: Mnemonic) -> bool {
    matches!(op, Cvttss2si | Cvttsd2si | Cvttps2dq | Cvttpd2dq | Cvttps2pi | Cvttpd2pi)
}

impl Core<'_> {
    /// The unit for a conversion from `format`, truncating where the mnemonic says so.
    fn conversion(&self, insn: &Insn, format: Format) -> Unit {
        let mut unit = Unit::new(self.mxcsr(), format);
        if truncates(insn.code.mnemonic()) {
            unit.context.rounding = Rounding::Zero;
        }
        unit
    }
}

fn from_general<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let value = core.get::<T>(insn, 1)?.to_i64();
    let old = core.xmm(insn.regs[0]);
    let single = insn.code.mnemonic() == Cvtsi2ss;
    let mut unit = core.conversion(insn, if single { F32 } else { F64 });
    let result = unit.of_integer(value);
    core.raise_sse(unit.context.flags)?;
    core.set_xmm(
        insn.regs[0],
        if single { replace::<32>(old, 0, result) } else { replace::<64>(old, 0, result) },
    );
    Ok(())
}

fn to_general<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let single = matches!(insn.code.mnemonic(), Cvtss2si | Cvttss2si);
    let source = if single { core.scalar::<u32>(insn, 1)? } else { core.scalar::<u64>(insn, 1)? };
    let mut unit = core.conversion(insn, if single { F32 } else { F64 });
    let result = unit.integer(T::BITS, source as u64);
    core.raise_sse(unit.context.flags)?;
    T::from_u64(result).set(core, insn.regs[0]);
    Ok(())
}

fn between_scalars(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let widening = insn.code.mnemonic() == Cvtss2sd;
    let source = if widening { core.scalar::<u32>(insn, 1)? } else { core.scalar::<u64>(insn, 1)? } as u64;
    let mut unit = core.conversion(insn, if widening { F32 } else { F64 });
    let result = unit.convert(if widening { F64 } else { F32 }, source);
    core.raise_sse(unit.context.flags)?;
    let old = core.xmm(insn.regs[0]);
    core.set_xmm(
        insn.regs[0],
        if widening { replace::<64>(old, 0, result) } else { replace::<32>(old, 0, result) },
    );
    Ok(())
}

/// Two 32-bit lanes to two 64-bit lanes.
fn widen(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let source = core.scalar::<u64>(insn, 1)?;
    let integers = insn.code.mnemonic() == Cvtdq2pd;
    let mut unit = core.conversion(insn, if integers { F64 } else { F32 });
    let result = build::<64>(|i| {
        let x = lane::<32>(source, i);
        if integers { unit.of_integer(signed::<32>(x)) } else { unit.convert(F64, x) }
    });
    core.raise_sse(unit.context.flags)?;
    core.set_xmm(insn.regs[0], result);
    Ok(())
}

/// Two 64-bit lanes to two 32-bit lanes; the upper half becomes zero.
fn narrow(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let source = core.vector(insn, 1)?;
    let result = narrowed(core, insn, source)?;
    core.set_xmm(insn.regs[0], result);
    Ok(())
}

fn narrowed(core: &mut Core<'_>, insn: &Insn, source: u128) -> Result<u128, Interrupted> {
    let to_float = insn.code.mnemonic() == Cvtpd2ps;
    let mut unit = core.conversion(insn, F64);
    let result = build::<32>(|i| match (i, to_float) {
        (2.., _) => 0,
        (_, true) => unit.convert(F32, lane::<64>(source, i)),
        (_, false) => unit.integer(32, lane::<64>(source, i)),
    });
    core.raise_sse(unit.context.flags)?;
    Ok(result)
}

/// Four 32-bit lanes.
fn same_width(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let source = core.vector(insn, 1)?;
    let mut unit = core.conversion(insn, F32);
    let of_integer = insn.code.mnemonic() == Cvtdq2ps;
    let result = build::<32>(|i| {
        let x = lane::<32>(source, i);
        if of_integer { unit.of_integer(signed::<32>(x)) } else { unit.integer(32, x) }
    });
    core.raise_sse(unit.context.flags)?;
    core.set_xmm(insn.regs[0], result);
    Ok(())
}

fn from_mmx(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let single = insn.code.mnemonic() == Cvtpi2ps;
    let from_register = insn.kinds[1] == Kind::Reg;
    if from_register || single {
        core.check_x87()?;
    }
    let source = u128::from(core.mmx_source(insn, 1)?);
    let mut unit = core.conversion(insn, if single { F32 } else { F64 });
    let old = core.xmm(insn.regs[0]);
    let mut convert = |i| unit.of_integer(signed::<32>(lane::<32>(source, i)));
    let (low, high) = (convert(0), convert(1));
    core.raise_sse(unit.context.flags)?;
    // CVTPI2PD with a memory operand leaves the x87 state alone.
    if from_register || single {
        core.enter_mmx();
    }
    let result = if single {
        replace::<32>(replace::<32>(old, 0, low), 1, high)
    } else {
        u128::from(low) | u128::from(high) << 64
    };
    core.set_xmm(insn.regs[0], result);
    Ok(())
}

fn to_mmx(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    core.check_x87()?;
    let result = if matches!(insn.code.mnemonic(), Cvtpd2pi | Cvttpd2pi) {
        let source = core.vector(insn, 1)?;
        narrowed(core, insn, source)?
    } else {
        let source = core.scalar::<u64>(insn, 1)?;
        let mut unit = core.conversion(insn, F32);
        let result = build::<32>(|i| if i < 2 { unit.integer(32, lane::<32>(source, i)) } else { 0 });
        core.raise_sse(unit.context.flags)?;
        result
    };
    core.enter_mmx();
    core.set_mm(insn.regs[0], result as u64);
    Ok(())
}
