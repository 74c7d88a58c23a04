//! What caused a taped exit, given to the silicon of a backend of another kind: it may take other exits, or none.

use super::Machine;
use crate::services::GuestEnv;
use vmtape_abi::MemoryRegion;
use vmtape_arch::{
    access::{Access, AccessKind, Verdict},
    exception::{Exception, PageFaultError, Vector},
    exit::{Exit, StimulusKind},
    note::Note,
    paging::Pte,
    regs::Cr0,
    sensitive::SensitiveKind,
    vcpu::VcpuState,
};
use vmtape_cpu::{Step, fault_in_delivery};
use vmtape_traces::{
    ExitGroup,
    event::{Control, End},
};

/// How a backend dealt with a stimulus that it was given instead of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Its silicon goes on without an exit.
    Native,
    /// Its silicon gives the guest an exception without an exit.
    Fault(Exception),
    /// It took exits and handled them.
    Handled,
    /// It took exits without end.
    Endless,
}

const ACCESSED_DIRTY: u32 = Pte::new().with_a(true).with_d(true).into_bits() as u32;

/// Exits that one stimulus may take: a page fault per level, and then some.
const MOST_EXITS: u32 = 16;

/// Silicon gives the guest a fault: of an event's delivery, where that is what the taped exit interrupted.
fn faulted(taped: &Exit, fault: Exception) -> Result<Resolved, End> {
    let event = taped.access.delivering;
    let taken = if event.valid.is_set() { fault_in_delivery(&event, fault) } else { Some(fault) };
    taken.map(Resolved::Fault).ok_or(End::Shutdown { reason: "triple fault".into() })
}

/// How silicon ran an instruction that the tape's backend had emulated.
enum Ran {
    Done,
    Fault(Exception),
    /// It left the guest after all, for another reason than the stimulus: the machine has the exit.
    Exit,
}

impl Machine {
    /// Gives the backend's silicon what caused the taped exit, for a backend of another kind.
    pub fn resolve(&mut self, group: &ExitGroup) -> Result<Resolved, End> {
        self.forget_rewritten(group);
        let Some(n) = self.bring_to(group)? else { return Ok(Resolved::Native) };
        if group.exit.exit.stimulus == StimulusKind::HOST {
            // Nothing that the guest did: the other silicon leaves it too, and nobody sees a difference.
            return Ok(Resolved::Native);
        }
        // That the guest came here again the tape says; only what this exit leads to may be without end.
        self.vcpus[n as usize].progress.begin_anew();
        let mut controls = &group.controls[..];
        let resolved = self.resolve_stimulus(n, group, &mut controls);
        // The VMM has done them all the same where there is no exit to do them after.
        controls.iter().for_each(|control| self.control_fed(control));
        self.services.follow_pages(&group.pages);
        resolved
    }

    /// What the backend made of entries that the guest has rewritten is not to be gone by.
    pub(super) fn forget_rewritten(&mut self, group: &ExitGroup) {
        if group.before.iter().any(|step| self.is_rewritten(step)) {
            self.forget_translations();
        }
    }

    /// Whether silicon walked an entry that the guest has written since this machine had it. On the tape's machine it wrote
    /// without an exit; a backend that keeps tables of its own in step with the guest's would have left it for that.
    fn is_rewritten(&self, step: &Note) -> bool {
        let Note::SiliconStep { gpa, before, .. } = *step else { return false };
        let Some(hpa) = self.services.memory.hpa(gpa) else { return false };
        // Both bits, which silicon sets by itself, are in the low half of an entry, which may be all of it.
        let mut entry = [0; 4];
        let known = self.services.ram().read(hpa, &mut entry);
        let (had, has) = (u32::from_le_bytes(entry), before as u32);
        known && (had & !has != 0 || has & !had & !ACCESSED_DIRTY != 0)
    }

    /// The backend forgets what it made of the guest's tables, as a VMM makes KVM do that changes a memory slot.
    fn forget_translations(&mut self) {
        for slot in self.services.memory.slots().to_vec() {
            let gone = MemoryRegion { size: 0, ..slot };
            for region in [gone, slot] {
                // It took the same slot before.
                let _ = self.backend.set_memory_region(&region, &mut self.services);
            }
        }
    }

