//! A fault point is asked.

use super::Services;
use crate::time::{Asked, Decision, HostPoint, NS_PER_SECOND, Phase};
use vmtape_traces::event::{Event, Fault, NO_VCPU, Skip};

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
        /// A year: with more it would overflow sooner or later.
        const MOST: u64 = 366 * 24 * 3600 * NS_PER_SECOND;
        if self.inputs.has_faults() {
            let now = self.clock.now();
            if let Some(ns) = self.fault(vcpu, HostPoint::CLOCK_JUMP.0, now, 0) {
                self.clock.jump_to(now.saturating_add(ns.min(MOST)));
            }
        }
    }

    /// The instruction count at which an NMI of the host's comes.
    pub(crate) fn next_nmi(&self) -> Option<u64> {
        if self.fed.is_none() { self.inputs.next_nmi() } else { None }
    }
}
