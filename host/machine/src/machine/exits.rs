//! Into the guest and out of it: the interpreter, the exit, the entry.

use super::{Limits, Machine, uncompleted::Uncompleted};
use crate::{
    services::{GuestEnv, Services, answers},
    time::HostPoint,
    vcpu::{describe, no_progress},
};
use vmtape_abi::{Errno, FlushScope, Host, MemoryStatus};
use vmtape_arch::{
    access::Verdict,
    exception::Exception,
    exit::{Exit, Resume, ResumeKind, StimulusKind},
    note::{Note, NoteKind},
    vcpu::{Activity, VcpuState},
};
use vmtape_cpu::{Stop, revision};
use vmtape_traces::event::{End, EntryOutcome, RegisterChanges};

impl Machine {
    /// An NMI of the host's that is due. True: the guest exits for it.
    pub(super) fn take_nmi(&mut self, n: u32) -> bool {
        let due = self.services.next_nmi().is_some_and(|due| due <= self.services.clock.icount);
        let state = &mut self.vcpus[n as usize].state;
        if !due || self.services.fault(n, HostPoint::NMI.0, state.rip, 0).is_none() {
            return false;
        }
        self.services.tape.begin_walk();
        let verdict = self.backend.host_nmi(n, state, &mut self.services, &mut self.exit);
        let allowed = [Verdict::NATIVE, Verdict::EXIT];
        self.services.is_right(answers::verdict("host_nmi", verdict, &allowed, &Exception::default()));
        verdict == Verdict::EXIT
    }

    pub(super) fn interpret(&mut self, n: u32, until: u64) -> Stop {
        let vcpu = &mut self.vcpus[n as usize];
        vcpu.state.icount = self.services.clock.icount;
        let ram = self.services.ram().clone();
        self.services.walks.expire();
        vcpu.cpu.pause_at(self.services.outcomes.next_sample(vcpu.state.icount));
        let mut env = GuestEnv {
            vcpu: n,
            backend: &mut *self.backend,
            services: &mut self.services,
            exit: &mut self.exit,
            ram,
            apic_write_traps: false,
        };
        let counts_on = revision::counts_on(self.spec.cpu_revision);
        vcpu.cpu.count_on(if counts_on { vcpu.progress.deliveries } else { (0, 0) });
        let stop = vcpu.cpu.run(&mut vcpu.state, &mut env, until);
        vcpu.progress.deliveries = vcpu.cpu.deliveries();
        self.services.sync_clock(&mut vcpu.state);
        self.services.outcomes.sample(n, &vcpu.state);
        stop
    }

    /// Asks the backend for the way back into the guest. False: the vCPU stays out for now.
    pub(super) fn enter(&mut self, n: u32) -> Result<bool, End> {
        self.place_smi_handler(n);
        let vcpu = &mut self.vcpus[n as usize];
        vcpu.state.icount = self.services.clock.icount;
        self.services.sync_clock(&mut vcpu.state);
        vcpu.needs_entry = false;
        if let Some(end) = self.services.interrupted_for_ever(n, vcpu.state.rip) {
            return Err(end);
        }
        self.services.tape.begin_entry(n, &vcpu.state);
        let told = self.services.tape.changes.begin_entry(n) && self.services.tells_changes();
        if told {
            self.services.tape.changes.begin(&vcpu.state);
        }
        self.services.emulation.exchanged = false;
        let resume = self.backend.enter(n, &mut vcpu.state, &mut self.services);
        self.services.is_right(answers::resume("enter", &resume, &vcpu.state));
        if let Some(wrong) = self.services.take_wrong() {
            return Err(answered_wrongly(n, &wrong));
        }
        let outcome = EntryOutcome::new(&resume, &vcpu.state);
        self.services.tape.end_entry(&outcome);
        if let Some(fed) = &mut self.services.fed {
            fed.entered = outcome;
        }
        self.services.after_backend(n, &mut vcpu.state, None);
        if told {
            let exchanged = self.services.emulation.exchanged;
            self.services.tape.changes.end_entry(n, &vcpu.state, exchanged);
        }
        if resume.kind == ResumeKind::RESUME {
            // No firmware has a handler of an SMI that the backend neither takes nor holds back.
            let apic = &mut self.services.devices.lapics[n as usize];
            apic.smi_pending &= vcpu.state.interruptibility.smi();
        }
        if resume.kind == ResumeKind::RESUME && self.services.wants(NoteKind::ENTRY) {
            let rip = vcpu.state.rip;
            self.services.note(n, Note::Entry { rip, intr_info: 0, error_code: 0 });
        }
        let applied = self.apply(n, &resume, None);
        if applied.is_err() && self.has_crashed(n, &resume) {
            return Err(self.crashed(n, Errno::EIO));
        }
        applied
    }

