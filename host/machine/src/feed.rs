//! Taped exits handed to a backend without running the guest.
//!
//! The machine is built as for a run, but nothing is interpreted: for each exit the registers and the memory that its
//! handling used come from the tape. Devices and the clock are the machine's own, because handlers reach them. Memory
//! that the tape did not tell is *unknown*: a read of it is counted, and what depends on it is not to be judged.

use crate::{machine::Machine, recorder::FIRST_MM};
use vmtape_arch::{
    access::{Access, AccessKind, Verdict},
    exception::{Exception, PageFaultError, Vector},
    exit::{Exit, StimulusKind},
    note::Note,
    regs::{Cr0, SegAttr},
    sensitive::SensitiveKind,
    vcpu::{Activity, Interruptibility, VcpuState, seg},
};
use vmtape_traces::{
    ExitGroup,
    event::{Control, Data, End, Registers},
};

/// Memory, in aligned quadwords of host physical memory, that a fed machine may know of.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// A bit per quadword.
    words: Vec<u64>,
    /// Uses of memory, or of vector registers, that are not known.
    pub(crate) unknown: u64,
}

impl Known {
    pub(crate) fn learn(&mut self, hpa: u64, len: u64) {
        for word in quadwords(hpa, len) {
            let at = (word / 64) as usize;
            if at >= self.words.len() {
                self.words.resize(at + 1, 0);
            }
            self.words[at] |= 1 << (word % 64);
        }
    }

    pub(crate) fn read(&mut self, hpa: u64, len: u64) {
        let known =
            |word: u64| self.words.get((word / 64) as usize).is_some_and(|w| w >> (word % 64) & 1 != 0);
        let all = quadwords(hpa, len).all(known);
        self.unknown += u64::from(!all);
    }
}

fn quadwords(hpa: u64, len: u64) -> std::ops::Range<u64> {
    hpa >> 3..(hpa + len).div_ceil(8)
}

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

/// Exits that one stimulus may take: a page fault per level, and then some.
const MOST_EXITS: u32 = 16;

impl Machine {
    /// Prepares a machine that was just built for [`Machine::feed`] and [`Machine::resolve`].
    pub fn start_feeding(&mut self) {
        self.services.known = Some(Known::default());
    }

    /// Reads of memory or registers that the tape did not tell, so far.
    pub fn unknown_reads(&self) -> u64 {
        self.services.known.as_ref().map_or(0, |known| known.unknown)
    }

    /// Gives the backend the taped exit itself, for a backend of the same kind.
    pub fn feed(&mut self, group: &ExitGroup) -> Option<End> {
        let n = self.bring_to(group)?;
        self.step_silicon(&group.before);
        *self.exit = group.exit.exit;
        self.handle_fed(n).or_else(|| self.enter_fed(n, &group.controls))
    }

    /// Gives the backend's silicon what caused the taped exit, for a backend of another kind.
    pub fn resolve(&mut self, group: &ExitGroup) -> Result<Resolved, End> {
        let Some(n) = self.bring_to(group) else { return Ok(Resolved::Native) };
        let mut controls = &group.controls[..];
        for exits in 0..MOST_EXITS {
            match self.ask_silicon(n, &group.exit.exit) {
                (Verdict::NATIVE, _) if exits > 0 => return Ok(Resolved::Handled),
                (Verdict::NATIVE, _) => {
                    run_natively(&mut self.vcpus[n as usize].state, &group.exit.exit);
                    return Ok(Resolved::Native);
                }
                (Verdict::FAULT, fault) => return Ok(Resolved::Fault(fault)),
                _ => {}
            }
            let before = self.vcpus[n as usize].state;
            let ended = self.handle_fed(n).or_else(|| self.enter_fed(n, std::mem::take(&mut controls)));
            if let Some(end) = ended {
                return Err(end);
            }
            let after = &self.vcpus[n as usize].state;
            // The instruction is done or the guest has an exception: the stimulus is dealt with.
            if after.rip != before.rip || after.inject.valid {
                return Ok(Resolved::Handled);
            }
        }
        Ok(Resolved::Endless)
    }