    fn resolve_stimulus(
        &mut self,
        n: u32,
        group: &ExitGroup,
        controls: &mut &[Control],
    ) -> Result<Resolved, End> {
        for exits in 0..MOST_EXITS {
            let rip = self.vcpus[n as usize].state.rip;
            let decoded = exits == 0 && (is_checked_first(&group.exit.exit) || was_undefined(group));
            let mut answer = match decoded {
                true => (Verdict::NATIVE, Exception::default()),
                false => self.ask_silicon(n, &group.exit.exit),
            };
            if answer.0 == Verdict::NATIVE && exits == 0 {
                match self.run_natively(n, group) {
                    Ran::Done => return Ok(Resolved::Native),
                    // It is undefined here as well.
                    Ran::Fault(fault) if fault.vector == Vector::UD && was_undefined(group) => {
                        answer = self.ask_silicon(n, &group.exit.exit);
                    }
                    Ran::Fault(fault) => answer = (Verdict::FAULT, fault),
                    Ran::Exit => answer = (Verdict::EXIT, Exception::default()),
                }
            }
            match answer {
                (Verdict::NATIVE, _) => return Ok(Resolved::Handled),
                (Verdict::FAULT, fault) => return faulted(&group.exit.exit, fault),
                _ => {}
            }
            let trap = self.exit.trap;
            self.take_emulated();
            let ended = self.handle_fed(n).or_else(|| self.enter_fed(n, std::mem::take(controls)));
            if let Some(end) = ended {
                return Err(end);
            }
            let after = &mut self.vcpus[n as usize].state;
            if after.inject.reinjected.is_set() {
                // Silicon delivers the event again, and meets what it has met, or what lies behind it.
                after.inject = Default::default();
            }
            // The instruction is done, or as much of one that repeats as an exit does, or the guest has an exception: the
            // stimulus is dealt with. An exit like a trap comes after its instruction.
            if trap.is_set() || self.services.repeats || after.rip != rip || after.inject.valid.is_set() {
                return Ok(Resolved::Handled);
            }
            // What KVM's emulator executed without going on behind it is another instruction now, of which the tape's next exit tells.
            // See: KVM x86.c emulator_fix_hypercall()
            if self.take_emulated() && as_access(&group.exit.exit).stimulus != StimulusKind::ACCESS {
                return Ok(Resolved::Handled);
            }
        }
        Ok(Resolved::Endless)
    }

    /// Whether the emulator has executed something since this was last asked.
    fn take_emulated(&mut self) -> bool {
        self.services.fed.as_mut().is_some_and(|fed| std::mem::take(&mut fed.emulated))
    }

    fn ask_silicon(&mut self, n: u32, stimulus: &Exit) -> (Verdict, Exception) {
        let stimulus = &as_access(stimulus);
        let state = &mut self.vcpus[n as usize].state;
        let (services, exit) = (&mut self.services, &mut *self.exit);
        *exit = Exit::default();
        let mut fault = Exception::default();
        state.delivering = stimulus.access.delivering;
        let verdict = match stimulus.stimulus {
            StimulusKind::ACCESS => {
                let answer = self.backend.access(n, state, &stimulus.access, services, exit);
                fault = answer.fault;
                exit.access = stimulus.access;
                answer.verdict
            }
            StimulusKind::SENSITIVE if !state.intercepts.wants(stimulus.insn.kind) => Verdict::NATIVE,
            StimulusKind::SENSITIVE => {
                let verdict = self.backend.sensitive(n, state, &stimulus.insn, services, exit, &mut fault);
                exit.insn = stimulus.insn;
                verdict
            }
            _ => {
                let verdict = self.backend.exception(n, state, &stimulus.exception, services, exit);
                exit.exception = stimulus.exception;
                // An exception that is not taken is the guest's.
                fault = stimulus.exception;
                if verdict == Verdict::NATIVE { Verdict::FAULT } else { verdict }
            }
        };
        exit.stimulus = stimulus.stimulus;
        let mut verdict = verdict;
        let takes = state.intercepts.exceptions >> fault.vector.0 & 1 != 0;
        if verdict == Verdict::FAULT && takes && stimulus.stimulus != StimulusKind::EXCEPTION {
            // A page fault of shadow tables is first of all the backend's.
            if self.backend.exception(n, state, &fault, services, exit) == Verdict::EXIT {
                verdict = Verdict::EXIT;
                (exit.stimulus, exit.exception) = (StimulusKind::EXCEPTION, fault);
            }
        }
        state.delivering = Default::default();
        (verdict, fault)
    }

    /// Silicon takes no exit: what the tape's backend emulated, it runs, with its effect on registers, memory and the local
    /// APIC; for other instructions that effect follows from the stimulus.
    fn run_natively(&mut self, n: u32, group: &ExitGroup) -> Ran {
        let stimulus = &group.exit.exit;
        if stimulus.access.delivering.valid.is_set() {
            // The event has arrived. No instruction had begun.
            return Ran::Done;
        }
        let Some(bytes) = emulated(group).or_else(|| encoding(stimulus)) else {
            if stimulus.stimulus == StimulusKind::SENSITIVE && stimulus.insn.kind == SensitiveKind::APIC_WRITE
            {
                let (register, value) = (stimulus.insn.number, stimulus.insn.value as u32);
                let now = self.services.clock.now();
                self.services.devices.silicon_apic_write(n, register, value, now);
            }
            complete(&mut self.vcpus[n as usize].state, stimulus);
            return Ran::Done;
        };
        *self.exit = Exit::default();
        let vcpu = &mut self.vcpus[n as usize];
        let ram = self.services.ram().clone();
        let mut env = GuestEnv {
            vcpu: n,
            backend: &mut *self.backend,
            services: &mut self.services,
            exit: &mut self.exit,
            ram,
            apic_write_traps: false,
        };
        let step = vcpu.cpu.step_emulated(&mut vcpu.state, &mut env, Some(&bytes)).step;
        match step {
            Step::Fault(fault) => Ran::Fault(fault),
            // A trap comes after the instruction, a fault instead of it.
            _ if *self.exit != Exit::default() => Ran::Exit,
            _ => Ran::Done,
        }
    }
}

