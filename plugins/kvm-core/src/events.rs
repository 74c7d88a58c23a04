//! Events on their way into the guest: queueing, double faults, injection, and injection again after an exit.
//!
//! See: KVM arch/x86/kvm/x86.c kvm_check_and_inject_events(), kvm_multiple_exception()

use crate::{smm::Smi, tracer::Tracer};
use serde::{Deserialize, Serialize};
use vmtape_abi::Host;
use vmtape_arch::{
    event::{Event, EventKind},
    exception::{Exception, Vector},
    note::Note,
    regs::{Dr6, Rflags},
    vcpu::VcpuState,
};

/// What `Host::interrupt` says of the PIC's interrupt, whose vector is known only once it is taken.
const EXTINT: u8 = 0;
/// DR7.GD: general detect.
const DR7_GD: u64 = 1 << 13;
/// DR6 bits that are one when the condition did not happen.
const DR6_ACTIVE_LOW: u64 = 0xffff_0ff0;
/// DR6.B0-B3, BS, BT, BD and the inverted bits (DR_TRAP_BITS).
const DR_TRAP_BITS: u64 = 0xf;

/// An exception that KVM delivers (`struct kvm_queued_exception`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueuedException {
    pub(crate) vector: u8,
    pub(crate) error_code: Option<u32>,
    pub(crate) insn_len: u8,
    /// How the VM-entry names it: hardware or software exception.
    pub(crate) soft: bool,
}

/// An interrupt that KVM delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueuedInterrupt {
    pub(crate) vector: u8,
    pub(crate) soft: bool,
    pub(crate) insn_len: u8,
}

/// What a vendor answers when KVM asks whether the guest can take something now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// `interrupt_allowed`.
    pub interrupt: bool,
    /// `nmi_allowed`.
    pub nmi: bool,
    /// Interrupts of the local APIC reach the guest by virtual-interrupt delivery.
    pub virtual_interrupts: bool,
    /// `interrupt_allowed` and `nmi_allowed` say -EBUSY: L2 must get in before it can be left for L1 (`nested_run_pending`).
    pub busy: bool,
    /// And `check_nested_events` has said so.
    pub late: bool,
    /// Silicon delivers NMIs by itself, and has none to deliver.
    pub virtual_nmi: bool,
    pub smi: Smi,
}

/// What the vendor has to ask its silicon for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowRequests {
    pub interrupt: bool,
    pub nmi: bool,
    /// An NMI is silicon's to deliver.
    pub virtual_nmi: bool,
    /// An NMI is injected: silicon blocks further ones until IRET.
    pub nmi_injected: bool,
    /// The guest is to be left again at once, before its first instruction.
    pub immediate_exit: bool,
}

/// The events of a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Queued, not yet in the entry controls.
    pub(crate) pending: Option<QueuedException>,
    /// In the entry controls; the guest may or may not take it before the next exit.
    pub(crate) injected: Option<QueuedException>,
    pub(crate) interrupt: Option<QueuedInterrupt>,
    pub(crate) nmi_injected: bool,
    /// An NMI that was silicon's to deliver, and is KVM's again (`arch.nmi_pending`); others wait in the local APIC.
    pub nmi_pending: bool,
    /// A third fault: the guest shuts down at the next entry (KVM_REQ_TRIPLE_FAULT).
    pub(crate) triple_fault: bool,
    /// Exceptions that L1 takes as exits while L2 runs, a bit each (`nested_ops->is_exception_vmexit`).
    pub wanted_by_l1: u32,
    /// One of those that was queued, until L2 can be left (`arch.exception_vmexit`).
    pub exception_vmexit: Option<Exception>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
}

fn class(vector: u8) -> Class {
    match Vector(vector) {
        Vector::PF => Class::PageFault,
        Vector::DE | Vector::TS | Vector::NP | Vector::SS | Vector::GP => Class::Contributory,
        _ => Class::Benign,
    }
}

/// `exception_type`: whether the saved RIP is that of the instruction.
fn is_fault(vector: u8) -> bool {
    // A #DB may be a fault or a trap: KVM leaves RF alone. #BP and #OF are traps; NMI, #DF and #MC are neither.
    !matches!(Vector(vector), Vector::NMI | Vector::DB | Vector::BP | Vector::OF | Vector::DF | Vector::MC)
}

