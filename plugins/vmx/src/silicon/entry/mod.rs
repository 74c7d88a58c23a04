//! VM entry and VM exit: the checks, what silicon takes from the VMCS, and what it writes there.
//!
//! Manual: Intel SDM volume 3C, doc 325384-087, chapters 27 VM Entries, 28 VM Exits; 31.4 VM Instruction Error Numbers.

mod controls;
mod event;
mod guest;
mod host;
mod segments;
#[cfg(test)]
mod tests;

pub use controls::Control;
pub use guest::Guest;
pub use host::HostState;
pub use segments::{SegmentRights, segments_are_legal};

use super::{
    controls::Controls,
    vmcs::{PendingDebug, Vmcs, VmcsField as F},
};
use vmtape_arch::{
    exit::{Exit, VmxReason},
    host::Silicon,
    open_enum,
    paging::bits,
    regs::Cr4,
    vcpu::{Activity, VcpuState},
};

open_enum! {
    /// VM-instruction error numbers.
    pub struct InstructionError(u32) {
        VMLAUNCH_NONCLEAR = 4 => "VMLAUNCH with non-clear VMCS",
        VMRESUME_NONLAUNCHED = 5 => "VMRESUME with non-launched VMCS",
        INVALID_CONTROL = 7 => "VM entry with invalid control field(s)",
        INVALID_HOST_STATE = 8 => "VM entry with invalid host-state field(s)",
    }
}

/// Why VM entry does not enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotEntered {
    /// VMfailValid.
    Instruction(InstructionError),
    /// VMfailValid with "invalid control field(s)"; silicon does not say which.
    Control(Control),
    /// VMfailValid with "invalid host-state field(s)"; silicon does not say which.
    Host(HostState),
    /// VM exit with reason 80000021H; silicon does not say which.
    Guest(Guest),
}

/// Upper half of a register.
const HIGH: u64 = bits(32, 63);

/// A check: `Err(otherwise)` unless it holds.
fn require<E>(legal: bool, otherwise: E) -> Result<(), E> {
    if legal { Ok(()) } else { Err(otherwise) }
}

/// Bits of linear addresses that silicon translates. A guest uses five levels only where silicon has them.
fn linear_width(vmcs: &Vmcs, silicon: &Silicon) -> u32 {
    let five = silicon.host_levels >= 5 || Cr4::from_bits(vmcs.read(F::GUEST_CR4)).la57();
    if five { 57 } else { 48 }
}

/// Whether a linear address is canonical for the widest that silicon translates.
fn is_canonical(vmcs: &Vmcs, silicon: &Silicon, field: F) -> bool {
    is_extended(vmcs.read(field), linear_width(vmcs, silicon))
}

/// Whether the bits above the lowest so many repeat the highest of them.
fn is_extended(address: u64, width: u32) -> bool {
    let unused = 64 - width;
    ((address << unused) as i64 >> unused) as u64 == address
}

/// VMLAUNCH (`resume` false) or VMRESUME.
pub fn enter(vmcs: &mut Vmcs, resume: bool, silicon: &Silicon) -> Result<Controls, NotEntered> {
    let entered = check_launch(vmcs, resume).and_then(|()| match vmcs.examined {
        true => check_again(vmcs, silicon),
        false => check(vmcs, silicon),
    });
    match entered {
        Ok(()) => {}
        Err(NotEntered::Instruction(error)) => vmcs.write(F::VM_INSTRUCTION_ERROR, error.0),
        Err(NotEntered::Control(_)) => {
            vmcs.write(F::VM_INSTRUCTION_ERROR, InstructionError::INVALID_CONTROL.0);
        }
        Err(NotEntered::Host(_)) => {
            vmcs.write(F::VM_INSTRUCTION_ERROR, InstructionError::INVALID_HOST_STATE.0);
        }
        Err(NotEntered::Guest(why)) => {
            vmcs.write(F::VM_EXIT_REASON, FAILED_ENTRY | VmxReason::INVALID_STATE.0);
            // See: 27.8 VM-Entry Failures During or After Loading Guest State
            let qualification = match why {
                Guest::Pdpte => 2u32,
                Guest::LinkPointer => 4,
                _ => 0,
            };
            vmcs.write(F::EXIT_QUALIFICATION, qualification);
        }
    }
    entered?;
    (vmcs.launched, vmcs.examined) = (true, true);
    Ok(Controls::load(vmcs))
}

