//! A vCPU's state as KVM's ioctls get and set it, one file for each that does more than copy.

mod events;
mod msrs;
pub mod nested;
mod sregs;
mod xcrs;

pub use msrs::{get_msrs, set_msrs};

use crate::{
    Vcpu,
    vm::{Ops, VendorVcpu},
};
use vmtape_abi::{Errno, Host};
use vmtape_arch::{
    state::{DebugRegs, Layout, MpState, Regs, StateKind, Xsave},
    vcpu::VcpuState,
};

/// KVM_GET_*.
pub fn get_state<O: Ops>(
    (ops, v): (&mut O, &mut O::Vcpu),
    state: &mut VcpuState,
    kind: StateKind,
    host: &mut dyn Host,
) -> Result<Vec<u8>, Errno> {
    if kind == StateKind::NESTED_STATE {
        return Ok(ops.get_nested_state(v, state));
    }
    let core = v.core_mut();
    Ok(match kind {
        StateKind::REGS => Regs::of(state).to_bytes(),
        StateKind::SREGS2 => sregs::get(core, state, host).to_bytes(),
        StateKind::DEBUGREGS => DebugRegs::of(state).to_bytes(),
        StateKind::XCRS => xcrs::get(state).to_bytes(),
        StateKind::XSAVE => Xsave::of(state, core.cpuid.supported_xcr0()).to_bytes(),
        StateKind::VCPU_EVENTS => events::get(core, state, host).to_bytes(),
        StateKind::MP_STATE => MpState::of(state.activity).to_bytes(),
        StateKind::TSC_OFFSET => state.tsc_offset.to_bytes(),
        _ => return Err(Errno::ENOTTY),
    })
}

/// KVM_SET_*.
pub fn set_state<O: Ops>(
    (ops, v): (&mut O, &mut O::Vcpu),
    state: &mut VcpuState,
    kind: StateKind,
    bytes: &[u8],
    host: &mut dyn Host,
) -> Result<(), Errno> {
    match kind {
        StateKind::REGS => set_regs(v.core_mut(), state, &read(bytes)?),
        StateKind::SREGS2 => sregs::set(ops, v, state, &read(bytes)?, host)?,
        StateKind::DEBUGREGS => set_debugregs(state, &read(bytes)?)?,
        StateKind::XCRS => xcrs::set(v.core_mut(), state, &read(bytes)?)?,
        StateKind::XSAVE => set_xsave(ops, state, &read(bytes)?)?,
        StateKind::VCPU_EVENTS => events::set(ops, v, state, &read(bytes)?)?,
        StateKind::MP_STATE => {
            let wanted: MpState = read(bytes)?;
            state.activity = wanted.activity().ok_or(Errno::EINVAL)?;
        }
        StateKind::NESTED_STATE => ops.set_nested_state(v, state, bytes, host)?,
        StateKind::TSC_OFFSET => state.tsc_offset = read(bytes)?,
        _ => return Err(Errno::ENOTTY),
    }
    state.intercepts = ops.intercepts(v, state);
    Ok(())
}

/// The ioctl's number says how many bytes its structure has; one with another size is unknown.
fn read<T: Layout>(bytes: &[u8]) -> Result<T, Errno> {
    T::from_bytes(bytes).ok_or(Errno::EINVAL)
}

/// Drops an exception that is queued and not injected. See: KVM x86.c __set_regs()
fn set_regs(core: &mut Vcpu, state: &mut VcpuState, regs: &Regs) {
    regs.apply(state);
    core.events.pending = None;
}

/// See: KVM x86.c kvm_vcpu_ioctl_x86_set_debugregs(), kvm_dr6_valid(), kvm_dr7_valid()
fn set_debugregs(state: &mut VcpuState, regs: &DebugRegs) -> Result<(), Errno> {
    if regs.flags != 0 || (regs.dr6 | regs.dr7) >> 32 != 0 {
        return Err(Errno::EINVAL);
    }
    regs.apply(state);
    Ok(())
}

/// Whatever the guest's CPUID says, everything is taken that the host can hold.
/// See: KVM x86.c kvm_vcpu_ioctl_x86_set_xsave(), commit a1020a25e697
fn set_xsave(ops: &impl Ops, state: &mut VcpuState, xsave: &Xsave) -> Result<(), Errno> {
    if !xsave.is_valid(xcrs::of_host(ops.kvm().tdp())) {
        return Err(Errno::EINVAL);
    }
    xsave.apply(state);
    Ok(())
}