impl Events {
    /// What an exit found on its way into the guest: an exception, else an NMI, else an interrupt.
    pub fn injected_event(&self) -> Event {
        let none = Event::default();
        let valid = Event { valid: true.into(), ..none };
        if let Some(exception) = self.injected {
            return Event {
                kind: EventKind::HARDWARE_EXCEPTION,
                vector: exception.vector,
                has_error_code: exception.error_code.is_some().into(),
                error_code: exception.error_code.unwrap_or(0),
                ..valid
            };
        }
        if self.nmi_injected {
            return Event { kind: EventKind::NMI, ..valid };
        }
        let Some(interrupt) = self.interrupt else { return none };
        let soft = interrupt.soft;
        let kind = if soft { EventKind::SOFTWARE_INTERRUPT } else { EventKind::EXTERNAL_INTERRUPT };
        Event { kind, vector: interrupt.vector, ..valid }
    }

    /// `kvm_queue_exception` and its forms with error code and payload.
    pub fn queue(&mut self, state: &mut VcpuState, exception: &Exception) {
        if self.wanted_by_l1.checked_shr(exception.vector.0.into()).is_some_and(|bits| bits & 1 != 0) {
            self.exception_vmexit = Some(*exception);
            return;
        }
        deliver_payload(state, exception);
        let new = QueuedException {
            vector: exception.vector.0,
            error_code: exception.has_error_code.is_set().then_some(exception.error_code),
            insn_len: 0,
            soft: false,
        };
        let Some(previous) = self.pending.or(self.injected) else {
            self.pending = Some(new);
            return;
        };
        if Vector(previous.vector) == Vector::DF {
            self.triple_fault = true;
            return;
        }
        let (first, second) = (class(previous.vector), class(new.vector));
        let doubles = first == Class::Contributory && second == Class::Contributory
            || first == Class::PageFault && second != Class::Benign;
        self.injected = None;
        self.pending = (!doubles).then_some(new);
        if doubles {
            // Which L1 may want as well.
            self.queue(state, &Exception::with_code(Vector::DF, 0));
        }
    }

    /// The exception that waits to be delivered, rather than to become an exit. Its payload is in CR2 or DR6 by now.
    pub fn pending_exception(&self, state: &VcpuState) -> Option<Exception> {
        let pending = self.pending?;
        let plain = match pending.error_code {
            Some(code) => Exception::with_code(Vector(pending.vector), code),
            None => Exception::new(Vector(pending.vector)),
        };
        Some(Exception { payload: if plain.vector == Vector::PF { state.cr2 } else { 0 }, ..plain })
    }

    /// A software exception (#BP, #OF) that KVM's emulator or handler raises for an INT3 or INTO.
    pub fn queue_soft(&mut self, vector: Vector, insn_len: u8) {
        self.pending = Some(QueuedException { vector: vector.0, error_code: None, insn_len, soft: true });
    }

    /// KVM_REQ_TRIPLE_FAULT.
    pub fn request_triple_fault(&mut self) {
        self.triple_fault = true;
    }

    /// Whether KVM_REQ_TRIPLE_FAULT is made; asking takes it.
    pub fn take_triple_fault(&mut self) -> bool {
        std::mem::take(&mut self.triple_fault)
    }

    /// Whether anything waits to be injected, other than interrupts of the host's controllers.
    pub fn any(&self) -> bool {
        self.pending.is_some() || self.injected.is_some() || self.interrupt.is_some() || self.nmi_injected
    }

    /// `kvm_event_needs_reinjection`.
    pub fn needs_reinjection(&self) -> bool {
        self.injected.is_some() || self.interrupt.is_some() || self.nmi_injected
    }

    /// Drops what is queued (`kvm_clear_exception_queue`, `kvm_clear_interrupt_queue`).
    pub fn clear(&mut self) {
        *self = Self { wanted_by_l1: self.wanted_by_l1, ..Self::default() };
    }

    /// `kvm_clear_exception_queue`: interrupts and NMIs stay.
    pub fn clear_exceptions(&mut self) {
        (self.pending, self.injected, self.exception_vmexit) = (None, None, None);
    }

    /// L2 is left: nothing that was meant for it reaches L1.
    pub fn leave_l2(&mut self) {
        *self = Self { triple_fault: self.triple_fault, ..Self::default() };
    }

