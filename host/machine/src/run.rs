//! The run loop: whose turn it is, into the guest, out of it, and when to stop.

use crate::{
    env::GuestEnv,
    host::Services,
    machine::Machine,
    progress::{describe, no_progress},
};
use vmtape_abi::Host;
use vmtape_arch::{
    exit::{Exit, Resume, ResumeKind},
    note::{Note, NoteKind},
    vcpu::{Activity, VcpuState, seg},
};
use vmtape_cpu::Stop;
use vmtape_traces::event::{End, Event};

/// Instructions that a vCPU executes before another one has its turn.
const TURN: u64 = 2_000;

/// When to stop a guest that does not stop by itself.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub instructions: u64,
    pub exits: u64,
    /// Exits in a row without a retired instruction.
    pub no_progress: u64,
}

/// No run is longer than this, whatever its caller says: some hours.
const MOST_INSTRUCTIONS: u64 = 1_000_000_000_000;
const MOST_EXITS: u64 = 10_000_000_000;

impl Default for Limits {
    fn default() -> Self {
        Self { instructions: MOST_INSTRUCTIONS, exits: MOST_EXITS, no_progress: 1_000 }
    }
}

impl Limits {
    fn bounded(&self) -> Self {
        Self {
            instructions: self.instructions.min(MOST_INSTRUCTIONS),
            exits: self.exits.min(MOST_EXITS),
            ..*self
        }
    }
}

impl Machine {
    /// Runs the guest until it ends or a limit is reached, and tells the recorder how it ended.
    pub fn run(&mut self, limits: &Limits) -> End {
        let end = self.advance(limits);
        self.finish(&end);
        end
    }

    /// Tells the recorder that the run has ended, after the last [`Machine::advance`].
    pub fn finish(&mut self, end: &End) {
        self.tell_hash();
        self.services.tape.event(Event::End {
            icount: self.services.clock.icount,
            exits: self.exits,
            end: end.clone(),
        });
    }

