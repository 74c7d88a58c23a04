//! Executes decoded blocks, one handler after the other.

use crate::{
    block::Block,
    core::{Core, Leave},
    env::Interrupted,
    insn::Insn,
};

/// Executes a block, or as much of it as the budget and the segment limit allow.
#[inline(always)]
pub(crate) fn execute(
    core: &mut Core<'_>,
    insns: &[Insn],
    block: &Block,
    left: u64,
) -> Result<(), Interrupted> {
    let rip = core.state.rip;
    let mut len = u64::from(block.len).min(left) as usize;
    let start = block.start as usize;
    if rip.wrapping_add(u64::from(block.bytes)) > core.code_end {
        len = len.min(core.insns_within_limit(&insns[start..start + len])?);
    }
    core.leave = Leave::No;
    core.outcome = false;
    handle(core, &insns[start..start + len], rip, |_, _| false).map(drop)
}

/// Executes instructions by their handlers, the first of them at `rip`, to the last or to where compiled code goes on: `resumes`
/// says whether it does at the instruction of that number, which is given back then.
#[inline(always)]
pub(crate) fn handle(
    core: &mut Core<'_>,
    insns: &[Insn],
    mut rip: u64,
    mut resumes: impl FnMut(&Core<'_>, usize) -> bool,
) -> Result<Option<usize>, Interrupted> {
    let mut icount = core.state.icount;
    let mut refresh = false;
    for (n, insn) in insns.iter().enumerate() {
        core.state.rip = rip;
        core.state.icount = icount;
        rip = rip.wrapping_add(u64::from(insn.len));
        core.next_rip = rip;
        (insn.handler)(core, insn)?;
        icount += 1;
        refresh = insn.refresh;
        if core.leave != Leave::No {
            break;
        }
        if n + 1 < insns.len() && resumes(core, n + 1) {
            core.state.icount = icount;
            return Ok(Some(n + 1));
        }
    }
    core.state.icount = icount;
    if refresh {
        core.after_env();
        core.check_events = true;
    }
    // RIP wraps in the mode that the instruction leads to.
    core.state.rip = core.next_rip & core.rip_mask;
    if core.outcome {
        core.env.outcome(core.state);
    }
    Ok(None)
}
