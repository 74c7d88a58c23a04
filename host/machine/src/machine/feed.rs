//! Taped exits handed to a backend without running the guest.
//!
//! The machine is built as for a run, but nothing is interpreted: for each exit the registers and the memory that its
//! handling used come from the tape. Devices and the clock are the machine's own, because handlers reach them. Memory
//! that the tape did not tell is *unknown*: a read of it is counted, and what depends on it is not to be judged.

use super::{Limits, Machine, halt::Halt};
use crate::{tape::Feeding, vcpu::Vcpu};
use vmtape_arch::{
    PAGE_SHIFT, PAGE_SIZE,
    exit::ResumeKind,
    note::Note,
    vcpu::{Activity, Interruptibility, VcpuState},
};
use vmtape_traces::{
    Elsewhere, ExitGroup, Rest,
    event::{Control, Data, End, EntryEvent, EntryOutcome},
};

impl Machine {
    /// Prepares a machine that was just built for [`Machine::feed`] and [`Machine::resolve`], with a tape of this schema. `same`: the
    /// machine is the tape's own.
    pub fn start_feeding(&mut self, schema: u32, same: bool) {
        self.services.fed = Some(Feeding::new(schema, self.vcpus.len() as u32, same));
    }

    /// Reads of memory that the tape did not tell, so far.
    pub fn unknown_reads(&self) -> u64 {
        self.services.fed.as_ref().map_or(0, Feeding::unknown)
    }

    /// Gives the backend the taped exit itself, for a backend of the same kind.
    pub fn feed(&mut self, group: &ExitGroup) -> Option<End> {
        let n = match self.bring_to(group) {
            Ok(vcpu) => vcpu?,
            Err(end) => return Some(end),
        };
        self.step_silicon(&group.before);
        *self.exit = group.exit.exit;
        self.handle_fed(n).or_else(|| {
            let loaded = group.cpus.iter().try_for_each(|cpu| self.load_on(n, *cpu));
            let ended = loaded.err().or_else(|| self.enter_fed(n, &group.controls));
            self.services.follow_pages(&group.pages);
            ended
        })
    }

    /// What the tape has behind its last exit. `woken`: vCPUs whose entry stands with the exit that halted them; `cut`: those whose entry
    /// the tape ends before. Gives the vCPUs whose registers changed otherwise than on the tape; `None`: what ended a halt is not known.
    pub fn feed_rest(&mut self, rest: &Rest, woken: &[u32], cut: &[u32]) -> Result<Option<Vec<u32>>, End> {
        cut.iter().for_each(|vcpu| self.services.tape.changes.forget_entry(*vcpu));
        if let Some(fed) = &mut self.services.fed {
            fed.faults.begin(&rest.faults, &[]);
        }
        self.services.follow_pages(&rest.pages);
        rest.controls.iter().for_each(|control| self.control_fed(control));
        for &n in woken {
            self.wake_for_rest(n)?;
            self.services.fire_timers();
            if !self.services.devices.can_wake(n, true) {
                return Ok(None);
            }
            let _ = self.enter(n);
        }
        for Elsewhere { vcpu, before, entries } in &rest.entered {
            if self.vcpus.get(*vcpu as usize).is_some() {
                self.wake_for_rest(*vcpu)?;
                self.enter_before(*vcpu, before, entries.iter().map(|(at, entry)| (*at, entry)));
            }
        }
        let changes = &mut self.services.tape.changes;
        let differs = |(vcpu, chain): &(u32, u64)| (!changes.compare_chain(*vcpu, *chain)).then_some(*vcpu);
        Ok(Some(rest.chains.iter().filter_map(differs).collect()))
    }

    fn wake_for_rest(&mut self, n: u32) -> Result<(), End> {
        let of_halt = self.services.fed.as_mut().map_or(Vec::new(), |fed| fed.take_for_wakeup(n));
        self.learn(&of_halt);
        self.load_fed(n)?;
        self.wake_fed(n);
        Ok(())
    }

    /// Whether all changes of registers make together what the tape has, if it has told that since this was asked last.
    pub fn take_chain_is_equal(&mut self) -> Option<bool> {
        self.services.fed.as_mut()?.chain_is_equal.take()
    }

    /// Copies the memory of another fed machine of the same tape, after an exit that this one dealt with otherwise: what this one
    /// wrote would be taken for what the guest has rewritten since.
    pub fn copy_memory(&mut self, other: &Self) {
        self.services.memory.absent = other.services.memory.absent.clone();
        let pages: Vec<u64> = self.written_pages().chain(other.written_pages()).collect();
        let (mut own, mut wanted) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
        for hpa in pages.into_iter().map(|page| page << PAGE_SHIFT) {
            let read = self.services.ram().read(hpa, &mut own) && other.services.ram().read(hpa, &mut wanted);
            if read && own != wanted {
                self.services.ram().write(hpa, &wanted);
            }
        }
    }

