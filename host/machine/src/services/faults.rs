//! A fault point is asked.

use super::Services;
use crate::memory::Memory;
use crate::{
    devices::TimerId,
    time::{Asked, Decision, HostPoint, NS_PER_SECOND, Phase},
};
use vmtape_abi::Errno;
use vmtape_arch::vcpu::VcpuState;
use vmtape_traces::event::{End, Event, Fault, NO_VCPU, Skip};

/// A year: with more the clock would overflow sooner or later.
const LONGEST_NS: u64 = 366 * 24 * 3600 * NS_PER_SECOND;

impl Services {
    /// What a fault point answers; it goes on the tape.
    pub(crate) fn fault(&mut self, vcpu: u32, point: u32, a: u64, b: u64) -> Option<u64> {
        if !self.inputs.has_faults() {
            return None;
        }
        let icount = self.clock.icount;
        let mut fault = Fault { icount, vcpu, point, a, b, ..Fault::default() };
        self.inputs.count_fault(&mut fault);
        let Decision { rule, skipped, answer } = match &mut self.fed {
            Some(fed) => fed.faults.take(&fault),
            None => {
                let occurrence = fault.occurrence;
                self.inputs.fault(&Asked { icount, vcpu, point, occurrence, a, b, phase: Phase::NONE })
            }
        }?;
        self.tape.event(Event::Fault(Fault { rule, skipped, answer, ..fault }));
        (skipped == Skip::NONE).then_some(answer)
    }

    /// Fires the timers that are due.
    pub(crate) fn fire_timers(&mut self) {
        let now = self.clock.now();
        if self.inputs.has_faults() {
            for (timer, due) in self.devices.due_timers(now) {
                self.disturb_timer(timer, due, now);
            }
        }
        self.devices.advance(now);
    }

    fn disturb_timer(&mut self, timer: TimerId, due: u64, now: u64) {
        /// On time, and once more.
        const TWICE: u64 = 1 << 63;
        let (vcpu, number) = match timer {
            TimerId::Lapic(n) => (n, n.into()),
            TimerId::Pit => (NO_VCPU, u64::MAX),
        };
        let Some(answer) = self.fault(vcpu, HostPoint::TIMER.0, number, due) else { return };
        if answer == 0 {
            self.devices.expire(timer, due, false);
        } else {
            if answer & TWICE != 0 {
                self.devices.expire(timer, due, true);
            }
            self.devices.put_off(timer, due + (answer & !TWICE).min(LONGEST_NS));
        }
        // Fed exits come far apart: it may be due once more.
        let again = self.devices.due_timers(now).into_iter().find(|(other, _)| *other == timer);
        if let Some((timer, due)) = again {
            self.disturb_timer(timer, due, now);
        }
    }

    /// The interrupt that waits for a vCPU may get lost.
    pub(crate) fn disturb_interrupt(&mut self, vcpu: u32) {
        if self.inputs.has_faults()
            && let Some(vector) = self.devices.interrupt(vcpu, false)
            && self.fault(vcpu, HostPoint::IRQ_LOST.0, vector.into(), 0).is_some()
        {
            self.devices.lose_interrupt(vcpu);
        }
    }

    /// An interrupt that nobody sent may come at an exit.
    pub(crate) fn pretend_interrupt(&mut self, vcpu: u32, rip: u64) {
        if self.inputs.has_faults()
            && let Some(vector) = self.fault(vcpu, HostPoint::IRQ_SPURIOUS.0, rip, 0)
        {
            self.devices.pretend_interrupt(vcpu, vector as u8);
        }
    }

    /// Where a backend's mappings may lead; `None` in a run with faults: a bent entry leads anywhere.
    pub(super) fn sound_memory(&self) -> Option<&Memory> {
        (!self.inputs.is_faulty()).then_some(&self.memory)
    }

    /// How often a byte that is typed arrives.
    pub(super) fn arrivals(&mut self, byte: u8) -> u32 {
        match self.fault(NO_VCPU, HostPoint::SERIAL.0, byte.into(), 0) {
            None => 1,
            Some(0) => 0,
            Some(_) => 2,
        }
    }

    /// The host's clock may jump at an exit.
    pub(crate) fn jump_clock(&mut self, vcpu: u32) {
        if self.inputs.has_faults() {
            let now = self.clock.now();
            if let Some(ns) = self.fault(vcpu, HostPoint::CLOCK_JUMP.0, now, 0) {
                self.clock.jump_to(now.saturating_add(ns.min(LONGEST_NS)));
            }
        }
    }

    /// A vCPU's time-stamp counter may jump at an exit.
    pub(crate) fn jump_tsc(&mut self, vcpu: u32, state: &mut VcpuState) {
        if self.inputs.has_faults()
            && let Some(ticks) = self.fault(vcpu, HostPoint::TSC_JUMP.0, state.tsc_offset, 0)
        {
            state.tsc_offset = state.tsc_offset.wrapping_add(ticks);
        }
    }

    /// KVM_CREATE_VCPU finds no memory, or another reason, before a backend hears of it.
    // See: KVM virt/kvm/kvm_main.c kvm_vm_ioctl_create_vcpu(), kmem_cache_zalloc()
    pub(crate) fn creates_vcpu(&mut self, vcpu: u32) -> Result<(), Errno> {
        const LARGEST: u64 = 4095;
        let refused =
            self.inputs.has_faults().then(|| self.fault(vcpu, HostPoint::CREATE_VCPU.0, vcpu.into(), 0));
        match refused.flatten() {
            Some(errno) => Err(Errno(-(errno.clamp(1, LARGEST) as i32))),
            None => Ok(()),
        }
    }

    /// KVM_RUN may be interrupted before the guest is entered, and the VMM calls it again: an end where that does not end.
    // See: KVM x86.c kvm_arch_vcpu_ioctl_run(), `vcpu->run->immediate_exit` and signal_pending()
    pub(crate) fn interrupted_for_ever(&mut self, vcpu: u32, rip: u64) -> Option<End> {
        const PATIENCE: u64 = 1000;
        if !self.inputs.has_faults() {
            return None;
        }
        let interrupted = |_: &u64| self.fault(vcpu, HostPoint::RUN_INTERRUPTED.0, rip, 0).is_some();
        let repeats = (0..PATIENCE).take_while(interrupted).count() as u64;
        let reason =
            || format!("KVM_RUN of vCPU {vcpu} is interrupted {repeats} times in a row, rip {rip:#x}");
        (repeats == PATIENCE).then(|| End::NoProgress { vcpu, repeats, reason: reason() })
    }

    /// The instruction count at which an NMI of the host's comes.
    pub(crate) fn next_nmi(&self) -> Option<u64> {
        if self.fed.is_none() { self.inputs.next_nmi() } else { None }
    }
}
