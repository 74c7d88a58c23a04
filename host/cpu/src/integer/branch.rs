//! Near branches: JMP, Jcc, CALL, RET, LOOPcc, JrCXZ.

use crate::{
    core::{Core, gp},
    env::Interrupted,
    flags,
    insn::{Handler, Insn},
    integer::{condition_number, conditional},
};
use iced_x86::{Instruction, OpKind};

type Done = Result<(), Interrupted>;

pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    if i.is_jcc_short_or_near() {
        return condition_number(i).map(|number| match i.op0_kind() {
            OpKind::NearBranch16 => conditional!(number, CC => jcc::<CC, 0xffff>),
            OpKind::NearBranch32 => conditional!(number, CC => jcc::<CC, 0xffff_ffff>),
            _ => conditional!(number, CC => jcc::<CC, { u64::MAX }>),
        });
    }
    if i.is_jmp_short_or_near() {
        return Some(match i.op0_kind() {
            OpKind::NearBranch16 => jmp::<0xffff>,
            OpKind::NearBranch32 => jmp::<0xffff_ffff>,
            _ => jmp::<{ u64::MAX }>,
        });
    }
    None
}

/// Goes on at a near target; `mask` is that of the operand size.
// See: SDM vol. 2A JMP: the new RIP is checked by the branch, not by the fetch.
#[inline(always)]
pub(crate) fn jump(core: &mut Core<'_>, target: u64, mask: u64) -> Done {
    let target = target & mask;
    if target >= core.code_end || (mask == u64::MAX && !core.is_canonical(target)) {
        return gp(0);
    }
    core.next_rip = target;
    Ok(())
}

fn jmp<const MASK: u64>(core: &mut Core<'_>, insn: &Insn) -> Done {
    jump(core, core.state.rip.wrapping_add(insn.imm), MASK)
}

fn jcc<const CC: u8, const MASK: u64>(core: &mut Core<'_>, insn: &Insn) -> Done {
    if flags::condition::<CC>(core.state.rflags) {
        return jump(core, core.state.rip.wrapping_add(insn.imm), MASK);
    }
    Ok(())
}
