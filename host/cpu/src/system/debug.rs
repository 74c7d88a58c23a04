//! Breakpoints, single steps, and the debug registers.
//!
//! See: SDM vol. 3B 18.2 Debug Registers, 18.3 Debug Exceptions

use crate::{
    core::{Core, ud},
    cpu::Stop,
    env::Interrupted,
    insn::Insn,
};
use vmtape_arch::{
    exception::{Exception, Vector},
    host::Vendor,
    regs::{DR6_INIT, Dr6, Dr7},
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{VcpuState, seg},
};

/// `Dr7::rw` of the kinds of breakpoints.
const INSTRUCTION: u8 = 0;
const WRITE: u8 = 1;
const IO: u8 = 2;
const READ_WRITE: u8 = 3;

/// The bits of DR6 that software and the processor set.
const DR6_WRITABLE: Dr6 = Dr6::new().with_b(0xf).with_bd(true).with_bs(true).with_bt(true);

fn dr7(state: &VcpuState) -> Dr7 {
    Dr7::from_bits(state.dr7)
}

/// The enabled breakpoints, as DR6's B0-B3, of which `matches(kind, address, length)` holds.
fn hits(state: &VcpuState, matches: impl Fn(u8, u64, u64) -> bool) -> u64 {
    let dr7 = dr7(state);
    (0..4)
        .filter(|n| dr7.is_enabled(*n) && matches(dr7.rw(*n), state.dr[*n as usize], dr7.len(*n)))
        .fold(0, |bits, n| bits | 1 << n)
}

fn overlaps(first: u64, len: u64, address: u64, watched: u64) -> bool {
    let address = address & !(watched - 1);
    first.wrapping_sub(address) < watched || address.wrapping_sub(first) < len
}

/// Whether DR7 has data or I/O breakpoints, so that every access must take the slow path.
pub(crate) fn watches_data(state: &VcpuState) -> bool {
    dr7(state).enable() != 0 && hits(state, |kind, _, _| kind != INSTRUCTION) != 0
}

/// Whether DR7 has instruction breakpoints, so that every instruction is looked at.
pub(crate) fn watches_code(state: &VcpuState) -> bool {
    dr7(state).enable() != 0 && hits(state, |kind, _, _| kind == INSTRUCTION) != 0
}

/// Called before an instruction with RF clear: raises #DB as a fault. The shadow of MOV SS holds it back for good, but not
/// on AMD, whose shadow covers single steps and interrupts only.
pub(crate) fn code_breakpoint(core: &mut Core<'_>) -> Result<(), Interrupted> {
    let held_back = core.state.interruptibility.mov_ss() && core.model.vendor == Vendor::INTEL;
    if dr7(core.state).enable() == 0 || held_back {
        return Ok(());
    }
    let gva = core.state.rip.wrapping_add(core.segments[seg::CS].base) & core.linear_mask;
    let bits = hits(core.state, |kind, address, _| kind == INSTRUCTION && address == gva);
    if bits == 0 { Ok(()) } else { Err(Interrupted::Fault(debug_exception(bits))) }
}

/// Called for each explicit access when `watches_data`: adds to `core.debug_traps` and calls `core.recheck_events`.
pub(crate) fn data_access(core: &mut Core<'_>, gva: u64, len: u64, write: bool) {
    let bits = hits(core.state, |kind, address, watched| {
        (kind == READ_WRITE || (kind == WRITE && write)) && overlaps(gva, len, address, watched)
    });
    add_traps(core, bits);
}

/// As [`data_access`] for I/O ports, which need CR4.DE.
pub(super) fn port_access(core: &mut Core<'_>, port: u16, len: u64) {
    if dr7(core.state).enable() == 0 || !core.state.cr4().de() {
        return;
    }
    let bits =
        hits(core.state, |kind, address, watched| kind == IO && overlaps(port as u64, len, address, watched));
    add_traps(core, bits);
}

fn add_traps(core: &mut Core<'_>, bits: u64) {
    if bits != 0 {
        core.debug_traps |= bits;
        core.recheck_events();
    }
}

fn debug_exception(payload: u64) -> Exception {
    Exception { payload, ..Exception::new(Vector::DB) }
}

/// Called between instructions when traps are pending: raises #DB, unless the shadow of MOV SS holds it back.
pub(crate) fn traps(core: &mut Core<'_>) -> Result<(), Stop> {
    core.state.pending_debug |= std::mem::take(&mut core.debug_traps);
    if core.state.pending_debug == 0 || core.state.interruptibility.mov_ss() {
        return Ok(());
    }
    let exception = debug_exception(std::mem::take(&mut core.state.pending_debug));
    super::event::exception(core, exception)
}

