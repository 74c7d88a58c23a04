//! What must be equal after an instruction, and what the manuals leave undefined.

use crate::{
    case::{Case, WINDOW_SIZE},
    silicon::{Context, Ending, Fault, Mode},
};
use iced_x86::{Mnemonic, OpKind, RflagsBits};

/// State after an instruction.
pub struct Outcome<const SIZE: usize = WINDOW_SIZE> {
    pub context: Context,
    pub data: [u8; SIZE],
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
    ending(case.instruction.mnemonic(), native, ours)
        .or_else(|| registers(case, before, native, ours))
        .or_else(|| flags(case, before, native, ours))
        .or_else(|| vectors(native, ours))
        .or_else(|| if is_undefined_result(case, before) { None } else { memory(native, ours) })
        .or_else(|| {
            // Conversions to and from MMX registers that raise #XM: processors differ in whether they have entered
            // MMX state.
            let trapped = |fault: Fault| fault.vector == SIMD_FLOATING_POINT;
            let entered = !matches!(native.ending, Ending::Fault(fault) if trapped(fault));
            let undefined = undefined_conditions(case.instruction.mnemonic());
            if case.uses_x87() && entered { x87(undefined, native, ours) } else { None }
        })
}

/// As [`difference`] for an instruction that leaves nothing undefined.
pub fn state_difference<const N: usize>(native: &Outcome<N>, ours: &Outcome<N>) -> Option<String> {
    ending(Mnemonic::INVALID, native, ours)
        .or_else(|| vectors(native, ours))
        .or_else(|| memory(native, ours))
        .or_else(|| x87(0, native, ours))
}

fn ending<const N: usize>(op: Mnemonic, native: &Outcome<N>, ours: &Outcome<N>) -> Option<String> {
    let (expected, actual) = (comparable(op, native.ending), comparable(op, ours.ending));
    (expected != actual).then(|| format!("ends in {actual:x?}, not in {expected:x?}"))
}

/// Processors differ in which of an instruction's accesses faults first: CMPS may meet the fault of either operand, and
/// CR2 of long loads counts by page.
fn comparable(op: Mnemonic, ending: Ending) -> Ending {
    use Mnemonic::*;
    match (op, ending) {
        (Cmpsb | Cmpsw | Cmpsd | Cmpsq, Ending::Fault(_)) => {
            Ending::Fault(Fault { vector: 0, error: 0, address: 0 })
        }
        (Frstor | Fldenv, Ending::Fault(fault)) => {
            Ending::Fault(Fault { address: fault.address & !0xfff, ..fault })
        }
        _ => ending,
    }
}

fn registers(case: &Case, before: &Context, native: &Outcome, ours: &Outcome) -> Option<String> {
    // Outside 64-bit mode there are eight registers of 32 bits.
    // A fault in the middle of POPA: AMD has loaded some registers by then. It is restarted all the same.
    if matches!(case.instruction.mnemonic(), Mnemonic::Popa | Mnemonic::Popad)
        && matches!(native.ending, Ending::Fault(_))
    {
        return None;
    }
    // The bit scans leave the destination undefined for a zero source; AMD and most Intel processors leave it alone.
    let scans = matches!(case.instruction.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr);
    if scans && native.context.rflags & ZF != 0 {
        return None;
    }
    let (count, shift) = if case.mode == Mode::Bits64 { (16, 0) } else { (8, 32) };
    let differs = |n: &usize| {
        let difference = native.context.gpr[*n] ^ ours.context.gpr[*n];
        difference << shift != 0 && !is_undefined_register(case, before, *n)
    };
    let n = (0..count).find(differs)?;
    Some(format!("register {n} is {:#x}, not {:#x}", ours.context.gpr[n], native.context.gpr[n]))
}

fn flags(case: &Case, before: &Context, native: &Outcome, ours: &Outcome) -> Option<String> {
    let faulted = matches!(native.ending, Ending::Fault(_));
    let defined = if faulted { FLAGS } else { FLAGS & !undefined_flags(case, before) };
    let (expected, actual) = (native.context.rflags & defined, ours.context.rflags & defined);
    (expected != actual).then(|| format!("flags are {actual:#x}, not {expected:#x}"))
}

/// XMM registers, their upper halves, and MXCSR.
fn vectors<const N: usize>(native: &Outcome<N>, ours: &Outcome<N>) -> Option<String> {
    let (native, ours) = (&native.context, &ours.context);
    if let Some(n) = (0..16).find(|n| native.xmm(*n) != ours.xmm(*n)) {
        return Some(format!("xmm{n} is {:x?}, not {:x?}", ours.xmm(n), native.xmm(n)));
    }
    if let Some(n) = (0..16).find(|n| native.ymm_hi[*n] != ours.ymm_hi[*n]) {
        return Some(format!(
            "the upper half of ymm{n} is {:x?}, not {:x?}",
            ours.ymm_hi[n], native.ymm_hi[n]
        ));
    }
    (native.mxcsr() != ours.mxcsr())
        .then(|| format!("MXCSR is {:#x}, not {:#x}", ours.mxcsr(), native.mxcsr()))
}

fn memory<const N: usize>(native: &Outcome<N>, ours: &Outcome<N>) -> Option<String> {
    let at = native.data.iter().zip(&ours.data).position(|(expected, actual)| expected != actual)?;
    let end = (at + 16).min(N);
    Some(format!("memory at {at:#x} is {:x?}, not {:x?}", &ours.data[at..end], &native.data[at..end]))
}

fn x87<const N: usize>(undefined: u16, native: &Outcome<N>, ours: &Outcome<N>) -> Option<String> {
    let word = |outcome: &Outcome<N>, at: usize| {
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
