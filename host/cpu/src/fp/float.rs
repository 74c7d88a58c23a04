//! Packed and scalar floating-point arithmetic and comparisons.

use super::{
    Done,
    arith::{Op, Unit, lane_bits, predicate},
    lanes,
    soft::{F32, F64, Format, Relation},
    uses_xmm,
};
use crate::{
    core::{Core, ud},
    env::Interrupted,
    flags,
    insn::{Handler, Insn},
};
use iced_x86::{
    Instruction,
    Mnemonic::{self, *},
};

/// How many lanes an instruction works on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Packed,
    Scalar,
}
use Shape::{Packed, Scalar};

pub fn handler(i: &Instruction) -> Option<Handler> {
    if !uses_xmm(i) {
        return None;
    }
    let op = i.mnemonic();
    if arithmetic(op).is_some() {
        return Some(execute);
    }
    Some(match op {
        Cmpps | Cmppd | Cmpss | Cmpsd => compare,
        Comiss | Ucomiss | Comisd | Ucomisd => compare_flags,
        Haddps | Haddpd | Hsubps | Hsubpd | Addsubps | Addsubpd => horizontal,
        Roundps | Roundpd | Roundss | Roundsd => round,
        Rcpps | Rcpss | Rsqrtps | Rsqrtss => approximate,
        Dpps | Dppd => dot_product,
        _ => return None,
    })
}

fn arithmetic(op: Mnemonic) -> Option<(Op, Format, Shape)> {
    Some(match op {
        Addps => (Op::Add, F32, Packed),
        Addpd => (Op::Add, F64, Packed),
        Addss => (Op::Add, F32, Scalar),
        Addsd => (Op::Add, F64, Scalar),
        Subps => (Op::Sub, F32, Packed),
        Subpd => (Op::Sub, F64, Packed),
        Subss => (Op::Sub, F32, Scalar),
        Subsd => (Op::Sub, F64, Scalar),
        Mulps => (Op::Mul, F32, Packed),
        Mulpd => (Op::Mul, F64, Packed),
        Mulss => (Op::Mul, F32, Scalar),
        Mulsd => (Op::Mul, F64, Scalar),
        Divps => (Op::Div, F32, Packed),
        Divpd => (Op::Div, F64, Packed),
        Divss => (Op::Div, F32, Scalar),
        Divsd => (Op::Div, F64, Scalar),
        Minps => (Op::Min, F32, Packed),
        Minpd => (Op::Min, F64, Packed),
        Minss => (Op::Min, F32, Scalar),
        Minsd => (Op::Min, F64, Scalar),
        Maxps => (Op::Max, F32, Packed),
        Maxpd => (Op::Max, F64, Packed),
        Maxss => (Op::Max, F32, Scalar),
        Maxsd => (Op::Max, F64, Scalar),
        Sqrtps => (Op::Sqrt, F32, Packed),
        Sqrtpd => (Op::Sqrt, F64, Packed),
        Sqrtss => (Op::Sqrt, F32, Scalar),
        Sqrtsd => (Op::Sqrt, F64, Scalar),
        _ => return None,
    })
}

impl Core<'_> {
    /// Operand `n`: all lanes, or the lowest.
    fn lanes(&mut self, insn: &Insn, n: usize, format: Format, shape: Shape) -> Result<u128, Interrupted> {
        match (shape, format) {
            (Packed, _) => self.vector(insn, n),
            (Scalar, F32) => self.scalar::<u32>(insn, n),
            (Scalar, _) => self.scalar::<u64>(insn, n),
        }
    }

    /// Replaces lanes of the destination by `f(unit, lane of destination, lane of source)`.
    fn map(
        &mut self,
        insn: &Insn,
        (format, shape): (Format, Shape),
        f: impl Fn(&mut Unit, u64, u64) -> u64,
    ) -> Done {
        let b = self.lanes(insn, 1, format, shape)?;
        let a = self.xmm(insn.regs[0]);
        let mut unit = Unit::new(self.mxcsr(), format);
        let result = match (shape, format) {
            (Packed, F32) => {
                lanes::build::<32>(|i| f(&mut unit, lanes::lane::<32>(a, i), lanes::lane::<32>(b, i)))
            }
            (Packed, _) => {
                lanes::build::<64>(|i| f(&mut unit, lanes::lane::<64>(a, i), lanes::lane::<64>(b, i)))
            }
            (Scalar, F32) => lanes::replace::<32>(a, 0, f(&mut unit, lanes::lane::<32>(a, 0), b as u64)),
            (Scalar, _) => lanes::replace::<64>(a, 0, f(&mut unit, a as u64, b as u64)),
        };
        self.raise_sse(unit.context.flags)?;
        self.set_xmm(insn.regs[0], result);
        Ok(())
    }
}

fn execute(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let Some((op, format, shape)) = arithmetic(insn.code.mnemonic()) else { return ud() };
    core.map(insn, (format, shape), |unit, a, b| unit.apply(op, a, b))
}

fn compare(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let kind = match insn.code.mnemonic() {
        Cmpps => (F32, Packed),
        Cmppd => (F64, Packed),
        Cmpss => (F32, Scalar),
        _ => (F64, Scalar),
    };
    let which = insn.imm as u8 & 7;
    core.map(insn, kind, |unit, a, b| if predicate(unit, which, a, b) { u64::MAX } else { 0 })
}