/// What a #DB leaves in the debug registers. See: SDM vol. 3B 18.2.3 Debug Status Register
pub(super) fn record(state: &mut VcpuState, conditions: Dr6) {
    let kept = Dr6::from_bits(state.dr6).with_b(0).into_bits();
    state.dr6 = kept | (conditions.into_bits() & DR6_WRITABLE.into_bits()) | DR6_INIT;
    state.dr7 = dr7(state).with_gd(false).into_bits();
}

/// INT1. Not subject to the gate's privilege level.
pub(super) fn icebp(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.offer(insn, SensitiveKind::ICEBP)?;
    Err(Interrupted::Fault(Exception { insn_len: insn.len, ..debug_exception(0) }))
}

/// MOV to and from debug registers. On Intel's processors the exit comes before all checks of privilege.
/// See: SDM vol. 3C 26.1.3 Instructions That Cause VM Exits Conditionally
fn access(core: &mut Core<'_>, insn: &Sensitive) -> Result<usize, Interrupted> {
    let number = insn.number as usize;
    if number > 7 {
        return ud();
    }
    if core.model.vendor == Vendor::INTEL {
        core.sensitive(insn)?;
    }
    if matches!(number, 4 | 5) && core.state.cr4().de() {
        return ud();
    }
    core.require_cpl0()?;
    if dr7(core.state).gd() {
        return Err(Interrupted::Fault(debug_exception(Dr6::new().with_bd(true).into_bits())));
    }
    if core.model.vendor != Vendor::INTEL {
        core.sensitive(insn)?;
    }
    Ok(if matches!(number, 4 | 5) { number + 2 } else { number })
}

/// MOV r, DRn.
pub(super) fn mov_from(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let (number, gpr) = (insn.regs[1] as u32, insn.regs[0]);
    let number = access(core, &Sensitive { number, gpr, ..core.describe(insn, SensitiveKind::DR_READ) })?;
    let value = match number {
        6 => core.state.dr6,
        7 => core.state.dr7,
        n => core.state.dr[n],
    };
    core.put_native(insn, 0, value)
}

/// MOV DRn, r.
pub(super) fn mov_to(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let (number, gpr) = (insn.regs[0] as u32, insn.regs[1]);
    let value = core.get_native(insn, 1)?;
    let number =
        access(core, &Sensitive { number, gpr, value, ..core.describe(insn, SensitiveKind::DR_WRITE) })?;
    match number {
        6 | 7 => core.require_gp0(value >> 32 == 0)?,
        _ => {}
    }
    match number {
        6 => core.state.dr6 = (value & DR6_WRITABLE.into_bits()) | DR6_INIT,
        7 => {
            let new = Dr7::from_bits(value);
            core.state.dr7 = Dr7::new()
                .with_enable(new.enable())
                .with_le(new.le())
                .with_ge(new.ge())
                .with_gd(new.gd())
                .with_conditions(new.conditions())
                .into_bits();
        }
        n => core.state.dr[n] = value,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_arch::regs::DR7_INIT;

    #[test]
    fn ranges() {
        assert!(overlaps(0x1000, 1, 0x1000, 1));
        assert!(overlaps(0xffc, 8, 0x1000, 4));
        assert!(overlaps(0x1003, 1, 0x1002, 4), "the low bits of the address do not count");
        assert!(!overlaps(0x1004, 4, 0x1000, 4));
        assert!(!overlaps(0xffc, 4, 0x1000, 8));
        assert!(overlaps(u64::MAX, 1, u64::MAX, 8));
    }

    #[test]
    fn dr7_fields() {
        assert_eq!(Dr7::new().into_bits(), DR7_INIT);
        // kvm-unit-tests' four-byte write breakpoint in DR1.
        let dr7 = Dr7::from_bits(0x00d0_040a);
        assert!(dr7.is_enabled(0) && dr7.is_enabled(1) && !dr7.is_enabled(2));
        assert_eq!((dr7.rw(1), dr7.len(1)), (WRITE, 4));
    }

    #[test]
    fn b0_to_b3_are_replaced_and_the_others_stay() {
        let mut state = VcpuState::reset();
        state.dr6 = DR6_INIT | Dr6::new().with_bs(true).with_b(2).into_bits();
        record(&mut state, Dr6::new().with_b(4));
        assert_eq!(state.dr6, DR6_INIT | Dr6::new().with_bs(true).with_b(4).into_bits());
    }
}