    /// After an exit: what was injected has been delivered, unless the exit interrupted its delivery, in which case it is
    /// queued again. See: KVM vmx/vmx.c __vmx_complete_interrupts(), svm/svm.c svm_complete_interrupts()
    pub fn complete(&mut self, delivering: &Event) {
        (self.injected, self.interrupt, self.nmi_injected) = (None, None, false);
        if !delivering.valid {
            return;
        }
        let exception = |soft, insn_len| QueuedException {
            vector: delivering.vector,
            error_code: delivering.has_error_code.is_set().then_some(delivering.error_code),
            insn_len,
            soft,
        };
        let interrupt = |soft, insn_len| QueuedInterrupt { vector: delivering.vector, soft, insn_len };
        match delivering.kind {
            EventKind::NMI => self.nmi_injected = true,
            EventKind::SOFTWARE_EXCEPTION | EventKind::PRIVILEGED_SOFTWARE_EXCEPTION => {
                self.injected = Some(exception(true, delivering.insn_len));
            }
            EventKind::HARDWARE_EXCEPTION => self.injected = Some(exception(false, 0)),
            EventKind::SOFTWARE_INTERRUPT => self.interrupt = Some(interrupt(true, delivering.insn_len)),
            EventKind::EXTERNAL_INTERRUPT => self.interrupt = Some(interrupt(false, 0)),
            _ => {}
        }
    }

    /// Whether an NMI waits for KVM to inject it.
    pub fn has_nmi(&self, vcpu: u32, host: &mut dyn Host) -> bool {
        self.nmi_pending || host.nmi(vcpu, false)
    }

    /// Takes one that waits; false: none does.
    pub fn take_nmi(&mut self, vcpu: u32, host: &mut dyn Host) -> bool {
        std::mem::take(&mut self.nmi_pending) || host.nmi(vcpu, true)
    }

    /// Chooses what the next entry injects, writes it to `state.inject`, and says which windows to ask for.
    pub fn check_and_inject(
        &mut self,
        tracer: Tracer,
        state: &mut VcpuState,
        windows: Windows,
        host: &mut dyn Host,
    ) -> WindowRequests {
        let mut requests = WindowRequests::default();
        state.inject = Event::default();
        if let Some(exception) = self.injected {
            inject_exception(tracer, state, exception, true, host);
        } else if self.pending.is_some() {
        } else if self.nmi_injected {
            inject_nmi(state, true, &mut requests);
        } else if let Some(interrupt) = self.interrupt {
            inject_interrupt(tracer, state, interrupt, true, host);
        }
        if windows.late {
            requests.immediate_exit = true;
            return requests;
        }
        let mut can_inject = !self.needs_reinjection();
        if let Some(exception) = self.pending.take() {
            if is_fault(exception.vector) {
                state.rflags = state.rflags().with_rf(true).into_bits();
            }
            if Vector(exception.vector) == Vector::DB {
                clear_general_detect(state);
            }
            inject_exception(tracer, state, exception, false, host);
            self.injected = Some(exception);
            can_inject = false;
        }
        if windows.smi == Smi::Waits {
            requests.immediate_exit = true;
            return requests;
        }
        // Behind an SMI nothing can be injected: the guest is left again at once for it (-EBUSY).
        let busy = |can_inject: bool| windows.smi == Smi::Taken || can_inject && windows.busy;
        if windows.virtual_nmi && self.has_nmi(tracer.vcpu, host) {
            // `kvm_x86_ops.set_vnmi_pending`, in process_nmi().
            self.take_nmi(tracer.vcpu, host);
            requests.virtual_nmi = true;
        }
        if self.has_nmi(tracer.vcpu, host) {
            if busy(can_inject) {
                requests.immediate_exit = true;
                return requests;
            }
            if can_inject && windows.nmi {
                self.take_nmi(tracer.vcpu, host);
                self.nmi_injected = true;
                inject_nmi(state, false, &mut requests);
                can_inject = false;
            }
            requests.nmi = self.has_nmi(tracer.vcpu, host);
        }
        // Silicon delivers the local APIC's interrupts by itself then, but not the PIC's.
        let injectable = |vector: &u8| !windows.virtual_interrupts || *vector == EXTINT;
        if host.interrupt(tracer.vcpu, false).filter(injectable).is_some() {
            if busy(can_inject) {
                requests.immediate_exit = true;
                return requests;
            }
            if can_inject
                && windows.interrupt
                && let Some(vector) = host.interrupt(tracer.vcpu, true)
            {
                let interrupt = QueuedInterrupt { vector, soft: false, insn_len: 0 };
                self.interrupt = Some(interrupt);
                inject_interrupt(tracer, state, interrupt, false, host);
            }
            requests.interrupt = host.interrupt(tracer.vcpu, false).filter(injectable).is_some();
        }
        requests
    }
}

/// `kvm_deliver_exception_payload`: CR2 and DR6 are written when the exception is queued.
pub fn deliver_payload(state: &mut VcpuState, exception: &Exception) {
    match exception.vector {
        Vector::PF => state.cr2 = exception.payload,
        Vector::DB => {
            let mut dr6 = state.dr6 & !DR_TRAP_BITS | DR6_ACTIVE_LOW | exception.payload;
            dr6 ^= exception.payload & DR6_ACTIVE_LOW;
            state.dr6 = dr6 & !(1 << 12);
        }
        _ => {}
    }
}