/// The instruction that the tape's backend emulated.
fn emulated(group: &ExitGroup) -> Option<Vec<u8>> {
    group.notes.iter().find_map(|note| match *note {
        Note::EmulateInsn { insn, len, failed: false, .. } => {
            insn.to_le_bytes().get(..usize::from(len)).map(<[u8]>::to_vec)
        }
        _ => None,
    })
}

/// Whether an instruction was undefined for the tape's silicon, and its backend knew it and kept that from the guest: VMCALL on AMD's,
/// VMMCALL on Intel's. Each silicon decodes it for itself.
fn was_undefined(group: &ExitGroup) -> bool {
    let exit = &group.exit.exit;
    let is_ud = exit.stimulus == StimulusKind::EXCEPTION && exit.exception.vector == Vector::UD;
    // Behind KVM's own prefix for forced emulation stands another instruction.
    let knows =
        |note: &Note| matches!(*note, Note::EmulateInsn { rip, failed: false, .. } if rip == group.exit.rip);
    let injects = |note: &Note| matches!(note, Note::InjException { .. });
    is_ud && group.notes.iter().any(knows) && !group.notes.iter().any(injects)
}

/// Whether processors differ in what comes first, the instruction's own exceptions or the exit: DR4 with CR4.DE set is #UD
/// on AMD's before the backend is asked.
fn is_checked_first(stimulus: &Exit) -> bool {
    let kind = stimulus.insn.kind;
    stimulus.stimulus == StimulusKind::SENSITIVE
        && matches!(kind, SensitiveKind::DR_READ | SensitiveKind::DR_WRITE)
}

/// The instruction behind an exit that carries none, where the processor itself has a say in it: registers that may be
/// the local APIC's, and debug registers.
fn encoding(stimulus: &Exit) -> Option<Vec<u8>> {
    if stimulus.stimulus != StimulusKind::SENSITIVE {
        return None;
    }
    let (register, gpr) = (stimulus.insn.number as u8 & 7, stimulus.insn.gpr & 15);
    let mov_dr = |opcode| {
        let rex_b = (gpr > 7).then_some(0x41);
        rex_b.into_iter().chain([0x0f, opcode, 0xc0 | register << 3 | gpr & 7]).collect()
    };
    match stimulus.insn.kind {
        SensitiveKind::WRMSR => Some(vec![0x0f, 0x30]),
        SensitiveKind::RDMSR => Some(vec![0x0f, 0x32]),
        SensitiveKind::DR_READ => Some(mov_dr(0x21)),
        SensitiveKind::DR_WRITE => Some(mov_dr(0x23)),
        _ => None,
    }
}

/// What an instruction leaves in the registers where silicon runs it itself. The tape does not tell, because the handler
/// of its exit did the same.
fn complete(state: &mut VcpuState, stimulus: &Exit) {
    /// MOV to CR3 with it keeps translations; it is not part of the register.
    const NO_FLUSH: u64 = 1 << 63;
    let insn = &stimulus.insn;
    if stimulus.stimulus != StimulusKind::SENSITIVE {
        return;
    }
    match (insn.kind, insn.number) {
        (SensitiveKind::CR_WRITE, 0) => state.cr0 = Cr0::from_bits(insn.value).with_et(true).into_bits(),
        (SensitiveKind::CR_WRITE, 3) => state.cr3 = insn.value & !NO_FLUSH,
        (SensitiveKind::CR_WRITE, 4) => state.cr4 = insn.value,
        (SensitiveKind::CR_WRITE, 8) => state.cr8 = insn.value,
        (SensitiveKind::CR_READ, 3) => state.gpr[usize::from(insn.gpr & 15)] = state.cr3,
        (SensitiveKind::CLTS, _) => state.cr0 = state.cr0().with_ts(false).into_bits(),
        _ => {}
    }
}

/// A page fault that the other silicon took (from shadow tables, for one) was an access; every silicon walks for itself.
fn as_access(stimulus: &Exit) -> Exit {
    let exception = &stimulus.exception;
    if stimulus.stimulus != StimulusKind::EXCEPTION || exception.vector != Vector::PF {
        return *stimulus;
    }
    let error = PageFaultError::from_bits(exception.error_code);
    let kind = match (error.w(), error.i()) {
        (true, _) => AccessKind::WRITE,
        (_, true) => AccessKind::FETCH,
        _ => AccessKind::READ,
    };
    let access = Access { gva: exception.payload, kind, user: error.u().into(), size: 1, ..stimulus.access };
    Exit { stimulus: StimulusKind::ACCESS, access, ..*stimulus }
}