    pub(super) fn handle_exit(&mut self, n: u32, limits: &Limits) -> Option<End> {
        self.exits += 1;
        let vcpu = &mut self.vcpus[n as usize];
        let exit = std::mem::take(&mut *self.exit);
        let icount = self.services.clock.icount;
        self.services.outcomes.leaves(vcpu.state.icount);
        self.services.jump_clock(n);
        self.services.jump_tsc(n, &mut vcpu.state);
        self.services.pretend_interrupt(n, vcpu.state.rip);
        self.services.tape.begin_exit(n, icount, &vcpu.state, &exit);
        self.services.inputs.begin_exit(n, icount, &exit);
        let own_cr8 = !vcpu.state.interruptibility.virtual_tpr();
        let before = Before {
            rip: vcpu.state.rip,
            gpr: vcpu.state.gpr,
            cr8: own_cr8.then_some(vcpu.state.cr8),
            pat: vcpu.state.pat,
        };
        let told = self.services.tells_changes();
        if told {
            self.services.tape.changes.begin(&vcpu.state);
        }
        self.services.emulation.begin();
        self.services.to_userspace = false;
        (self.services.emulated, self.services.repeats) = (false, false);
        self.services.repetitions = 0;
        self.services.trapped = exit.trap.is_set();
        if let Some(port) = &mut self.services.devices.vmport {
            port.begin_exit(&vcpu.state);
        }
        let resume = self.backend.handle_exit(n, &mut vcpu.state, &exit, &mut self.services);
        self.services.trapped = false;
        self.services.is_right(answers::resume("handle_exit", &resume, &vcpu.state));
        if let Some(wrong) = self.services.take_wrong() {
            return Some(answered_wrongly(n, &wrong));
        }
        self.services.after_backend(n, &mut vcpu.state, Some(&before));
        let retired = vcpu.state.icount != icount;
        if retired && exit.stimulus == StimulusKind::SENSITIVE && exit.insn.kind.has_outcome() {
            self.services.outcomes.add(n, &vcpu.state);
        }
        self.services.outcomes.sample(n, &vcpu.state);
        let changes = match told {
            true => self.services.tape.changes.of_handling(n, &exit, &self.services.emulation, &vcpu.state),
            false => RegisterChanges::NONE,
        };
        self.services.tape.end_exit(n, &resume, changes);
        vcpu.needs_entry = true;
        let completed = self.services.to_userspace && vcpu.state.rip != before.rip;
        self.uncompleted = completed.then_some(Uncompleted {
            vcpu: n,
            icount: self.services.clock.icount,
            gpr: before.gpr,
            rip: before.rip,
        });
        let repetitions = self.services.repetitions;
        let stuck = vcpu.progress.stuck(&vcpu.state, icount, &exit, repetitions, limits.no_progress);
        self.services.watching = vcpu.progress.repeats > 0;
        if !self.services.watching {
            self.services.rules.clear();
        }
        if let Some(end) = self.sleep() {
            return Some(end);
        }
        let ended = match self.apply(n, &resume, Some(&exit)) {
            Ok(_) => stuck.map(|progress| no_progress(n, &progress, &exit, before.rip)),
            Err(end) => Some(end),
        };
        self.services.tape.changes.end_exit(n, self.vcpus[n as usize].state.activity);
        match self.checkpoint_if_due() {
            Ok(()) => ended,
            Err(error) => Some(self.failed(&error)),
        }
    }

