//! Who can run: halts, INIT and SIPI, and devices that want attention.

use super::{Machine, halt::Halt};
use crate::{time::MOST_NS, vcpu::init};
use vmtape_abi::{FlushScope, Host};
use vmtape_arch::vcpu::{Activity, seg};
use vmtape_traces::event::End;

impl Machine {
    /// Lets INIT, SIPI and interrupts act on a vCPU. True: it runs.
    // See: KVM arch/x86/kvm/lapic.c kvm_apic_accept_events(), x86.c kvm_arch_vcpu_runnable()
    pub(super) fn wake(&mut self, n: u32) -> bool {
        self.accept_signals(n);
        let vcpu = &mut self.vcpus[n as usize];
        let takes_interrupts = vcpu.state.takes_interrupts();
        let smi = self.services.devices.lapics[n as usize].smi_pending && !vcpu.state.interruptibility.smi();
        match vcpu.state.activity {
            Activity::ACTIVE => true,
            Activity::HLT if smi || self.services.devices.can_wake(n, takes_interrupts) => {
                vcpu.state.activity = Activity::ACTIVE;
                vcpu.needs_entry = true;
                self.services.devices.lapics[n as usize].unhalted = false;
                true
            }
            _ => false,
        }
    }

    fn accept_signals(&mut self, n: u32) {
        let apic = &mut self.services.devices.lapics[n as usize];
        let state = &mut self.vcpus[n as usize].state;
        if state.interruptibility.init() {
            return;
        }
        let mut changed = false;
        if std::mem::take(&mut apic.init_pending) {
            apic.reset();
            init(state);
            // The boot processor starts over; the others wait.
            state.activity = if n == 0 { Activity::ACTIVE } else { Activity::WAIT_FOR_SIPI };
            changed = true;
        }
        if let Some(vector) = apic.sipi_vector.take()
            && state.activity == Activity::WAIT_FOR_SIPI
        {
            state.seg[seg::CS].selector = u16::from(vector) << 8;
            state.seg[seg::CS].base = u64::from(vector) << 12;
            state.rip = 0;
            state.activity = Activity::ACTIVE;
            changed = true;
        }
        if changed {
            self.backend.state_changed(n, state, &mut self.services);
            self.services.flush_tlb(n, FlushScope::ALL, 0);
            self.vcpus[n as usize].needs_entry = true;
        }
    }

    /// A device wants attention: the backend is asked whether the guest takes an interrupt.
    pub(super) fn look_at_kick(&mut self, n: u32) {
        if self.services.devices.take_kick() {
            for (other, vcpu) in (0..).zip(&mut self.vcpus) {
                self.services.disturb_interrupt(other);
                let virtual_interrupts = vcpu.state.intercepts.virtual_interrupts;
                let (apic, held) =
                    (&self.services.devices.lapics[other as usize], vcpu.state.interruptibility);
                // What is held back may be L1's, which L2 is left for. An SMI is the backend's to take.
                let held_back = apic.init_pending && held.init() || apic.smi_pending;
                let pending = self.services.devices.interrupt(other, false).is_some() && !virtual_interrupts
                    || held_back
                    || self.services.devices.nmi(other, false)
                    || self.services.devices.wants_extint(other);
                vcpu.needs_entry |= pending;
            }
        }
        // INIT reaches a running vCPU between two instructions.
        if self.services.devices.lapics[n as usize].init_pending {
            self.accept_signals(n);
        }
    }

    /// Everybody is halted: time jumps to the next timer. Where none will do, a typist may still wake the guest.
    pub(super) fn idle(&mut self) -> Option<End> {
        let futile = match self.services.devices.next_deadline() {
            None => "no timer is armed",
            Some(due) if due > MOST_NS => "the next timer is due in more than a century",
            Some(_) if self.halt.is_futile(&self.services) => {
                "no timer's interrupt reaches them: masked, or below the task priority"
            }
            Some(due) => {
                self.services.clock.jump_to(due);
                return None;
            }
        };
        self.halt = Halt::default();
        let byte = self.services.inputs.next_serial().and_then(|due| self.services.inputs.serial(due));
        let Some(byte) = byte else { return Some(End::Idle { reason: self.why_halted(futile) }) };
        self.services.type_byte(byte);
        None
    }

    /// What keeps everybody halted, given what there is to be said of timers.
    fn why_halted(&self, timers: &str) -> String {
        let halted = || self.vcpus.iter().filter(|vcpu| vcpu.state.activity == Activity::HLT);
        match halted().any(|vcpu| vcpu.state.takes_interrupts()) {
            true => timers.to_owned(),
            false if halted().count() > 0 => "interrupts are off".to_owned(),
            false => "every vCPU waits to be started".to_owned(),
        }
    }
}