/// COMISS and its kin. See: SDM vol. 2A COMISD
fn compare_flags(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let (format, signal_quiet) = match insn.code.mnemonic() {
        Comiss => (F32, true),
        Ucomiss => (F32, false),
        Comisd => (F64, true),
        _ => (F64, false),
    };
    let b = core.lanes(insn, 1, format, Scalar)? as u64;
    let a = core.lanes(insn, 0, format, Scalar)? as u64;
    let mut unit = Unit::new(core.mxcsr(), format);
    let relation = unit.compare(a, b, signal_quiet);
    core.raise_sse(unit.context.flags)?;
    core.set_status(match relation {
        Relation::Unordered => flags::ZF | flags::PF | flags::CF,
        Relation::Less => flags::CF,
        Relation::Equal => flags::ZF,
        Relation::Greater => 0,
    });
    Ok(())
}

fn horizontal(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let op = insn.code.mnemonic();
    let format = if matches!(op, Haddps | Hsubps | Addsubps) { F32 } else { F64 };
    let b = core.vector(insn, 1)?;
    let a = core.xmm(insn.regs[0]);
    let mut unit = Unit::new(core.mxcsr(), format);
    let lane =
        |v: u128, i: u32| if format == F32 { lanes::lane::<32>(v, i) } else { lanes::lane::<64>(v, i) };
    let half = 64 / lane_bits(format);
    let one = |i: u32| match op {
        Addsubps | Addsubpd => unit.apply(if i & 1 == 0 { Op::Sub } else { Op::Add }, lane(a, i), lane(b, i)),
        _ => {
            let (from, i) = if i < half { (a, i) } else { (b, i - half) };
            let op = if matches!(op, Haddps | Haddpd) { Op::Add } else { Op::Sub };
            unit.apply(op, lane(from, 2 * i), lane(from, 2 * i + 1))
        }
    };
    let result = if format == F32 { lanes::build::<32>(one) } else { lanes::build::<64>(one) };
    core.raise_sse(unit.context.flags)?;
    core.set_xmm(insn.regs[0], result);
    Ok(())
}

/// ROUNDPS and its kin. See: SDM vol. 2B Figure 4-24. Bit Control Fields of Immediate Byte for ROUNDx Instruction
fn round(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let kind = match insn.code.mnemonic() {
        Roundps => (F32, Packed),
        Roundpd => (F64, Packed),
        Roundss => (F32, Scalar),
        _ => (F64, Scalar),
    };
    let imm = insn.imm as u8;
    let (from_mxcsr, quietly) = (imm & 4 != 0, imm & 8 != 0);
    core.map(insn, kind, |unit, _, b| {
        if !from_mxcsr {
            unit.context.rounding = super::soft::Rounding::from_rc(imm);
        }
        unit.round(b, quietly)
    })
}

/// RCPPS and RSQRTPS: processors differ within the relative error 1.5 * 2^-12; here 12 bits are exact.
fn approximate(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let op = insn.code.mnemonic();
    let shape = if matches!(op, Rcpps | Rsqrtps) { Packed } else { Scalar };
    core.map(insn, (F32, shape), |_, _, b| {
        // They raise no exception and know no denormals.
        let mut unit =
            Unit::new(super::mxcsr::Mxcsr::new().with_daz(true).with_ftz(true).with_masks(0x3f), F32);
        let one = u64::from(1f32.to_bits());
        let argument = if matches!(op, Rcpps | Rcpss) { b } else { unit.apply(Op::Sqrt, 0, b) };
        let exact = unit.apply(Op::Div, one, argument) as u32;
        let nan = f32::from_bits(exact).is_nan();
        u64::from(if nan { exact } else { exact & !0xfff })
    })
}

/// DPPS, DPPD. Sums are formed pairwise, as the manual's pseudocode has it.
fn dot_product(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let single = insn.code.mnemonic() == Dpps;
    let format = if single { F32 } else { F64 };
    let (b, a) = (core.vector(insn, 1)?, core.xmm(insn.regs[0]));
    let imm = insn.imm as u32;
    let mut unit = Unit::new(core.mxcsr(), format);
    let lane = |v: u128, i: u32| if single { lanes::lane::<32>(v, i) } else { lanes::lane::<64>(v, i) };
    let mut product =
        |i: u32| if imm >> (4 + i) & 1 != 0 { unit.apply(Op::Mul, lane(a, i), lane(b, i)) } else { 0 };
    let products =
        [product(0), product(1), if single { product(2) } else { 0 }, if single { product(3) } else { 0 }];
    // Multiplications trap before the additions are carried out.
    core.raise_sse(unit.context.flags)?;
    // Which NaN wins is each implementation's own; anything else is the same in either order.
    let high_first = core.model.rules.dot_product_prefers_high;
    let mut add = |low, high| {
        let (a, b) = if high_first { (high, low) } else { (low, high) };
        unit.apply(Op::Add, a, b)
    };
    let low = add(products[0], products[1]);
    let sum = if single {
        let high = add(products[2], products[3]);
        add(low, high)
    } else {
        low
    };
    core.raise_sse(unit.context.flags)?;
    let one = |i: u32| if imm >> i & 1 != 0 { sum } else { 0 };
    let result = if single { lanes::build::<32>(one) } else { lanes::build::<64>(one) };
    core.set_xmm(insn.regs[0], result);
    Ok(())
}