    /// The backend has mapped a page for the guest without asking whether it is there.
    pub(super) fn mapped_unasked(&self, n: u32, status: MemoryStatus) -> End {
        let errno = if status == MemoryStatus::MISSING { Errno::EINTR } else { Errno::EFAULT };
        let rip = self.vcpus[n as usize].state.rip;
        let reason = format!("the backend maps a page that is {status} without asking for it, rip {rip:#x}");
        End::Fatal { vcpu: n, resume: Resume::errno(errno.0), reason }
    }

    /// The kernel waits for a page that nobody brings, within KVM_RUN. What it was to be read or written for is of no matter any more:
    /// a fault in the kernel, of `__get_user` in KVM's walk of the guest's tables for one, is repeated until the page is there or the
    /// process is killed, and never fails.
    /// See: Linux include/linux/sched/signal.h fault_signal_pending(), fs/userfaultfd.c handle_userfault()
    pub(super) fn waits_for_ever(&self, gpa: u64) -> End {
        let vcpu = self.turn.vcpu;
        let reason = format!("KVM_RUN of vCPU {vcpu} waits for the page at {gpa:#x}, which does not come");
        End::NoProgress { vcpu, repeats: 0, reason }
    }

    /// Acts on how the backend came back. True: the guest may run.
    fn apply(&mut self, n: u32, resume: &Resume, exit: Option<&Exit>) -> Result<bool, End> {
        if resume.kind == ResumeKind::DIRTY_RING_FULL && self.empty_rings() {
            self.vcpus[n as usize].needs_entry = true;
            return Ok(false);
        }
        let state = &mut self.vcpus[n as usize].state;
        match resume.kind {
            ResumeKind::RESUME | ResumeKind::IO | ResumeKind::MMIO => Ok(state.activity == Activity::ACTIVE),
            ResumeKind::BLOCKED | ResumeKind::HLT => {
                if state.activity == Activity::ACTIVE {
                    state.activity = Activity::HLT;
                }
                Ok(false)
            }
            ResumeKind::ERRNO if self.retried < self.spec.retries => {
                self.retried += 1;
                self.vcpus[n as usize].needs_entry = true;
                Ok(false)
            }
            ResumeKind::SHUTDOWN => Err(End::Shutdown { reason: "triple fault (KVM_EXIT_SHUTDOWN)".into() }),
            _ => {
                let reason = describe(resume, exit, state, self.services.said.as_deref());
                Err(End::Fatal { vcpu: n, resume: *resume, reason })
            }
        }
    }
}

/// The backend has answered against the ABI.
pub(super) fn answered_wrongly(vcpu: u32, wrong: &str) -> End {
    let reason = format!("the backend answers against the ABI: {wrong}");
    End::Fatal { vcpu, resume: Resume::new(ResumeKind::BACKEND_FAILED), reason }
}

/// What the handling of an exit found.
struct Before {
    rip: u64,
    gpr: [u64; 16],
    /// Where it is the local APIC's.
    cr8: Option<u64>,
    pat: u64,
}

impl Services {
    /// Brings together what the backend and the devices hold twice: the task priority, the TSC offset, the clock.
    fn after_backend(&mut self, n: u32, state: &mut VcpuState, before: Option<&Before>) {
        if let Some(before) = before {
            // An instruction that the backend skipped retired, like one that the emulator executed.
            if !self.emulated && state.rip != before.rip {
                state.icount += 1;
            }
            if let Some(port) = &mut self.devices.vmport {
                port.end_exit(state);
            }
            if state.pat != before.pat {
                // The TLB holds types of the old one.
                self.flush_tlb(n, FlushScope::ALL, 0);
            }
            if before.cr8.is_some_and(|cr8| cr8 != state.cr8) {
                self.devices.tpr_from_cr8(n, state);
            }
        }
        let now = self.sync_clock(state);
        self.devices.tpr_to_cr8(n, state);
        self.devices.lapics[n as usize].timer.set_tsc_offset(state.tsc_offset, now);
    }
}