/// Exit reason, bit 31: the VM entry failed.
const FAILED_ENTRY: u32 = 1 << 31;

/// All checks.
fn check(vmcs: &Vmcs, silicon: &Silicon) -> Result<(), NotEntered> {
    controls::check(vmcs, silicon).map_err(NotEntered::Control)?;
    host::check(vmcs, silicon).map_err(NotEntered::Host)?;
    guest::check(vmcs, silicon).map_err(NotEntered::Guest)
}

/// Those of a VMCS that has been [`Vmcs::examined`].
fn check_again(vmcs: &Vmcs, silicon: &Silicon) -> Result<(), NotEntered> {
    controls::check_event(vmcs).map_err(NotEntered::Control)?;
    guest::check_again(vmcs, silicon).map_err(NotEntered::Guest)
}

fn check_launch(vmcs: &Vmcs, resume: bool) -> Result<(), NotEntered> {
    match (resume, vmcs.launched) {
        (false, true) => Err(NotEntered::Instruction(InstructionError::VMLAUNCH_NONCLEAR)),
        (true, false) => Err(NotEntered::Instruction(InstructionError::VMRESUME_NONLAUNCHED)),
        _ => Ok(()),
    }
}

/// VM exit: the exit, and the registers as they are now. The exit is the boundary's: it may come from a tape.
pub fn exit(vmcs: &mut Vmcs, exit: &Exit, state: &VcpuState) {
    vmcs.write(F::VM_EXIT_REASON, exit.reason);
    vmcs.write(F::EXIT_QUALIFICATION, exit.info1);
    vmcs.write(F::GUEST_LINEAR_ADDRESS, exit.gva);
    vmcs.write(F::GUEST_PHYSICAL_ADDRESS, exit.gpa);
    vmcs.write(F::VM_EXIT_INTR_INFO, exit.intr_info);
    vmcs.write(F::VM_EXIT_INTR_ERROR_CODE, exit.error_code);
    vmcs.write(F::IDT_VECTORING_INFO_FIELD, exit.info2);
    vmcs.write(F::IDT_VECTORING_ERROR_CODE, exit.access.delivering.error_code);
    vmcs.write(F::VM_EXIT_INSTRUCTION_LEN, exit.insn.len);
    // See: 28.3.1 Saving Control Registers, Debug Registers, and MSRs; 28.2.5.1: the event's valid bit is cleared
    vmcs.write(F::VM_ENTRY_INTR_INFO_FIELD, 0u32);
    store(vmcs, state);
}

/// What a guest changes without an exit, and what each VM exit saves.
pub fn store(vmcs: &mut Vmcs, state: &VcpuState) {
    vmcs.write(F::GUEST_RIP, state.rip);
    vmcs.write(F::GUEST_RSP, state.gpr[vmtape_arch::vcpu::gpr::RSP]);
    vmcs.write(F::GUEST_RFLAGS, state.rflags);
    vmcs.write(F::GUEST_DR7, state.dr7);
    vmcs.write(F::GUEST_INTERRUPTIBILITY_INFO, state.interruptibility.into_bits());
    vmcs.write(F::GUEST_ACTIVITY_STATE, state.activity.0);
    // What holds a single step back. See: 28.3.4 Saving Non-Register State
    let held = state.interruptibility.sti() || state.interruptibility.mov_ss();
    let held = held || state.activity == Activity::HLT;
    let pending = PendingDebug::new().with_single_step(held && state.rflags().tf());
    vmcs.write(F::GUEST_PENDING_DBG_EXCEPTIONS, pending.into_bits());
}