    /// As [`Machine::run`], for a caller that goes on after a limit: the recorder hears of no end.
    pub fn advance(&mut self, limits: &Limits) -> End {
        let limits = &limits.bounded();
        loop {
            self.flush_serial();
            self.milestone_if_due();
            if let Some(end) = self.check_end(limits) {
                return end;
            }
            self.services.poll_serial();
            let now = self.services.clock.now();
            self.services.devices.advance(now);
            self.run_script();
            let ended = match self.choose_vcpu() {
                Some(vcpu) => self.take_turn(vcpu, limits),
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

    pub(crate) fn check_end(&mut self, limits: &Limits) -> Option<End> {
        if let Some(end) = self.services.devices.take_end() {
            return Some(end);
        }
        if self.services.tape.is_stopped() {
            return Some(End::Cut);
        }
        if self.services.clock.icount >= limits.instructions {
            return Some(End::Limit { what: format!("{} instructions", limits.instructions) });
        }
        (self.exits >= limits.exits).then(|| End::Limit { what: format!("{} exits", limits.exits) })
    }

    /// Everybody is halted: time jumps to the next timer. Without one, a typist may still wake the guest.
    pub(crate) fn idle(&mut self) -> Option<End> {
        if let Some(due) = self.services.devices.next_deadline() {
            self.services.clock.jump_to(due);
            return None;
        }
        let Some(due) = self.services.inputs.next_serial() else { return Some(End::Idle) };
        let Some(byte) = self.services.inputs.serial(due) else { return Some(End::Idle) };
        self.services.type_byte(byte, due);
        None
    }

    /// The vCPU to run: the current one until its turn ends, then the next one that can run.
    fn choose_vcpu(&mut self) -> Option<u32> {
        let count = self.vcpus.len() as u32;
        let turn_over = self.services.clock.icount >= self.turn_ends;
        let first = if turn_over { self.current + 1 } else { self.current };
        for n in first..first + count {
            let vcpu = n % count;
            if self.wake(vcpu) {
                if vcpu != self.current || turn_over {
                    self.turn_ends = self.services.clock.icount + TURN;
                }
                self.current = vcpu;
                return Some(vcpu);
            }
        }
        None
    }

    /// Lets INIT, SIPI and interrupts act on a vCPU. True: it runs.
    // See: KVM arch/x86/kvm/lapic.c kvm_apic_accept_events(), x86.c kvm_arch_vcpu_runnable()
    pub(crate) fn wake(&mut self, n: u32) -> bool {
        self.accept_init_and_sipi(n);
        let vcpu = &mut self.vcpus[n as usize];
        let takes_interrupts = vcpu.state.rflags().intr();
        match vcpu.state.activity {
            Activity::ACTIVE => true,
            Activity::HLT if self.services.devices.can_wake(n, takes_interrupts) => {
                vcpu.state.activity = Activity::ACTIVE;
                vcpu.needs_entry = true;
                true
            }
            _ => false,
        }
    }

    fn accept_init_and_sipi(&mut self, n: u32) {
        let apic = &mut self.services.devices.lapics[n as usize];
        let state = &mut self.vcpus[n as usize].state;
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
            self.services.flush_tlb(n, vmtape_abi::FlushScope::ALL, 0);
            self.vcpus[n as usize].needs_entry = true;
        }
    }

    /// Runs one vCPU until its turn is over, a timer is due, or it leaves the guest for good.
    fn take_turn(&mut self, n: u32, limits: &Limits) -> Option<End> {
        loop {
            self.milestone_if_due();
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
            let until = self.run_until(limits);
            if self.services.clock.icount >= until {
                return None;
            }
            match self.interpret(n, until) {
                Stop::Budget => {}
                Stop::Exit => {
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

    /// A device wants attention: the backend is asked whether the guest takes an interrupt.
    pub(crate) fn look_at_kick(&mut self, n: u32) {
        if self.services.devices.take_kick() {
            for (other, vcpu) in (0..).zip(&mut self.vcpus) {
                let virtual_interrupts = vcpu.state.intercepts.virtual_interrupts;
                let pending = self.services.devices.interrupt(other, false).is_some() && !virtual_interrupts
                    || self.services.devices.nmi(other, false)
                    || self.services.devices.wants_extint(other);
                vcpu.needs_entry |= pending;
            }
        }
        // INIT reaches a running vCPU between two instructions.
        if self.services.devices.lapics[n as usize].init_pending {
            self.accept_init_and_sipi(n);
        }
    }

    /// The instruction count at which the guest must be left at the latest.
    fn run_until(&self, limits: &Limits) -> u64 {
        let timer = self.services.devices.next_deadline().map(|due| self.services.clock.icount_at(due));
        let serial = self.services.inputs.next_serial();
        let turn = (self.vcpus.len() > 1).then_some(self.turn_ends);
        let most = limits.instructions.min(self.script.next_insn()).min(self.milestones.next);
        [timer, serial, turn].into_iter().flatten().fold(most, u64::min)
    }

    fn interpret(&mut self, n: u32, until: u64) -> Stop {
        let vcpu = &mut self.vcpus[n as usize];
        vcpu.state.icount = self.services.clock.icount;
        let ram = self.services.ram().clone();
        let mut env = GuestEnv {
            vcpu: n,
            backend: &mut *self.backend,
            services: &mut self.services,
            exit: &mut self.exit,
            ram,
            apic_write_traps: false,
        };
        let stop = vcpu.cpu.run(&mut vcpu.state, &mut env, until);
        self.services.sync_clock(&mut vcpu.state);
        stop
    }

    /// Asks the backend for the way back into the guest. False: the vCPU stays out for now.
    pub(crate) fn enter(&mut self, n: u32) -> Result<bool, End> {
        let vcpu = &mut self.vcpus[n as usize];
        vcpu.state.icount = self.services.clock.icount;
        self.services.sync_clock(&mut vcpu.state);
        vcpu.needs_entry = false;
        self.services.tape.begin_entry(n);
        let resume = self.backend.enter(n, &mut vcpu.state, &mut self.services);
        self.services.tape.end_entry();
        self.services.after_backend(n, &mut vcpu.state, None);
        if resume.kind == ResumeKind::RESUME && self.services.wants(NoteKind::ENTRY) {
            let rip = vcpu.state.rip;
            self.services.note(n, Note::Entry { rip, intr_info: 0, error_code: 0 });
        }
        self.apply(n, &resume, None)
    }

    pub(crate) fn handle_exit(&mut self, n: u32, limits: &Limits) -> Option<End> {
        self.exits += 1;
        let vcpu = &mut self.vcpus[n as usize];
        let exit = std::mem::take(&mut *self.exit);
        let icount = self.services.clock.icount;
        self.services.tape.begin_exit(n, icount, &vcpu.state, &exit);
        let before = Before { rip: vcpu.state.rip, cr8: vcpu.state.cr8 };
        self.services.emulated = false;
        let resume = self.backend.handle_exit(n, &mut vcpu.state, &exit, &mut self.services);
        self.services.after_backend(n, &mut vcpu.state, Some(&before));
        self.services.tape.end_exit(n, &resume);
        vcpu.needs_entry = true;
        let stuck = vcpu.progress.stuck(&vcpu.state, icount, &exit, limits);
        self.services.watching = vcpu.progress.repeats > 0;
        if !self.services.watching {
            self.services.rules.clear();
        }
        let ended = match self.apply(n, &resume, Some(&exit)) {
            Ok(_) => stuck.map(|progress| no_progress(n, &progress, &exit, before.rip)),
            Err(end) => Some(end),
        };
        self.checkpoint_if_due();
        ended
    }

    /// Acts on how the backend came back. True: the guest may run.
    fn apply(&mut self, n: u32, resume: &Resume, exit: Option<&Exit>) -> Result<bool, End> {
        let state = &mut self.vcpus[n as usize].state;
        match resume.kind {
            ResumeKind::RESUME | ResumeKind::IO | ResumeKind::MMIO => Ok(state.activity == Activity::ACTIVE),
            ResumeKind::BLOCKED | ResumeKind::HLT => {
                if state.activity == Activity::ACTIVE {
                    state.activity = Activity::HLT;
                }
                Ok(false)
            }
            ResumeKind::SHUTDOWN => Err(End::Shutdown { reason: "triple fault (KVM_EXIT_SHUTDOWN)".into() }),
            _ => Err(End::Fatal { vcpu: n, resume: *resume, reason: describe(resume, exit, state) }),
        }
    }
}

/// What the handling of an exit found.
struct Before {
    rip: u64,
    cr8: u64,
}

impl Services {
    /// Brings together what the backend and the devices hold twice: the task priority, the TSC offset, the clock.
    fn after_backend(&mut self, n: u32, state: &mut VcpuState, before: Option<&Before>) {
        if let Some(before) = before {
            // An instruction that the backend skipped retired, like one that the emulator executed.
            if !self.emulated && state.rip != before.rip {
                state.icount += 1;
            }
            if state.cr8 != before.cr8 {
                self.devices.set_tpr(n, (state.cr8 << 4) as u8);
            }
        }
        let now = self.sync_clock(state);
        state.cr8 = u64::from(self.devices.tpr(n)) >> 4;
        self.devices.lapics[n as usize].timer.set_tsc_offset(state.tsc_offset, now);
    }
}

/// The state after INIT: as after RESET, but for what INIT leaves alone.
// See: SDM vol. 3A Table 10-1. IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT
fn init(state: &mut VcpuState) {
    let old = *state;
    *state = VcpuState {
        cr0: VcpuState::reset().cr0 & !CACHE_BITS | old.cr0 & CACHE_BITS,
        xcr0: old.xcr0,
        fpu: old.fpu,
        pat: old.pat,
        tsc_aux: old.tsc_aux,
        tsc_offset: old.tsc_offset,
        tsc_adjust: old.tsc_adjust,
        star: old.star,
        lstar: old.lstar,
        cstar: old.cstar,
        sfmask: old.sfmask,
        kernel_gs_base: old.kernel_gs_base,
        icount: old.icount,
        tsc: old.tsc,
        intercepts: old.intercepts,
        ..VcpuState::reset()
    };
}

/// CR0.CD and CR0.NW, which INIT leaves alone.
const CACHE_BITS: u64 = vmtape_arch::regs::Cr0::new().with_cd(true).with_nw(true).into_bits();
