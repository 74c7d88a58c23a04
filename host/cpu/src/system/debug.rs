//! Breakpoints and single steps.

use crate::{core::Core, cpu::Stop, env::Interrupted};
use vmtape_arch::vcpu::VcpuState;

/// Whether DR7 has data or I/O breakpoints, so that every access must take the slow path.
pub(crate) fn watches_data(_: &VcpuState) -> bool {
    false
}

/// Whether DR7 has instruction breakpoints, so that every instruction is looked at.
pub(crate) fn watches_code(_: &VcpuState) -> bool {
    false
}

/// Called before an instruction when `watches_code`, with RF clear: raises #DB as a fault.
pub(crate) fn code_breakpoint(_: &mut Core<'_>) -> Result<(), Interrupted> {
    Ok(())
}

/// Called for each explicit access when `watches_data`: adds to `core.debug_traps` and calls `core.recheck_events`.
pub(crate) fn data_access(_: &mut Core<'_>, _gva: u64, _len: u64, _write: bool) {}

/// Called between instructions when `core.debug_traps` is not zero: clears it and raises #DB as a trap.
pub(crate) fn traps(core: &mut Core<'_>) -> Result<(), Stop> {
    core.debug_traps = 0;
    Ok(())
}
