//! What must be equal after an instruction, and what the manuals leave undefined.

use crate::{
    case::{Case, WINDOW_SIZE},
    silicon::{Context, Ending},
};
use iced_x86::{Mnemonic, OpKind, RflagsBits};

/// State after an instruction.
pub struct Outcome {
    pub context: Context,
    pub data: [u8; WINDOW_SIZE],
    pub ending: Ending,
}

/// The vector of #XM.
const SIMD_FLOATING_POINT: u8 = 19;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
const FLAGS: u64 = CF | PF | AF | ZF | SF | DF | OF;

/// The first difference, in words.
pub fn difference(case: &Case, before: &Context, native: &Outcome, ours: &Outcome) -> Option<String> {
    if native.ending != ours.ending {
        return Some(format!("ends in {:?}, not in {:?}", ours.ending, native.ending));
    }
    for n in 0..16 {
        let (expected, actual) = (native.context.gpr[n], ours.context.gpr[n]);
        if expected != actual && !is_undefined_register(case, before, n) {
            return Some(format!("register {n} is {actual:#x}, not {expected:#x}"));
        }
    }
    let faulted = matches!(native.ending, Ending::Fault(_));
    let defined = if faulted { FLAGS } else { FLAGS & !undefined_flags(case, before) };
    let differing = (native.context.rflags ^ ours.context.rflags) & defined;
    if differing != 0 {
        return Some(format!(
            "flags {:#x} differ: {:#x}, not {:#x}",
            differing, ours.context.rflags, native.context.rflags
        ));
    }
    for n in 0..16 {
        let (expected, actual) = (native.context.xmm(n), ours.context.xmm(n));
        if expected != actual {
            return Some(format!("xmm{n} is {actual:x?}, not {expected:x?}"));
        }
    }
    if native.context.mxcsr() != ours.context.mxcsr() {
        return Some(format!("MXCSR is {:#x}, not {:#x}", ours.context.mxcsr(), native.context.mxcsr()));
    }
    let at = native.data.iter().zip(&ours.data).position(|(expected, actual)| expected != actual);
    if let Some(at) = at
        && !is_undefined_result(case, before)
    {
        let end = (at + 16).min(WINDOW_SIZE);
        return Some(format!(
            "memory at {at:#x}: {:x?}, not {:x?}",
            &ours.data[at..end],
            &native.data[at..end]
        ));
    }
    // Conversions to and from MMX registers that raise #XM: processors differ in whether they have entered MMX state.
    let entered = native.ending != Ending::Fault(SIMD_FLOATING_POINT);
    if case.uses_x87() && entered { x87(case, native, ours) } else { None }
}

fn x87(case: &Case, native: &Outcome, ours: &Outcome) -> Option<String> {
    let undefined = undefined_conditions(case.instruction.mnemonic());
    let word = |outcome: &Outcome, at: usize| {
        let word = u16::from_le_bytes([outcome.context.fx[at], outcome.context.fx[at + 1]]);
        if at == FSW_AT { word & !undefined } else { word }
    };
    for (at, name) in [(0, "FCW"), (FSW_AT, "FSW"), (4, "FTW")] {
        if word(native, at) != word(ours, at) {
            return Some(format!("{name} is {:#x}, not {:#x}", word(ours, at), word(native, at)));
        }
    }
    (0..8).find_map(|n| {
        let (expected, actual) = (native.context.st(n), ours.context.st(n));
        (expected != actual).then(|| {
            format!("ST({n}) is {:#x}, not {:#x}", u128::from_le_bytes(actual), u128::from_le_bytes(expected))
        })
    })
}

/// Where FXSAVE puts the x87 status word.
const FSW_AT: usize = 2;

/// Condition code C1 where Intel's and AMD's manuals disagree on what becomes of it.
fn undefined_conditions(op: Mnemonic) -> u16 {
    use Mnemonic::*;
    const C1: u16 = 1 << 9;
    match op {
        Fcmovb | Fcmove | Fcmovbe | Fcmovu | Fcmovnb | Fcmovne | Fcmovnbe | Fcmovnu => C1,
        Fcomi | Fcomip | Fucomi | Fucomip | Ffree | Ffreep => C1,
        _ => 0,
    }
}

/// Flags that the manuals leave undefined, by iced-x86's tables and for the counts of shifts.
fn undefined_flags(case: &Case, before: &Context) -> u64 {
    let i = &case.instruction;
    let table = i.rflags_undefined();
    let names = [
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
        (RflagsBits::AF, AF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::SF, SF),
        (RflagsBits::OF, OF),
    ];
    let listed = names.iter().filter(|(bit, _)| table & bit != 0).fold(0, |mask, (_, flag)| mask | flag);
    match shift_count(case, before) {
        // Nothing changes.
        Some((0, _)) => 0,
        Some((count, bits)) => {
            let rotates =
                matches!(i.mnemonic(), Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr);
            let overflow = if count == 1 { 0 } else { OF };
            let adjust = if rotates { 0 } else { AF };
            // See: SDM vol. 2B SAL/SAR/SHL/SHR; SHLD: a count above the operand size leaves everything undefined.
            let double = matches!(i.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
            let carry = if count >= bits && !rotates && i.mnemonic() != Mnemonic::Sar { CF } else { 0 };
            if double && count > bits { FLAGS & !DF } else { overflow | adjust | carry }
        }
        None => listed,
    }
}

/// The masked count of a shift or rotate, and its operand's width in bits.
fn shift_count(case: &Case, before: &Context) -> Option<(u32, u32)> {
    use Mnemonic::{Rcl, Rcr, Rol, Ror, Sal, Sar, Shl, Shld, Shr, Shrd};
    let i = &case.instruction;
    if !matches!(i.mnemonic(), Rol | Ror | Rcl | Rcr | Shl | Sal | Shr | Sar | Shld | Shrd) {
        return None;
    }
    let last = i.op_count() - 1;
    let count =
        if i.op_kind(last) == OpKind::Register { before.gpr[1] as u32 } else { i.immediate(last) as u32 };
    let bytes = if i.op0_kind() == OpKind::Memory { i.memory_size().size() } else { i.op0_register().size() };
    let mask = if bytes == 8 { 0x3f } else { 0x1f };
    Some((count & mask, 8 * bytes as u32))
}

/// A double shift by more than the operand's width leaves its destination undefined.
fn is_undefined_result(case: &Case, before: &Context) -> bool {
    let double = matches!(case.instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
    double && shift_count(case, before).is_some_and(|(count, bits)| count > bits)
}

fn is_undefined_register(case: &Case, before: &Context, n: usize) -> bool {
    is_undefined_result(case, before) && case.instruction.op0_register().full_register().number() == n
}