    /// Copies its registers. An exit is told with some of them; the rest that machine alone knows.
    pub fn copy_registers(&mut self, other: &Self) {
        for (n, (vcpu, other)) in (0..).zip(self.vcpus.iter_mut().zip(&other.vcpus)) {
            let VcpuState { inject, delivering, intercepts, .. } = vcpu.state;
            let state = VcpuState { inject, delivering, intercepts, ..other.state };
            if vcpu.state != state {
                vcpu.state = state;
                self.backend.state_changed(n, &mut vcpu.state, &mut self.services);
            }
        }
    }

    /// Takes all registers and memory of a machine that runs the guest and stands before the exit to be fed: nothing about the
    /// exit is unknown then. `None`: it stands elsewhere, and this exit is known by the tape alone.
    pub fn know_all_of(&mut self, group: &ExitGroup, running: Option<&Self>) {
        // Before its memory is the other's.
        self.forget_rewritten(group);
        if let Some(fed) = &mut self.services.fed {
            fed.knowledge.memory.know_all(running.is_some());
        }
        let Some(running) = running else { return };
        self.copy_memory(running);
        for (vcpu, other) in self.vcpus.iter_mut().zip(&running.vcpus) {
            let VcpuState { inject, delivering, intercepts, .. } = vcpu.state;
            vcpu.state = VcpuState { inject, delivering, intercepts, ..other.state };
        }
    }

