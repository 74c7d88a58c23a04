//! Instructions that raise exceptions and interrupts: INT n, INT3 and INTO.

use super::event;
use crate::{core::Core, env::Interrupted, insn::Insn};
use vmtape_arch::{
    exception::{Exception, Vector},
    sensitive::{Sensitive, SensitiveKind},
};

/// INT n.
pub(super) fn int(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let what = core.describe(insn, SensitiveKind::INTN);
    core.sensitive(&Sensitive { number: insn.imm as u32 & 0xff, ..what })?;
    event::software_interrupt(core, insn, insn.imm as u8)
}

fn software_exception(insn: &Insn, vector: Vector) -> Result<(), Interrupted> {
    Err(Interrupted::Fault(Exception { insn_len: insn.len, ..Exception::new(vector) }))
}

pub(super) fn int3(_: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    software_exception(insn, Vector::BP)
}

pub(super) fn into(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    if core.flags().of() { software_exception(insn, Vector::OF) } else { Ok(()) }
}
