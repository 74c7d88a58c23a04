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
    state::{BackendState, DebugRegs, Layout, MpState, Owner, Regs, StateKind, Xsave},
    vcpu::{Activity, VcpuState},
};
use vmtape_kvm_mmu::fault_points::FaultPoint;

/// KVM_GET_*.
pub fn get_state<O: Ops>(
    (ops, v): (&mut O, &mut O::Vcpu),
    state: &mut VcpuState,
    kind: StateKind,
    host: &mut dyn Host,
) -> Result<Vec<u8>, Errno> {
    let of = of_backend(kind)?;
    if ops.kvm().bugged {
        return Err(Errno::EIO);
    }
    if let Some(answer) = FaultPoint::GET_STATE_REFUSED.poll(v.core().id, kind.0.into(), 0, host) {
        return Err(FaultPoint::errno(answer));
    }
    Ok(match of {
        BackendState::Regs => Regs::of(state).to_bytes(),
        BackendState::Sregs2 => sregs::get(v.core_mut(), state, host).to_bytes(),
        BackendState::DebugRegs => DebugRegs::of(state).to_bytes(),
        BackendState::Xcrs => xcrs::get(state).to_bytes(),
        BackendState::Xsave => Xsave::of(state, v.core_mut().cpuid.supported_xcr0()).to_bytes(),
        BackendState::VcpuEvents => {
            let mut events = events::get(v.core_mut(), state, host);
            events.nmi_pending |= u8::from(ops.is_vnmi_pending(v));
            events.to_bytes()
        }
        BackendState::MpState => MpState::of(state.activity).to_bytes(),
        BackendState::NestedState => ops.get_nested_state(v, state)?,
        BackendState::TscOffset => state.tsc_offset.to_bytes(),
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
    let of = of_backend(kind)?;
    if ops.kvm().bugged {
        return Err(Errno::EIO);
    }
    let len = bytes.len() as u64;
    if let Some(answer) = FaultPoint::SET_STATE_REFUSED.poll(v.core().id, kind.0.into(), len, host) {
        return Err(FaultPoint::errno(answer));
    }
    match of {
        BackendState::Regs => set_regs(v.core_mut(), state, &read(bytes)?),
        BackendState::Sregs2 => sregs::set(ops, v, state, &read(bytes)?, host)?,
        BackendState::DebugRegs => set_debugregs(state, &read(bytes)?)?,
        BackendState::Xcrs => xcrs::set(v.core_mut(), state, &read(bytes)?)?,
        BackendState::Xsave => set_xsave(ops, state, &read(bytes)?)?,
        BackendState::VcpuEvents => events::set(ops, v, state, &read(bytes)?, host)?,
        BackendState::MpState => {
            let wanted: MpState = read(bytes)?;
            let (activity, core) = (wanted.activity().ok_or(Errno::EINVAL)?, v.core());
            // INITs wait in SMM, and behind an SMI.
            let latched = core.smm.active || core.smm.supported && host.smi(core.id, false);
            let starts = activity == Activity::WAIT_FOR_SIPI || wanted == MpState::SIPI_RECEIVED;
            if latched && starts {
                return Err(Errno::EINVAL);
            }
            state.activity = activity;
        }
        BackendState::NestedState => ops.set_nested_state(v, state, bytes, host)?,
        BackendState::TscOffset => state.tsc_offset = read(bytes)?,
    }
    state.intercepts = ops.intercepts(v, state);
    Ok(())
}

/// -ENOTTY: the machine keeps it, or nobody.
fn of_backend(kind: StateKind) -> Result<BackendState, Errno> {
    match kind.owner() {
        Some(Owner::Backend(kind)) => Ok(kind),
        _ => Err(Errno::ENOTTY),
    }
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
