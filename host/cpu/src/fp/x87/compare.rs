//! Comparisons and classification.

use super::super::{
    Done,
    soft::{Class, F32, F64, F80, Number, Relation},
};
use super::Operand;
use crate::{
    core::Core,
    flags,
    insn::{Handler, Insn, Kind},
};
use iced_x86::{
    Code, Instruction,
    Mnemonic::{self, *},
};

pub fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Fcom | Fcomp | Fcompp | Fucom | Fucomp | Fucompp | Ficom | Ficomp => compare,
        Fcomi | Fcomip | Fucomi | Fucomip => compare_flags,
        Ftst => test,
        Fxam => examine,
        _ => return None,
    })
}

fn pops(op: Mnemonic) -> u32 {
    match op {
        Fcomp | Fucomp | Ficomp | Fcomip | Fucomip => 1,
        Fcompp | Fucompp => 2,
        _ => 0,
    }
}

fn is_quiet(op: Mnemonic) -> bool {
    matches!(op, Fucom | Fucomp | Fucompp | Fucomi | Fucomip)
}

/// Compares ST(0) with the source. The second result: nothing is popped, an unmasked exception is pending.
fn relation(core: &mut Core<'_>, source: Option<Number>, quiet: bool) -> (Relation, bool) {
    let status = core.status();
    core.set_status_word(status.with_c1(false));
    let Some(b) = source.filter(|_| !core.is_empty(0)) else {
        return (Relation::Unordered, !core.stack_fault(false));
    };
    let a = core.st_number(0);
    let mut cx = core.x87_context(false);
    let invalid = [a, b].iter().any(|n| match n.class {
        Class::Quiet => !quiet,
        _ => n.is_nan(),
    });
    if invalid {
        cx.flags.set_invalid(true);
    }
    let relation = cx.compare(a, b);
    (relation, !core.raise_x87(&cx))
}

/// The source; `None` if its register is empty.
fn source(core: &mut Core<'_>, insn: &Insn) -> Operand {
    let op = insn.code.mnemonic();
    if matches!(op, Fcompp | Fucompp) {
        return Ok((!core.is_empty(1)).then(|| core.st_number(1)));
    }
    // FCOM ST(i) has one operand, FCOM ST(0), ST(i) has two.
    let register = if insn.kinds[1] == Kind::Reg { insn.regs[1] } else { insn.regs[0] };
    let integer = |bits| move |core: &mut Core<'_>| core.read_integer(insn, bits);
    let value = match insn.code {
        Code::Fcom_m32fp | Code::Fcomp_m32fp => return core.read_real(insn, F32).map(Some),
        Code::Fcom_m64fp | Code::Fcomp_m64fp => return core.read_real(insn, F64).map(Some),
        Code::Ficom_m16int | Code::Ficomp_m16int => integer(16)(core)?,
        Code::Ficom_m32int | Code::Ficomp_m32int => integer(32)(core)?,
        _ => return Ok((!core.is_empty(register)).then(|| core.st_number(register))),
    };
    Ok(Some(Number::unpack(F80, super::Context::exact_integer(F80, value))))
}

fn set_conditions(core: &mut Core<'_>, relation: Relation) {
    let (c3, c2, c0) = match relation {
        Relation::Unordered => (true, true, true),
        Relation::Less => (false, false, true),
        Relation::Equal => (true, false, false),
        Relation::Greater => (false, false, false),
    };
    let status = core.status();
    core.set_status_word(status.with_c3(c3).with_c2(c2).with_c0(c0));
}

fn compare(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let op = insn.code.mnemonic();
    let source = source(core, insn)?;
    let (relation, pending) = relation(core, source, is_quiet(op));
    set_conditions(core, relation);
    if !pending {
        (0..pops(op)).for_each(|_| core.pop_st());
    }
    Ok(())
}

fn compare_flags(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_x87()?;
    let op = insn.code.mnemonic();
    let source = source(core, insn)?;
    let (relation, pending) = relation(core, source, is_quiet(op));
    core.set_status(match relation {
        Relation::Unordered => flags::ZF | flags::PF | flags::CF,
        Relation::Less => flags::CF,
        Relation::Equal => flags::ZF,
        Relation::Greater => 0,
    });
    if !pending {
        (0..pops(op)).for_each(|_| core.pop_st());
    }
    Ok(())
}

fn test(core: &mut Core<'_>, _: &Insn) -> Done {
    core.check_x87()?;
    let zero = Number::unpack(F80, 0);
    let (relation, _) = relation(core, Some(zero), false);
    set_conditions(core, relation);
    Ok(())
}

/// See: SDM vol. 2A Table 3-36. FXAM Results
fn examine(core: &mut Core<'_>, _: &Insn) -> Done {
    core.check_x87()?;
    let number = core.st_number(0);
    let (c3, c2, c0) = match number.class {
        _ if core.is_empty(0) => (true, false, true),
        Class::Unsupported => (false, false, false),
        Class::Quiet | Class::Signaling => (false, false, true),
        Class::Infinity => (false, true, true),
        Class::Zero => (true, false, false),
        Class::Finite if number.denormal => (true, true, false),
        Class::Finite => (false, true, false),
    };
    let status = core.status();
    core.set_status_word(status.with_c3(c3).with_c2(c2).with_c0(c0).with_c1(number.sign));
    Ok(())
}
