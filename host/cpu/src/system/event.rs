//! Exceptions and interrupts on their way to the guest: interception, delivery, and what becomes of faults in delivery.
//!
//! See: SDM vol. 3A 6.15 Exception and Interrupt Reference, Interrupt 8; vol. 3C 28.1 Architectural State Before a VM Exit

use crate::{core::Core, cpu::Stop, env::Interrupted, insn::Insn};
use vmtape_arch::{
    event::{Event, EventKind},
    exception::{Exception, Vector},
    regs::Dr6,
    sensitive::SensitiveKind,
    vcpu::{Activity, Interruptibility},
};

/// How an event and a fault in its delivery combine. See: SDM vol. 3A Table 6-4. Interrupt and Exception Classes
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

/// What the guest takes where a delivery faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Second,
    DoubleFault,
    TripleFault,
}

fn class(event: &Event) -> Class {
    if event.kind != EventKind::HARDWARE_EXCEPTION {
        return Class::Benign;
    }
    match Vector(event.vector) {
        Vector::DF => Class::DoubleFault,
        Vector::PF | Vector::VE => Class::PageFault,
        Vector::DE | Vector::TS | Vector::NP | Vector::SS | Vector::GP | Vector::CP => Class::Contributory,
        _ => Class::Benign,
    }
}

/// See: SDM vol. 3A Table 6-5. Conditions for Generating a Double Fault
fn combine(first: Class, second: Class) -> Outcome {
    use Class::*;
    match (first, second) {
        (DoubleFault, Contributory | PageFault) => Outcome::TripleFault,
        (Contributory, Contributory) | (PageFault, Contributory | PageFault) => Outcome::DoubleFault,
        _ => Outcome::Second,
    }
}

/// What a guest takes for a fault in the delivery of an event; `None`: it shuts down.
pub fn fault_in_delivery(event: &Event, fault: Exception) -> Option<Exception> {
    match combine(class(event), class(&event_of(&fault))) {
        Outcome::Second => Some(fault),
        Outcome::DoubleFault => Some(Exception::with_code(Vector::DF, 0)),
        Outcome::TripleFault => None,
    }
}

/// The event that delivers an exception.
fn event_of(exception: &Exception) -> Event {
    let kind = match (exception.insn_len, exception.vector) {
        (0, _) => EventKind::HARDWARE_EXCEPTION,
        (_, Vector::DB) => EventKind::PRIVILEGED_SOFTWARE_EXCEPTION,
        _ => EventKind::SOFTWARE_EXCEPTION,
    };
    Event {
        valid: true.into(),
        kind,
        vector: exception.vector.0,
        has_error_code: exception.has_error_code,
        error_code: exception.error_code,
        insn_len: exception.insn_len,
        ..Event::default()
    }
}

/// An exception that an instruction raised: offers it to the backend if it is intercepted, delivers it otherwise,
/// with double and triple faults.
pub(crate) fn exception(core: &mut Core<'_>, exception: Exception) -> Result<(), Stop> {
    let mut exception = exception;
    core.debug_traps = 0;
    if exception.vector == Vector::DB {
        // What waited in the shadow of MOV SS comes along.
        exception.payload |= core.state.pending_debug;
    }
    offer(core, &exception)?;
    record(core, &exception);
    deliver_or_escalate(core, event_of(&exception))
}

/// The event that the backend injects at entry. CR2, DR6 and RF are the backend's affair. An event from outside the
/// program discards pending debug exceptions. See: SDM vol. 3C 27.7.3 Delivery of Pending Debug Exceptions after VM Entry
pub(crate) fn inject(core: &mut Core<'_>, event: Event) -> Result<(), Stop> {
    if matches!(event.kind, EventKind::EXTERNAL_INTERRUPT | EventKind::NMI | EventKind::HARDWARE_EXCEPTION) {
        core.state.pending_debug = 0;
    }
    deliver_or_escalate(core, event)
}

/// An external interrupt without an exit.
pub(crate) fn interrupt(core: &mut Core<'_>, vector: u8) -> Result<(), Stop> {
    let event = Event { valid: true.into(), kind: EventKind::EXTERNAL_INTERRUPT, vector, ..Event::default() };
    deliver_or_escalate(core, event)
}

/// INT n, as part of the instruction.
pub(super) fn software_interrupt(core: &mut Core<'_>, insn: &Insn, vector: u8) -> Result<(), Interrupted> {
    let event = Event {
        valid: true.into(),
        kind: EventKind::SOFTWARE_INTERRUPT,
        vector,
        insn_len: insn.len,
        ..Event::default()
    };
    core.state.delivering = event;
    let mut done = core.deliver(&event);
    if let Err(Interrupted::Fault(fault)) = done
        && offer(core, &fault).is_err()
    {
        done = Err(Interrupted::Exit);
    }
    if done.is_ok() {
        core.tell_outcome();
    }
    core.state.delivering = Event::default();
    core.single_step = false;
    done
}

/// Asks the backend whether it takes the exception.
fn offer(core: &mut Core<'_>, exception: &Exception) -> Result<(), Stop> {
    let wanted =
        core.state.intercepts.exceptions.checked_shr(exception.vector.0 as u32).unwrap_or(0) & 1 != 0;
    if !wanted {
        return Ok(());
    }
    if core.env.exception(core.state, exception).is_none() {
        core.after_env();
        return Ok(());
    }
    if exception.vector == Vector::DB {
        core.state.pending_debug = 0;
    }
    core.state.delivering = Event::default();
    Err(Stop::Exit)
}