    /// Time, registers and memory as they were at the exit. Gives the vCPU, unless this machine has no such one.
    fn bring_to(&mut self, group: &ExitGroup) -> Option<u32> {
        let n = group.exit.vcpu;
        self.vcpus.get(n as usize)?;
        group.controls_before.iter().for_each(|control| _ = self.control(control));
        self.wake_fed(n);
        self.services.clock.icount = group.exit.icount;
        let now = self.services.clock.now();
        self.services.devices.advance(now);
        self.look_at_kick(n);
        let has_entry = group.before.iter().any(|note| matches!(note, Note::Entry { .. }));
        if self.vcpus[n as usize].needs_entry && !has_entry {
            // The entry after a halt stands with the exit that halted.
            let _ = self.enter(n);
        }
        self.enter_before(n, &group.before);
        let state = &mut self.vcpus[n as usize].state;
        state.icount = group.exit.icount;
        state.rip = group.exit.rip;
        group.registers.iter().for_each(|registers| apply(state, registers));
        // The low half of the task priority is not in CR8.
        if u64::from(self.services.devices.tpr(n)) >> 4 != state.cr8 {
            self.services.devices.set_tpr(n, (state.cr8 << 4) as u8);
        }
        state.inject = Default::default();
        self.services.sync_clock(state);
        self.learn(&group.reads);
        self.current = n;
        Some(n)
    }

    /// Puts what the exit's handling read into memory. Of several reads of a byte the first one counts: what comes later
    /// has the handler's own writes in it, which this backend is about to do itself.
    fn learn(&mut self, reads: &[(u64, Data)]) {
        // So the first one is written last.
        for (hpa, data) in reads.iter().rev() {
            let written = match data {
                Data::U64(value) => self.services.ram().write(*hpa, &value.to_le_bytes()),
                other => self.services.ram().write(*hpa, &other.to_bytes()),
            };
            if let Some(known) = self.services.known.as_mut().filter(|_| written) {
                known.learn(*hpa, data.len());
            }
        }
    }

    /// The accessed and dirty bits that silicon set on its way to the exit, as the handler finds them.
    fn step_silicon(&mut self, notes: &[Note]) {
        for note in notes {
            let Note::SiliconStep { gpa, before, after, .. } = *note else { continue };
            let Some(hpa) = self.services.memory.hpa(gpa).filter(|_| before != after) else { continue };
            // Both bits are in the low half of an entry, which may be all of it.
            let mut entry = [0; 4];
            if self.services.ram().read(hpa, &mut entry) && u32::from_le_bytes(entry) == before as u32 {
                self.services.ram().write(hpa, &(after as u32).to_le_bytes());
            }
        }
    }

    /// Entries that no exit came before: the first one, one after a halt, or one because a device had an interrupt for
    /// the running guest.
    fn enter_before(&mut self, n: u32, notes: &[Note]) {
        let mut injected = false;
        for note in notes {
            match *note {
                Note::InjVirq { .. } => injected = true,
                Note::Entry { rip, .. } => {
                    let state = &mut self.vcpus[n as usize].state;
                    state.rip = rip;
                    if std::mem::take(&mut injected) {
                        // That the guest took an interrupt says that it could.
                        state.rflags = state.rflags().with_intr(true).into_bits();
                        state.interruptibility = Interruptibility::new();
                    }
                    let _ = self.enter(n);
                }
                _ => {}
            }
        }
    }