    /// Time, registers and memory as they were at the exit. Gives the vCPU, unless this machine has no such one.
    pub(super) fn bring_to(&mut self, group: &ExitGroup) -> Result<Option<u32>, End> {
        let n = group.exit.vcpu;
        if self.vcpus.get(n as usize).is_none() {
            return Ok(None);
        }
        if let Some(fed) = self.services.fed.as_mut().filter(|fed| !fed.keeps()) {
            fed.knowledge.memory.forget();
        }
        let of_halt = self.services.fed.as_mut().map_or(Vec::new(), |fed| fed.take_for_wakeup(n));
        self.learn(&of_halt);
        if let Some(fed) = &mut self.services.fed {
            fed.faults.begin(&group.faults_before, &group.faults);
        }
        self.services.follow_pages(&group.pages_before);
        self.enter_others(group)?;
        self.load_fed(n)?;
        group.cpus_before.iter().try_for_each(|cpu| self.load_on(n, *cpu))?;
        group.controls_before.iter().for_each(|control| self.control_fed(control));
        self.wake_fed(n);
        let (notes, entries) = group.earlier;
        let (before, entries) = (&group.before[notes..], group.entries[entries..].iter());
        let entries = entries.map(|(at, entry)| (at - notes, entry));
        if !group.entries.is_empty() {
            self.enter_before(n, before, entries.clone());
        }
        self.services.clock.icount = group.exit.icount;
        self.services.fire_timers();
        self.look_at_kick(n);
        let has_entry = group.before.iter().any(|note| matches!(note, Note::Entry { .. }));
        if self.vcpus[n as usize].needs_entry && !has_entry {
            let known = self.services.devices.can_wake(n, true);
            if let Some(recorder) = self.services.tape.recorder() {
                recorder.halt_ends(known);
            }
            self.enter(n)?;
        }
        if group.entries.is_empty() {
            self.enter_before(n, before, entries);
        }
        let state = &mut self.vcpus[n as usize].state;
        state.icount = group.exit.icount;
        state.rip = group.exit.rip;
        if let Some(fed) = &mut self.services.fed {
            let mut told = 0;
            for registers in &group.registers {
                if let Some(chain) = registers.chain() {
                    fed.chain_is_equal = Some(self.services.tape.changes.compare_chain(n, chain));
                    continue;
                }
                fed.knowledge.learn(registers, state);
                told |= registers.mask;
            }
            let others_hold = fed.keeps() || fed.knowledge.memory.is_all();
            fed.knowledge.apply(n, state, if others_hold { told } else { u32::MAX });
        }
        // The low half of the task priority is not in CR8.
        if self.services.devices.cr8(n) != state.cr8 {
            self.services.devices.tpr_from_cr8(n, state);
        }
        state.inject = Default::default();
        self.services.sync_clock(state);
        if let Some(fed) = self.services.fed.as_mut().filter(|_| !of_halt.is_empty()) {
            fed.knowledge.memory.forget();
        }
        self.learn(&group.reads);
        if let Some(fed) = &mut self.services.fed {
            fed.keep_for_wakeup(group);
        }
        self.turn.vcpu = n;
        Ok(Some(n))
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
            if let Some(fed) = self.services.fed.as_mut().filter(|_| written) {
                fed.knowledge.memory.learn(*hpa, data.len());
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

    /// An entry that the tape tells: at its time, with what it looked at.
    fn enter_as_told(&mut self, n: u32, entry: &EntryEvent) {
        self.services.clock.icount = entry.icount;
        self.services.fire_timers();
        for (hpa, data) in entry.reads.iter().rev() {
            if let (true, Some(fed)) = (self.services.ram().write(*hpa, data), &mut self.services.fed) {
                fed.knowledge.memory.learn(*hpa, data.len() as u64);
            }
        }
        let state = &mut self.vcpus[n as usize].state;
        let EntryOutcome { resume, inject, .. } = &entry.outcome;
        let is_again = inject.valid.is_set() && inject.reinjected.is_set();
        if state.rip != entry.rip || (resume.kind == ResumeKind::RESUME && !is_again) {
            // The guest went on, perhaps back to the same place, so what the entry before this one injected was delivered.
            state.inject = Default::default();
        }
        (state.rip, state.rflags) = (entry.rip, entry.rflags);
        state.interruptibility = Interruptibility::from_bits(entry.interruptibility);
        if state.interruptibility.virtual_tpr() {
            state.cr8 = entry.cr8;
        }
        let _ = self.enter(n);
        if let Some(fed) = self.services.fed.as_mut().filter(|fed| fed.entered != entry.outcome) {
            fed.other_entries.push((entry.clone(), fed.entered));
        }
    }

    /// Entries of the tape of which something else came, since they were last asked for.
    pub fn other_entries(&mut self) -> Vec<(EntryEvent, EntryOutcome)> {
        self.services.fed.as_mut().map_or(Vec::new(), |fed| std::mem::take(&mut fed.other_entries))
    }

    /// Entries of other vCPUs before this exit: what they took is gone before the next of its kind comes.
    fn enter_others(&mut self, group: &ExitGroup) -> Result<(), End> {
        for other in &group.others {
            if self.vcpus.get(other.vcpu as usize).is_none() {
                continue;
            }
            if let Some(fed) = &mut self.services.fed {
                let of_halt = fed.take_for_wakeup(other.vcpu);
                self.learn(&of_halt);
            }
            self.load_fed(other.vcpu)?;
            self.wake_fed(other.vcpu);
            let entries = other.entries.iter().map(|(at, entry)| (*at, entry));
            self.enter_before(other.vcpu, &other.before, entries);
        }
        if let Some(fed) = self.services.fed.as_mut().filter(|fed| !group.others.is_empty() && !fed.keeps()) {
            fed.knowledge.memory.forget();
        }
        Ok(())
    }

    /// Entries that no exit came before: the first one, one after a halt, or one because a device had an interrupt for
    /// the running guest.
    fn enter_before<'e>(
        &mut self,
        n: u32,
        before: &[Note],
        entries: impl Iterator<Item = (usize, &'e EntryEvent)>,
    ) {
        let mut told = entries.peekable();
        let mut injected = false;
        for (index, note) in before.iter().enumerate() {
            let mut resumed = false;
            while let Some((_, entry)) = told.next_if(|(at, _)| *at == index) {
                self.enter_as_told(n, entry);
                resumed = entry.outcome.resume.kind == ResumeKind::RESUME;
                injected = false;
            }
            match *note {
                Note::InjVirq { .. } => injected = true,
                // The end of the entry that was told.
                Note::Entry { .. } if resumed => {}
                Note::Entry { rip, .. } => {
                    let state = &mut self.vcpus[n as usize].state;
                    state.rip = rip;
                    if self.services.fed.as_ref().is_some_and(|fed| !fed.keeps()) {
                        // It would be told if it injected again what the one before it did, so that was delivered.
                        state.inject = Default::default();
                    }
                    // Tapes before schema 3 do not tell entries.
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
        told.for_each(|(_, entry)| self.enter_as_told(n, entry));
    }

    /// A halted vCPU that exits has been woken: if everybody was halted, by the next timer.
    fn wake_fed(&mut self, n: u32) {
        /// Timers that may be due before the one that wakes.
        const MOST_JUMPS: u32 = 1024;
        self.halt = Halt::default();
        for _ in 0..MOST_JUMPS {
            let everybody_halted = (0..self.vcpus.len() as u32).all(|vcpu| !self.wake(vcpu));
            if !everybody_halted || self.idle().is_some() {
                break;
            }
            self.services.fire_timers();
        }
        self.vcpus[n as usize].state.activity = Activity::ACTIVE;
    }

    /// The exit's handling.
    pub(super) fn handle_fed(&mut self, n: u32) -> Option<End> {
        let limits = Limits::default();
        self.handle_exit(n, &limits).or_else(|| self.check_end(&limits))
    }

    /// What the VMM did after the exit, and the entry.
    pub(super) fn enter_fed(&mut self, n: u32, controls: &[Control]) -> Option<End> {
        controls.iter().for_each(|control| self.control_fed(control));
        self.look_at_kick(n);
        let wants_entry = |vcpu: &Vcpu| vcpu.needs_entry && vcpu.state.activity == Activity::ACTIVE;
        // Again where the VMM has made room in a dirty ring.
        while wants_entry(&self.vcpus[n as usize]) {
            if let Err(end) = self.enter(n) {
                return Some(end);
            }
        }
        None
    }
}
