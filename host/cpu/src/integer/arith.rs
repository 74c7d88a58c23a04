//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT, XADD.

use crate::{
    core::Core,
    env::Interrupted,
    flags,
    insn::{Handler, Insn, Kind},
    integer::{operand_size, sized},
    operand::Int,
};
use iced_x86::{Instruction, Mnemonic, OpKind};

type Done = Result<(), Interrupted>;

// The eight operations in the order of their opcodes.
const ADD: u8 = 0;
const OR: u8 = 1;
const ADC: u8 = 2;
const SBB: u8 = 3;
const AND: u8 = 4;
const SUB: u8 = 5;
const XOR: u8 = 6;
const CMP: u8 = 7;
/// Not one of the eight: AND that keeps the result to itself.
const TEST: u8 = 8;

pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    let size = operand_size(i, 0);
    Some(match i.mnemonic() {
        Mnemonic::Add => sized!(size, T => form::<ADD, T>(i)),
        Mnemonic::Or => sized!(size, T => form::<OR, T>(i)),
        Mnemonic::Adc => sized!(size, T => form::<ADC, T>(i)),
        Mnemonic::Sbb => sized!(size, T => form::<SBB, T>(i)),
        Mnemonic::And => sized!(size, T => form::<AND, T>(i)),
        Mnemonic::Sub => sized!(size, T => form::<SUB, T>(i)),
        Mnemonic::Xor => sized!(size, T => form::<XOR, T>(i)),
        Mnemonic::Cmp => sized!(size, T => form::<CMP, T>(i)),
        Mnemonic::Test => sized!(size, T => form::<TEST, T>(i)),
        Mnemonic::Inc => sized!(size, T => inc::<T>),
        Mnemonic::Dec => sized!(size, T => dec::<T>),
        Mnemonic::Neg => sized!(size, T => neg::<T>),
        Mnemonic::Not => sized!(size, T => not::<T>),
        Mnemonic::Xadd => sized!(size, T => xadd::<T>),
        _ => return None,
    })
}

#[inline(always)]
fn compute<const OP: u8, T: Int>(a: T, b: T, carry: bool) -> (T, u64) {
    let (x, y) = (a.to_u64(), b.to_u64());
    let bits = |result| {
        let result = T::from_u64(result);
        (result, flags::logic(result))
    };
    match OP {
        ADD => flags::add(a, b, false),
        ADC => flags::add(a, b, carry),
        SUB | CMP => flags::sub(a, b, false),
        SBB => flags::sub(a, b, carry),
        OR => bits(x | y),
        XOR => bits(x ^ y),
        _ => bits(x & y),
    }
}

const fn keeps_destination(op: u8) -> bool {
    op == CMP || op == TEST
}

/// The function for the kinds of the two operands, so that executing decides nothing.
fn form<const OP: u8, T: Int>(i: &Instruction) -> Handler {
    match (i.op0_kind(), i.op1_kind()) {
        (OpKind::Register, OpKind::Register) => reg_reg::<OP, T>,
        (OpKind::Register, OpKind::Memory) => reg_mem::<OP, T>,
        (OpKind::Memory, OpKind::Register) => mem_other::<OP, T, false>,
        (OpKind::Register, _) => reg_imm::<OP, T>,
        _ => mem_other::<OP, T, true>,
    }
}

#[inline(always)]
fn on_register<const OP: u8, T: Int>(core: &mut Core<'_>, register: u8, b: T) {
    let (result, status) = compute::<OP, T>(T::get(core, register), b, core.carry());
    if !keeps_destination(OP) {
        result.set(core, register);
    }
    core.set_status(status);
}

fn reg_reg<const OP: u8, T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let b = T::get(core, insn.regs[1]);
    on_register::<OP, T>(core, insn.regs[0], b);
    Ok(())
}

fn reg_imm<const OP: u8, T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    on_register::<OP, T>(core, insn.regs[0], T::from_u64(insn.imm));
    Ok(())
}

fn reg_mem<const OP: u8, T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let b = core.read::<T>(insn.seg, insn.address(core))?;
    on_register::<OP, T>(core, insn.regs[0], b);
    Ok(())
}

fn mem_other<const OP: u8, T: Int, const IMM: bool>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let b = if IMM { T::from_u64(insn.imm) } else { T::get(core, insn.regs[1]) };
    let carry = core.carry();
    let status = if keeps_destination(OP) {
        let a = core.read::<T>(insn.seg, insn.address(core))?;
        compute::<OP, T>(a, b, carry).1
    } else {
        core.rmw(insn.seg, insn.address(core), |a: T| compute::<OP, T>(a, b, carry))?
    };
    core.set_status(status);
    Ok(())
}

/// INC and DEC leave CF alone.
const WITHOUT_CARRY: u64 = flags::STATUS & !flags::CF;

fn inc<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let status = core.modify(insn, 0, |a: T| flags::add(a, T::from_u64(1), false))?;
    core.set_flags(WITHOUT_CARRY, status & WITHOUT_CARRY);
    Ok(())
}

fn dec<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let status = core.modify(insn, 0, |a: T| flags::sub(a, T::from_u64(1), false))?;
    core.set_flags(WITHOUT_CARRY, status & WITHOUT_CARRY);
    Ok(())
}

fn neg<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let status = core.modify(insn, 0, |a: T| flags::sub(T::from_u64(0), a, false))?;
    core.set_status(status);
    Ok(())
}

fn not<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.modify(insn, 0, |a: T| (T::from_u64(!a.to_u64()), ()))
}

fn xadd<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let b = T::get(core, insn.regs[1]);
    let (old, (sum, status)) = core.modify(insn, 0, |a: T| {
        let sum = flags::add(a, b, false);
        (sum.0, (a, sum))
    })?;
    old.set(core, insn.regs[1]);
    // With the same register twice, the sum wins.
    if insn.kinds[0] == Kind::Reg {
        sum.set(core, insn.regs[0]);
    }
    core.set_status(status);
    Ok(())
}
