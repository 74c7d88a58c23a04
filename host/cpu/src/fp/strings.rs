//! SSE4.2 text: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM.
// See: SDM vol. 1 12.10.3.1 String Compare; vol. 2B 4.1 Imm8 Control Byte Operation

use super::{
    Done,
    lanes::{build, lane, signed},
};
use crate::{
    core::Core,
    env::Interrupted,
    flags,
    insn::{Handler, Insn, Kind},
    operand::Int,
};
use bitfield_struct::bitfield;
use iced_x86::{Instruction, Mnemonic::*};
use vmtape_arch::vcpu::gpr;

#[bitfield(u8)]
struct Control {
    words: bool,
    signed: bool,
    #[bits(2)]
    aggregation: u8,
    negate: bool,
    /// Negate valid elements of the second operand only.
    masked: bool,
    /// Index: the most significant; mask: expanded to elements.
    high: bool,
    __: bool,
}

pub fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Pcmpestri | Pcmpestri64 => explicit_index,
        Pcmpestrm | Pcmpestrm64 => explicit_mask,
        Pcmpistri => implicit_index,
        Pcmpistrm => implicit_mask,
        _ => return None,
    })
}

/// One operand: its elements and how many are valid.
#[derive(Clone, Copy)]
struct Text {
    value: u128,
    valid: u32,
}

impl Text {
    fn element(self, control: Control, i: u32) -> i64 {
        match (control.words(), control.signed()) {
            (false, false) => lane::<8>(self.value, i) as i64,
            (false, true) => signed::<8>(lane::<8>(self.value, i)),
            (true, false) => lane::<16>(self.value, i) as i64,
            (true, true) => signed::<16>(lane::<16>(self.value, i)),
        }
    }

    /// Valid up to the first null element.
    fn implicit(control: Control, value: u128) -> Self {
        let text = Self { value, valid: 0 };
        let valid = (0..count(control)).take_while(|i| text.element(control, *i) != 0).count();
        Self { value, valid: valid as u32 }
    }
}

fn count(control: Control) -> u32 {
    if control.words() { 8 } else { 16 }
}

/// The intermediate result, one bit per element of the second operand.
fn compare(control: Control, a: Text, b: Text) -> u32 {
    let n = count(control);
    let x = |i| a.element(control, i);
    let y = |i| b.element(control, i);
    let result = match control.aggregation() {
        0 => bits(n, |j| j < b.valid && (0..a.valid).any(|i| x(i) == y(j))),
        1 => bits(n, |j| {
            j < b.valid && (0..a.valid / 2).any(|pair| x(2 * pair) <= y(j) && y(j) <= x(2 * pair + 1))
        }),
        2 => bits(n, |j| match (j < a.valid, j < b.valid) {
            (true, true) => x(j) == y(j),
            (first, second) => first == second,
        }),
        _ => bits(n, |j| (0..a.valid.min(n - j)).all(|i| j + i < b.valid && x(i) == y(j + i))),
    };
    match (control.negate(), control.masked()) {
        (false, _) => result,
        (true, false) => !result & bits(n, |_| true),
        (true, true) => result ^ bits(n, |j| j < b.valid),
    }
}

fn bits(n: u32, f: impl Fn(u32) -> bool) -> u32 {
    (0..n).fold(0, |set, j| set | u32::from(f(j)) << j)
}

/// Sets the flags and gives the intermediate result.
fn evaluate(core: &mut Core<'_>, control: Control, a: Text, b: Text) -> u32 {
    let n = count(control);
    let result = compare(control, a, b);
    let flag = |on: bool, mask: u64| if on { mask } else { 0 };
    core.set_status(
        flag(result != 0, flags::CF)
            | flag(b.valid < n, flags::ZF)
            | flag(a.valid < n, flags::SF)
            | flag(result & 1 != 0, flags::OF),
    );
    result
}

fn operands(core: &mut Core<'_>, insn: &Insn) -> Result<(u128, u128), Interrupted> {
    core.check_sse()?;
    // These forms need no alignment.
    let b = match insn.kinds[1] {
        Kind::Reg => core.xmm(insn.regs[1]),
        _ => core.read(insn.seg, insn.address(core))?,
    };
    Ok((core.xmm(insn.regs[0]), b))
}

fn explicit(core: &mut Core<'_>, insn: &Insn) -> Result<u32, Interrupted> {
    let (a, b) = operands(core, insn)?;
    let control = Control::from_bits(insn.imm as u8);
    let wide = matches!(insn.code.mnemonic(), Pcmpestri64 | Pcmpestrm64);
    let length = |register: usize| {
        let value = core.state.gpr[register];
        let value = if wide { value as i64 } else { i64::from(value as i32) };
        value.unsigned_abs().min(count(control).into()) as u32
    };
    let (a, b) = (Text { value: a, valid: length(gpr::RAX) }, Text { value: b, valid: length(gpr::RDX) });
    Ok(evaluate(core, control, a, b))
}

fn implicit(core: &mut Core<'_>, insn: &Insn) -> Result<u32, Interrupted> {
    let (a, b) = operands(core, insn)?;
    let control = Control::from_bits(insn.imm as u8);
    Ok(evaluate(core, control, Text::implicit(control, a), Text::implicit(control, b)))
}

fn set_index(core: &mut Core<'_>, insn: &Insn, result: u32) {
    let control = Control::from_bits(insn.imm as u8);
    let index = match (result, control.high()) {
        (0, _) => count(control),
        (_, true) => 31 - result.leading_zeros(),
        (_, false) => result.trailing_zeros(),
    };
    index.set(core, gpr::RCX as u8);
}

fn set_mask(core: &mut Core<'_>, insn: &Insn, result: u32) {
    let control = Control::from_bits(insn.imm as u8);
    let element = |i: u32| if result >> i & 1 != 0 { u64::MAX } else { 0 };
    let mask = match (control.high(), control.words()) {
        (false, _) => u128::from(result),
        (true, false) => build::<8>(element),
        (true, true) => build::<16>(element),
    };
    core.set_xmm(0, mask);
}

fn explicit_index(core: &mut Core<'_>, insn: &Insn) -> Done {
    let result = explicit(core, insn)?;
    set_index(core, insn, result);
    Ok(())
}

fn explicit_mask(core: &mut Core<'_>, insn: &Insn) -> Done {
    let result = explicit(core, insn)?;
    set_mask(core, insn, result);
    Ok(())
}

fn implicit_index(core: &mut Core<'_>, insn: &Insn) -> Done {
    let result = implicit(core, insn)?;
    set_index(core, insn, result);
    Ok(())
}

fn implicit_mask(core: &mut Core<'_>, insn: &Insn) -> Done {
    let result = implicit(core, insn)?;
    set_mask(core, insn, result);
    Ok(())
}