/// A #DB ends general detection. See: KVM x86.c kvm_check_and_inject_events()
pub fn clear_general_detect(state: &mut VcpuState) {
    state.dr7 &= !DR7_GD;
}

fn inject_exception(
    tracer: Tracer,
    state: &mut VcpuState,
    exception: QueuedException,
    reinjected: bool,
    host: &mut dyn Host,
) {
    // Real mode pushes no error codes, and none is traced. See: KVM x86.c kvm_inject_exception()
    let error_code = exception.error_code.filter(|_| state.cr0().pe());
    tracer.note(
        Note::InjException {
            vector: Vector(exception.vector),
            has_error: error_code.is_some(),
            error_code: error_code.unwrap_or(0),
            reinjected,
        },
        host,
    );
    let kind = if exception.soft { EventKind::SOFTWARE_EXCEPTION } else { EventKind::HARDWARE_EXCEPTION };
    state.inject = Event {
        valid: true.into(),
        kind,
        vector: exception.vector,
        has_error_code: error_code.is_some().into(),
        error_code: error_code.unwrap_or(0),
        insn_len: exception.insn_len,
        reinjected: reinjected.into(),
        pad: [0; 6],
    };
}

fn inject_interrupt(
    tracer: Tracer,
    state: &mut VcpuState,
    interrupt: QueuedInterrupt,
    reinjected: bool,
    host: &mut dyn Host,
) {
    tracer.note(Note::InjVirq { vector: interrupt.vector, soft: interrupt.soft, reinjected }, host);
    let kind = if interrupt.soft { EventKind::SOFTWARE_INTERRUPT } else { EventKind::EXTERNAL_INTERRUPT };
    state.inject = Event {
        valid: true.into(),
        kind,
        vector: interrupt.vector,
        insn_len: interrupt.insn_len,
        reinjected: reinjected.into(),
        ..Default::default()
    };
}

fn inject_nmi(state: &mut VcpuState, reinjected: bool, requests: &mut WindowRequests) {
    requests.nmi_injected = true;
    state.inject = Event {
        valid: true.into(),
        kind: EventKind::NMI,
        vector: Vector::NMI.0,
        reinjected: reinjected.into(),
        ..Default::default()
    };
}

/// `kvm_arch_interrupt_allowed` without a vendor's nested rules: IF set, and no STI or MOV SS shadow.
pub fn interrupt_allowed(state: &VcpuState) -> bool {
    let shadow = state.interruptibility;
    Rflags::from_bits(state.rflags).intr() && !shadow.sti() && !shadow.mov_ss()
}

/// Whether an NMI can be delivered: not within another, and no MOV SS or STI shadow.
pub fn nmi_allowed(state: &VcpuState) -> bool {
    let shadow = state.interruptibility;
    !shadow.nmi() && !shadow.mov_ss() && !shadow.sti()
}

/// The #DB that single stepping raises after an instruction that KVM emulated or skipped, if RFLAGS.TF asks for one.
/// See: KVM x86.c kvm_vcpu_do_singlestep()
pub fn single_step(tf_before: bool) -> Option<Exception> {
    let payload = Dr6::new().with_bs(true).into_bits();
    tf_before.then_some(Exception { payload, ..Exception::new(Vector::DB) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn double_and_triple_faults() {
        let mut state = VcpuState::reset();
        let mut events = Events::default();
        events.queue(&mut state, &Exception::gp(0));
        events.queue(&mut state, &Exception { payload: 0x1000, ..Exception::with_code(Vector::PF, 2) });
        assert_eq!(events.pending.unwrap().vector, Vector::PF.0, "#GP then #PF: the second alone");
        assert_eq!(state.cr2, 0x1000);
        events.queue(&mut state, &Exception::gp(0));
        assert_eq!(events.pending.unwrap().vector, Vector::DF.0, "#PF then #GP: double fault");
        events.queue(&mut state, &Exception::gp(0));
        assert!(events.take_triple_fault());
    }

    #[test]
    fn an_interrupted_delivery_is_queued_again() {
        let mut events = Events::default();
        let event = Event {
            valid: true.into(),
            kind: EventKind::EXTERNAL_INTERRUPT,
            vector: 0x20,
            ..Default::default()
        };
        events.complete(&event);
        assert!(events.needs_reinjection());
        events.complete(&Event::default());
        assert!(!events.any());
    }
}
