//! The run loop: whose turn it is, into the guest, out of it, and when to stop.

use super::{Limits, Machine, exits::answered_wrongly, halt::Halt};
use vmtape_arch::vcpu::Activity;
use vmtape_cpu::Stop;
use vmtape_traces::event::{End, Event};

/// Instructions between two looks at who waits for the run to end: a fraction of a second.
const UNATTENDED: u64 = 1 << 22;

impl Machine {
    /// Runs the guest until it ends or a limit is reached, and tells the recorder how it ended.
    pub fn run(&mut self, limits: &Limits) -> End {
        let end = self.advance(limits);
        self.finish(&end);
        end
    }

    /// Tells the recorder that the run has ended, after the last [`Machine::advance`].
    pub fn finish(&mut self, end: &End) {
        let end = match self.tell_hash() {
            Ok(()) => end.clone(),
            Err(error) => self.failed(&error),
        };
        self.tell_devices();
        self.disable_cpus();
        (0..self.vcpus.len() as u32).for_each(|vcpu| self.services.tape.tell_chain(vcpu, true));
        let (icount, exits) = (self.services.clock.icount, self.exits);
        self.services.tape.event(Event::End { icount, exits, end });
    }

    /// As [`Machine::run`], for a caller that goes on after a limit: the recorder hears of no end.
    pub fn advance(&mut self, limits: &Limits) -> End {
        let limits = &limits.bounded();
        loop {
            self.flush_serial();
            if let Err(error) = self.milestone_if_due() {
                return self.failed(&error);
            }
            if let Some(end) = self.check_end(limits) {
                return end;
            }
            self.services.poll_serial();
            self.services.fire_timers();
            self.run_script();
            let ended = match self.choose_vcpu() {
                Some(vcpu) => {
                    self.halt = Halt::default();
                    self.take_turn(vcpu, limits)
                }
                None => self.idle(),
            };
            if let Some(end) = ended {
                self.flush_serial();
                return end;
            }
        }
    }

    fn flush_serial(&mut self) {
        let output = self.services.devices.take_output();
        if let Some(sink) = &mut self.serial
            && !output.is_empty()
        {
            // A guest must not fail because nobody reads its output.
            let _ = sink.write_all(&output).and_then(|()| sink.flush());
        }
    }

    pub(super) fn check_end(&mut self, limits: &Limits) -> Option<End> {
        if let Some(wrong) = self.services.take_wrong() {
            return Some(answered_wrongly(self.turn.vcpu, &wrong));
        }
        if let Some(end) = self.services.devices.take_end() {
            return Some(end);
        }
        if let Some(gpa) = self.services.stranded {
            return Some(self.waits_for_ever(gpa));
        }
        if self.services.tape.is_stopped() {
            return Some(End::Cut);
        }
        // A wish is granted where a limit of instructions would end the run: a replay finds the place by their count.
        let icount = self.services.clock.icount;
        let advanced = std::mem::replace(&mut self.attended, icount) < icount;
        if advanced && self.services.tape.is_interrupted()
            || limits.interrupted.is_some_and(|at| icount >= at)
        {
            return Some(End::Interrupted);
        }
        if icount >= limits.instructions {
            return Some(End::Limit { what: format!("{} instructions", limits.instructions) });
        }
        (self.exits >= limits.exits).then(|| End::Limit { what: format!("{} exits", limits.exits) })
    }

    /// The vCPU to run: the current one until its turn ends, then the next one that can run.
    fn choose_vcpu(&mut self) -> Option<u32> {
        let icount = self.services.clock.icount;
        let vcpu = self.turn.order(self.vcpus.len() as u32, icount).find(|vcpu| self.wake(*vcpu))?;
        if self.turn.give(vcpu, icount) {
            self.placement.next_turn();
        }
        Some(vcpu)
    }

    /// Runs one vCPU until its turn is over, a timer is due, or it leaves the guest for good.
    fn take_turn(&mut self, n: u32, limits: &Limits) -> Option<End> {
        if let Err(end) = self.load(n) {
            return Some(end);
        }
        loop {
            match self.milestone_if_due() {
                // A guest without timers may run on to its end here.
                Ok(true) => self.flush_serial(),
                Ok(false) => {}
                Err(error) => return Some(self.failed(&error)),
            }
            self.look_at_kick(n);
            if let Some(end) = self.check_end(limits) {
                return Some(end);
            }
            self.run_script();
            if self.vcpus[n as usize].needs_entry {
                match self.enter(n) {
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(end) => return Some(end),
                }
            }
            let nmi = self.take_nmi(n);
            let until = self.run_until(limits);
            if !nmi && self.services.clock.icount >= until {
                return None;
            }
            match if nmi { Stop::Exit } else { self.interpret(n, until) } {
                Stop::Budget => {}
                Stop::Exit => {
                    if let Some(wrong) = self.services.take_wrong() {
                        return Some(answered_wrongly(n, &wrong));
                    }
                    if let Some(status) = self.services.unmapped.take() {
                        return Some(self.mapped_unasked(n, status));
                    }
                    if let Some(end) = self.handle_exit(n, limits) {
                        return Some(end);
                    }
                }
                Stop::Halted => return None,
                Stop::TripleFault => return Some(End::Shutdown { reason: "triple fault".into() }),
            }
            if self.vcpus[n as usize].state.activity != Activity::ACTIVE {
                return None;
            }
        }
    }

    /// The instruction count at which the guest must be left at the latest.
    fn run_until(&self, limits: &Limits) -> u64 {
        let timer = self.services.devices.next_deadline().map(|due| self.services.clock.icount_at(due));
        let serial = self.services.inputs.next_serial();
        let nmi = self.services.next_nmi();
        let turn = self.takes_turns().then_some(self.turn.ends);
        let most = limits.interrupted.unwrap_or(u64::MAX).min(self.attended.saturating_add(UNATTENDED));
        let most = most.min(limits.instructions).min(self.script.next_insn()).min(self.milestones.next());
        let most = most.min(self.services.outcomes.next_sample(self.services.clock.icount));
        [timer, serial, nmi, turn].into_iter().flatten().fold(most, u64::min)
    }
}
