//! AAA, AAD, AAM, AAS, DAA, DAS: decimal arithmetic of 16- and 32-bit code.

use crate::{
    core::{Core, fault},
    env::Interrupted,
    flags::{self, AF, CF, STATUS},
    insn::{HIGH_BYTE, Handler, Insn},
    operand::Int,
};
use iced_x86::{Instruction, Mnemonic};
use vmtape_arch::{exception::Vector, vcpu::gpr::RAX};

type Done = Result<(), Interrupted>;

const AL: u8 = RAX as u8;
const AH: u8 = HIGH_BYTE + RAX as u8;

pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Mnemonic::Aaa => ascii::<true>,
        Mnemonic::Aas => ascii::<false>,
        Mnemonic::Aad => aad,
        Mnemonic::Aam => aam,
        Mnemonic::Daa => decimal::<true>,
        Mnemonic::Das => decimal::<false>,
        _ => return None,
    })
}

fn has(core: &Core<'_>, flag: u64) -> bool {
    core.state.rflags & flag != 0
}

/// AAA and AAS. Other flags than AF and CF are undefined.
fn ascii<const ADD: bool>(core: &mut Core<'_>, _: &Insn) -> Done {
    let ax = u16::get(core, AL);
    let adjust = ax & 0xf > 9 || has(core, AF);
    let adjusted = match (adjust, ADD) {
        (false, _) => ax,
        (true, true) => ax.wrapping_add(0x106),
        (true, false) => ax.wrapping_sub(0x106),
    };
    (adjusted & 0xff0f).set(core, AL);
    let carry = if adjust { AF | CF } else { 0 };
    core.set_status(flags::szp(adjusted as u8 & 0xf) | carry);
    Ok(())
}

fn aad(core: &mut Core<'_>, insn: &Insn) -> Done {
    let base = insn.imm as u8;
    let al = u8::get(core, AL).wrapping_add(u8::get(core, AH).wrapping_mul(base));
    u16::from(al).set(core, AL);
    core.set_status(flags::szp(al));
    Ok(())
}

fn aam(core: &mut Core<'_>, insn: &Insn) -> Done {
    let base = insn.imm as u8;
    let al = u8::get(core, AL);
    let Some(quotient) = al.checked_div(base) else { return fault(Vector::DE) };
    let remainder = al % base;
    quotient.set(core, AH);
    remainder.set(core, AL);
    core.set_status(flags::szp(remainder));
    Ok(())
}

/// DAA and DAS. OF is undefined.
fn decimal<const ADD: bool>(core: &mut Core<'_>, _: &Insn) -> Done {
    let old = u8::get(core, AL);
    let move_by = |al: u8, by: u8| if ADD { al.wrapping_add(by) } else { al.wrapping_sub(by) };
    let mut al = old;
    let mut status = 0;
    if old & 0xf > 9 || has(core, AF) {
        al = move_by(al, 6);
        status |= AF;
        // The borrow of the low digit shows only in subtraction; in addition the high digit's test covers it.
        let borrow = if ADD { old > 0xf9 } else { old < 6 };
        status |= if borrow || has(core, CF) { CF } else { 0 };
    }
    if old > 0x99 || has(core, CF) {
        al = move_by(al, 0x60);
        status |= CF;
    }
    al.set(core, AL);
    core.set_flags(STATUS, status | flags::szp(al));
    Ok(())
}