    /// A halted vCPU that exits has been woken: if everybody was halted, by the next timer.
    fn wake_fed(&mut self, n: u32) {
        /// Timers that may be due before the one that wakes.
        const MOST_JUMPS: u32 = 1024;
        for _ in 0..MOST_JUMPS {
            let everybody_halted = (0..self.vcpus.len() as u32).all(|vcpu| !self.wake(vcpu));
            if !everybody_halted || self.idle().is_some() {
                break;
            }
            let now = self.services.clock.now();
            self.services.devices.advance(now);
        }
        self.vcpus[n as usize].state.activity = Activity::ACTIVE;
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

    /// The exit's handling.
    fn handle_fed(&mut self, n: u32) -> Option<End> {
        let limits = crate::Limits::default();
        self.handle_exit(n, &limits).or_else(|| self.check_end(&limits))
    }

    /// What the VMM did after the exit, and the entry.
    fn enter_fed(&mut self, n: u32, controls: &[Control]) -> Option<End> {
        controls.iter().for_each(|control| _ = self.control(control));
        self.look_at_kick(n);
        let vcpu = &self.vcpus[n as usize];
        if vcpu.needs_entry && vcpu.state.activity == Activity::ACTIVE {
            return self.enter(n).err();
        }
        None
    }
}

/// What an instruction leaves in the control registers where silicon runs it itself. The tape does not tell, because the
/// handler of its exit did the same.
fn run_natively(state: &mut VcpuState, stimulus: &Exit) {
    /// MOV to CR3 with it keeps translations; it is not part of the register.
    const NO_FLUSH: u64 = 1 << 63;
    let insn = &stimulus.insn;
    match (stimulus.stimulus, insn.kind, insn.number) {
        (StimulusKind::SENSITIVE, SensitiveKind::CR_WRITE, 0) => {
            state.cr0 = Cr0::from_bits(insn.value).with_et(true).into_bits();
        }
        (StimulusKind::SENSITIVE, SensitiveKind::CR_WRITE, 3) => state.cr3 = insn.value & !NO_FLUSH,
        (StimulusKind::SENSITIVE, SensitiveKind::CR_WRITE, 4) => state.cr4 = insn.value,
        (StimulusKind::SENSITIVE, SensitiveKind::CR_WRITE, 8) => state.cr8 = insn.value,
        (StimulusKind::SENSITIVE, SensitiveKind::CLTS, _) => {
            state.cr0 = state.cr0().with_ts(false).into_bits();
        }
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
    let access = Access { gva: exception.payload, kind, user: error.u(), size: 1, ..stimulus.access };
    Exit { stimulus: StimulusKind::ACCESS, access, ..*stimulus }
}

/// Sets the registers of an event.
fn apply(state: &mut VcpuState, registers: &Registers) {
    let mut values = registers.values.iter().copied();
    let mut mask = registers.mask;
    while mask != 0 {
        let bit = mask.trailing_zeros();
        mask &= mask - 1;
        let Some(value) = values.next() else { return };
        match bit {
            0..16 => state.gpr[bit as usize] = value,
            16 => state.rflags = value,
            17 => state.cr0 = value,
            18 => state.cr2 = value,
            19 => state.cr3 = value,
            20 => state.cr4 = value,
            21 => state.cr8 = value,
            22 => state.efer = value,
            23 => state.cpl = value as u32,
            24 => state.pkru = value as u32,
            25 => state.xcr0 = value,
            26 => state.interruptibility = Interruptibility::from_bits(value as u32),
            27 => {
                state.seg[seg::CS].attr = SegAttr::from_bits(value as u16);
                state.seg[seg::CS].base = values.next().unwrap_or_default();
            }
            28 => state.gdtr.base = value,
            29 => state.idtr.base = value,
            30 => state.dr7 = value,
            31 => {
                let (low, high) = (values.next().unwrap_or_default(), values.next().unwrap_or_default());
                let fpu = &mut state.fpu;
                if let Some(xmm) = fpu.xmm.get_mut(value as usize) {
                    *xmm = [low, high];
                } else if let Some(mm) = fpu.st.get_mut((value as usize).wrapping_sub(FIRST_MM)) {
                    mm[..8].copy_from_slice(&low.to_le_bytes());
                }
            }
            _ => {}
        }
    }
}
