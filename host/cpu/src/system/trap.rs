//! Instructions that raise exceptions and interrupts: INT n, INT3, INTO, INT1, BOUND, UD.

use super::{descriptor::Mode, event};
use crate::{
    core::{Core, ud},
    env::Interrupted,
    insn::Insn,
};
use iced_x86::Code;
use vmtape_arch::exception::{Exception, Vector};

/// INT n.
pub(super) fn int(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
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

/// UD0, UD1, UD2.
pub(super) fn undefined(_: &mut Core<'_>, _: &Insn) -> Result<(), Interrupted> {
    ud()
}

/// BOUND: #BR if a signed index is outside two signed bounds in memory.
pub(super) fn bound(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    debug_assert!(core.mode() != Mode::Long || !insn.is_64bit());
    let at = insn.address(core);
    let (index, low, high) = if insn.code == Code::Bound_r16_m1616 {
        let bounds: u32 = core.read(insn.seg, at)?;
        let index: u16 = core.get(insn, 0)?;
        (index as i16 as i64, bounds as i16 as i64, (bounds >> 16) as i16 as i64)
    } else {
        let bounds: u64 = core.read(insn.seg, at)?;
        let index: u32 = core.get(insn, 0)?;
        (index as i32 as i64, bounds as i32 as i64, (bounds >> 32) as i32 as i64)
    };
    if (low..=high).contains(&index) { Ok(()) } else { Err(Interrupted::Fault(Exception::new(Vector::BR))) }
}
