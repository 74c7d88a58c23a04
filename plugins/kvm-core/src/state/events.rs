//! KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS, with KVM_CAP_EXCEPTION_PAYLOAD and KVM_CAP_X86_TRIPLE_FAULT_EVENT enabled, as
//! VMMs do.
//!
//! Pending NMIs and SMIs, and what INIT and SIPI left, are the local APIC's, which is the machine's: it fills them in.
//!
//! See: KVM x86.c kvm_vcpu_ioctl_x86_get_vcpu_events(), kvm_vcpu_ioctl_x86_set_vcpu_events()

use crate::{
    Vcpu,
    events::{Events, QueuedException, QueuedInterrupt, WindowRequests},
    profile::Switch,
    smm,
    vm::{Ops, VendorVcpu},
};
use vmtape_abi::{Errno, Host};
use vmtape_arch::{
    event::Event,
    exception::Vector,
    state::{VcpuEvents, VcpuEventsFlags, interrupt_shadow},
    vcpu::{Activity, VcpuState},
};

/// The first vector that is no exception.
const EXCEPTIONS: u8 = 32;

pub fn get(core: &Vcpu, state: &VcpuState, host: &mut dyn Host) -> VcpuEvents {
    let events = as_after_an_exit(core, state);
    let mut out = VcpuEvents {
        flags: VcpuEventsFlags::KNOWN.with_sipi_vector(false).with_smm(core.smm.supported),
        interrupt_shadow: shadow(state),
        nmi_injected: events.nmi_injected.into(),
        nmi_pending: events.has_nmi(core.id, host).into(),
        nmi_masked: state.interruptibility.nmi().into(),
        smi_smm: core.smm.active.into(),
        smi_pending: (core.smm.supported && host.smi(core.id, false)).into(),
        smi_smm_inside_nmi: core.smm.inside_nmi.into(),
        triple_fault_pending: events.triple_fault.into(),
        ..VcpuEvents::default()
    };
    // The length of an instruction is not told: RIP is still at it, so that it raises its event again.
    if let Some(exception) = events.pending.or(events.injected).filter(|e| !e.soft) {
        out.exception_pending = events.pending.is_some().into();
        out.exception_injected = events.pending.is_none().into();
        out.exception_nr = exception.vector;
        out.exception_has_error_code = exception.error_code.is_some().into();
        out.exception_error_code = exception.error_code.unwrap_or(0);
    }
    if let Some(interrupt) = events.interrupt.filter(|i| !i.soft) {
        (out.interrupt_injected, out.interrupt_nr) = (1, interrupt.vector);
    }
    out
}

/// KVM's ioctls come after an exit, when what was injected at the entry is known to be delivered, or is queued again. Here
/// they may come while the guest is still in.
fn as_after_an_exit(core: &Vcpu, state: &VcpuState) -> Events {
    let mut events = core.events.clone();
    if !core.exited {
        events.complete(&state.inject);
    }
    events
}

fn shadow(state: &VcpuState) -> u8 {
    let of = |on: bool, bit: u8| if on { bit } else { 0 };
    let shadow = state.interruptibility;
    of(shadow.sti(), interrupt_shadow::STI) | of(shadow.mov_ss(), interrupt_shadow::MOV_SS)
}

pub fn set<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    new: &VcpuEvents,
    host: &mut dyn Host,
) -> Result<(), Errno> {
    if !is_valid(new, v.core().smm.supported, state.activity) {
        return Err(Errno::EINVAL);
    }
    let pending = new.flags.payload() && new.exception_pending != 0;
    let injected = new.exception_injected != 0 && !pending;
    let exception = QueuedException {
        vector: new.exception_nr,
        error_code: (new.exception_has_error_code != 0).then_some(new.exception_error_code),
        insn_len: 0,
        soft: false,
    };
    let interrupt = QueuedInterrupt { vector: new.interrupt_nr, soft: new.interrupt_soft != 0, insn_len: 0 };
    let core = v.core_mut();
    let triple_fault =
        if new.flags.triple_fault() { new.triple_fault_pending != 0 } else { core.events.triple_fault };
    core.events = Events {
        pending: pending.then_some(exception),
        injected: injected.then_some(exception),
        interrupt: (new.interrupt_injected != 0).then_some(interrupt),
        nmi_injected: new.nmi_injected != 0,
        nmi_pending: false,
        triple_fault,
        wanted_by_l1: core.events.wanted_by_l1,
        exception_vmexit: None,
    };
    // They are for the next entry, as after an exit.
    core.exited = true;
    state.inject = Event::default();
    let mut blocked = state.interruptibility.with_nmi(new.nmi_masked != 0);
    if new.flags.shadow() {
        blocked = blocked
            .with_sti(new.interrupt_shadow & interrupt_shadow::STI != 0)
            .with_mov_ss(new.interrupt_shadow & interrupt_shadow::MOV_SS != 0);
    }
    state.interruptibility = blocked;
    // `set_nmi_mask`: silicon that cannot mask NMIs itself watches for IRET.
    ops.request_windows(v, WindowRequests { nmi_injected: new.nmi_masked != 0, ..Default::default() });
    if new.flags.smm() && v.core().smm.supported {
        set_smm(ops, v, state, new, host);
    }
    state.interruptibility = ops.held(v, state);
    Ok(())
}

fn set_smm<O: Ops>(
    ops: &mut O,
    v: &mut O::Vcpu,
    state: &mut VcpuState,
    new: &VcpuEvents,
    host: &mut dyn Host,
) {
    let active = new.smi_smm != 0;
    if active != v.core().smm.active {
        if ops.kvm().options.on(Switch::SMM_TOGGLE_LEAVES_NESTED) {
            ops.leave_nested(v, state, host);
        }
        smm::toggle(ops, v, state, active, host);
    }
    if active {
        v.core_mut().smm.inside_nmi = new.smi_smm_inside_nmi != 0;
    }
}

/// INITs wait in SMM, so that nobody waits for a SIPI there.
fn is_valid(new: &VcpuEvents, smm_supported: bool, activity: Activity) -> bool {
    let flags = new.flags.into_bits();
    let exception = new.exception_injected != 0 || new.flags.payload() && new.exception_pending != 0;
    let in_smm = new.smi_smm | new.smi_pending;
    let smm = match smm_supported {
        true => in_smm != 0 && activity == Activity::WAIT_FOR_SIPI,
        false => in_smm | new.smi_smm_inside_nmi != 0,
    };
    flags & !VcpuEventsFlags::KNOWN.into_bits() == 0
        && !(exception && (new.exception_nr >= EXCEPTIONS || Vector(new.exception_nr) == Vector::NMI))
        && !(new.flags.smm() && smm)
}