/// What an exception leaves in registers, whether or not its delivery succeeds.
fn record(core: &mut Core<'_>, exception: &Exception) {
    let state = &mut *core.state;
    match exception.vector {
        Vector::PF => state.cr2 = exception.payload,
        Vector::DB => {
            super::debug::record(state, Dr6::from_bits(exception.payload));
            state.pending_debug = 0;
        }
        _ => {}
    }
    if is_fault(exception) {
        state.rflags = state.rflags().with_rf(true).into_bits();
    }
}

/// Fault-class exceptions save RF set, so that an instruction breakpoint does not strike twice.
/// See: SDM vol. 3B 18.3.1.1 Instruction-Breakpoint Exception Condition
fn is_fault(exception: &Exception) -> bool {
    match exception.vector {
        Vector::DB => Dr6::from_bits(exception.payload).bd(),
        Vector::BP | Vector::OF | Vector::DF | Vector::MC => false,
        _ => true,
    }
}

/// Benign faults in delivery follow each other without end where every delivery meets one (#AC on a misaligned stack
/// of CPL 3). Silicon hangs then, which is why KVM intercepts #AC; here it ends as a triple fault.
const MAX_FAULTS_IN_DELIVERY: u32 = 64;

fn deliver_or_escalate(core: &mut Core<'_>, first: Event) -> Result<(), Stop> {
    let mut event = first;
    for _ in 0..MAX_FAULTS_IN_DELIVERY {
        core.state.delivering = event;
        if event.kind == EventKind::NMI {
            core.state.interruptibility = core.state.interruptibility.with_nmi(true);
        }
        let second = match core.deliver(&event) {
            Ok(()) => {
                retire(core, &event);
                return Ok(());
            }
            Err(Interrupted::Exit) => {
                core.state.delivering = Event::default();
                return Err(Stop::Exit);
            }
            Err(Interrupted::Fault(second)) => second,
        };
        offer(core, &second)?;
        record(core, &second);
        event = match combine(class(&event), class(&event_of(&second))) {
            Outcome::Second => event_of(&second),
            Outcome::DoubleFault => {
                let double = Exception::with_code(Vector::DF, 0);
                offer(core, &double)?;
                event_of(&double)
            }
            Outcome::TripleFault => break,
        };
    }
    Err(triple_fault(core))
}

/// Takes over what `deliver` prepared, for an event that is not part of an instruction.
fn retire(core: &mut Core<'_>, event: &Event) {
    core.state.delivering = Event::default();
    if core.state.records_branches() {
        let taken = [core.state.rip, core.next_rip];
        core.state.last_exception = std::mem::replace(&mut core.state.last_branch, taken);
    }
    core.state.rip = core.next_rip;
    core.state.activity = Activity::ACTIVE;
    let shadow: Interruptibility = core.state.interruptibility;
    core.state.interruptibility = shadow.with_sti(false).with_mov_ss(false);
    // INT n, INT3, INTO and ICEBP end with their delivery.
    if event.insn_len != 0 {
        core.state.icount += 1;
    }
    core.env.outcome(core.state);
    watch_progress(core);
    core.after_env();
    core.recheck_events();
}

/// A guest whose every handler faults at its first instruction retires nothing. From then on its events take time, so
/// that the run's budget and timers end it.
fn watch_progress(core: &mut Core<'_>) {
    const PATIENCE: u32 = 1 << 12;
    let (count, icount) = core.deliveries;
    let count = if icount == core.state.icount { count + 1 } else { 0 };
    if count >= PATIENCE {
        core.state.icount += 1;
    }
    core.deliveries = (count.min(PATIENCE), core.state.icount);
}

fn triple_fault(core: &mut Core<'_>) -> Stop {
    let offered = core.condition(SensitiveKind::TRIPLE_FAULT);
    core.state.delivering = Event::default();
    match offered {
        Err(_) => Stop::Exit,
        Ok(()) => {
            core.state.activity = Activity::SHUTDOWN;
            Stop::TripleFault
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Class::*, *};

    #[test]
    fn double_and_triple_faults() {
        for first in [Benign, Contributory, PageFault] {
            assert_eq!(combine(first, Benign), Outcome::Second);
        }
        assert_eq!(combine(Benign, PageFault), Outcome::Second);
        assert_eq!(combine(Contributory, PageFault), Outcome::Second);
        assert_eq!(combine(Contributory, Contributory), Outcome::DoubleFault);
        assert_eq!(combine(PageFault, Contributory), Outcome::DoubleFault);
        assert_eq!(combine(PageFault, PageFault), Outcome::DoubleFault);
        assert_eq!(combine(DoubleFault, PageFault), Outcome::TripleFault);
        assert_eq!(combine(DoubleFault, Benign), Outcome::Second);
    }

    #[test]
    fn software_interrupts_are_benign() {
        let event = Event { kind: EventKind::SOFTWARE_INTERRUPT, vector: 13, ..Event::default() };
        assert_eq!(class(&event), Benign);
    }
}
