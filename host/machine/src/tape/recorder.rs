//! What happens in a run, told to whoever listens.

use super::{changes::Changes, fpu, knowledge::Knowledge, registers};
use crate::spec::ChangesTold;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use vmtape_arch::{
    exit::{Exit, Resume, StimulusKind},
    level::Place,
    note::{Note, NoteKind},
    sensitive::{Sensitive, SensitiveKind},
    vcpu::VcpuState,
};
use vmtape_traces::event::{Data, EntryEvent, EntryOutcome, Event, ExitEvent, RegisterChanges, Registers};

/// Listens to a run: a tape's writer, or a replayer that compares.
pub trait Recorder {
    /// Whether notes of this kind are worth building.
    fn wants(&self, _kind: NoteKind) -> bool {
        true
    }

    /// Whether exits, registers and reads are worth telling, to a listener that has no tape to write.
    fn wants_stimuli(&self) -> bool {
        true
    }

    /// An exit's handling begins, whatever is told of the exit.
    fn exit_begins(&mut self) {}

    /// A machine that is fed a tape enters the guest after a halt: on the tape that stands with the exit that halted. `known`: its
    /// devices have something that ends a halt; what the guest did with them without an exit it does not know.
    fn halt_ends(&mut self, _known: bool) {}

    /// Takes an event; `Break` ends the run with [`vmtape_traces::event::End::Cut`].
    fn event(&mut self, event: Event) -> ControlFlow<()>;

    /// Takes a note, which most events are.
    fn note(&mut self, vcpu: u32, place: Place, note: Note) -> ControlFlow<()> {
        self.event(Event::Note { vcpu, place, note })
    }

    /// Whether the run is to end here, as a whole one: asked now and then. [`vmtape_traces::event::End::Interrupted`]
    fn is_interrupted(&mut self) -> bool {
        false
    }

    /// Takes a checkpoint of the whole machine, made after `exits` exits.
    fn checkpoint(&mut self, _icount: u64, _exits: u64, _bytes: Vec<u8>) {}

    /// Whether checkpoints are worth building.
    fn wants_checkpoints(&self) -> bool {
        false
    }
}

/// Reads of memory are told in units of so many bytes.
const WORD: usize = 8;

/// What it hangs on how a tape goes on, beside the guest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// The vCPU whose exit the tape tells, up to its entry.
    exited: Option<u32>,
    /// RFLAGS of each vCPU as they were told last.
    rflags: Vec<u64>,
    changes: Changes,
}

/// The recorder and what it has been told.
#[derive(Default)]
pub(crate) struct Tape {
    recorder: Option<Box<dyn Recorder>>,
    knowledge: Knowledge,
    /// Reads of the silicon's walk that is going on, told only if it ends in an exit.
    walk: Vec<(u64, usize)>,
    /// The bytes of those reads, one after the other.
    walk_bytes: Vec<u8>,
    /// The vCPU whose exit the tape tells, up to its entry.
    exited: Option<u32>,
    /// The entry that goes on and that no exit came before, and the windows that the backend waited for.
    entry: Option<(EntryEvent, u64)>,
    /// Its handling, or the entry after it, is going on.
    handling: bool,
    stop: bool,
    /// Exits, registers and reads are told.
    stimuli: bool,
    pub(crate) changes: Changes,
}

impl Tape {
    /// `changes`: what is told of those of registers.
    pub(crate) fn new(recorder: Option<Box<dyn Recorder>>, vcpus: u32, changes: ChangesTold) -> Self {
        let stimuli = recorder.as_ref().is_some_and(|recorder| recorder.wants_stimuli());
        let (knowledge, changes) = (Knowledge::new(vcpus), Changes::new(vcpus, changes));
        Self { recorder, stimuli, knowledge, changes, ..Self::default() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.recorder.is_some()
    }

    /// Whether exits, registers and reads are told.
    pub(crate) fn tells_stimuli(&self) -> bool {
        self.stimuli
    }

    pub(crate) fn wants(&self, kind: NoteKind) -> bool {
        self.recorder.as_ref().is_some_and(|recorder| recorder.wants(kind))
    }

    pub(crate) fn take_recorder(&mut self) -> Option<Box<dyn Recorder>> {
        self.recorder.take()
    }

    pub(crate) fn recorder(&mut self) -> Option<&mut (dyn Recorder + 'static)> {
        self.recorder.as_deref_mut()
    }

    /// Whether the recorder has heard enough.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop
    }

    /// Whether the recorder wants the run to end.
    pub(crate) fn is_interrupted(&mut self) -> bool {
        self.recorder.as_mut().is_some_and(|recorder| recorder.is_interrupted())
    }

    pub(crate) fn event(&mut self, event: Event) {
        if let Some(recorder) = &mut self.recorder {
            self.stop |= recorder.event(event).is_break();
        }
    }

    pub(crate) fn note(&mut self, vcpu: u32, place: Place, note: Note) {
        if let Some(recorder) = &mut self.recorder {
            self.stop |= recorder.note(vcpu, place, note).is_break();
        }
    }

    /// A reader that starts here knows nothing: tell everything again.
    pub(crate) fn forget(&mut self) {
        self.knowledge.forget();
    }

    /// Where the tape stands.
    pub(crate) fn standing(&self) -> Standing {
        Standing {
            exited: self.exited,
            rflags: self.knowledge.rflags().collect(),
            changes: self.changes.clone(),
        }
    }

    /// Starts where a checkpoint was made, with what [`Tape::standing`] said there.
    pub(crate) fn resume(&mut self, standing: &Standing) {
        self.exited = standing.exited;
        self.changes = standing.changes.clone();
        self.forget();
        self.knowledge.set_rflags(&standing.rflags);
    }

    /// The silicon begins to translate an access.
    pub(crate) fn begin_walk(&mut self) {
        self.walk.clear();
        self.walk_bytes.clear();
    }

    /// The exit, the registers that its handling uses, and what the silicon's walk has read.
    pub(crate) fn begin_exit(&mut self, vcpu: u32, icount: u64, state: &VcpuState, exit: &Exit) {
        if let Some(recorder) = &mut self.recorder {
            recorder.exit_begins();
            self.stimuli = recorder.wants_stimuli();
        }
        if !self.stimuli {
            return;
        }
        self.event(Event::Exit(Box::new(ExitEvent { vcpu, icount, rip: state.rip, exit: *exit })));
        let registers = self.knowledge.untold_of_exit(vcpu, state, exit);
        self.tell_registers(registers);
        if state.records_branches() {
            self.tell_numbered(vcpu, registers::LAST_BRANCH, state.last_branch);
            self.tell_numbered(vcpu, registers::LAST_EXCEPTION, state.last_exception);
        }
        self.tell_chain(vcpu, false);
        if self.changes.are_told() && exit.stimulus == StimulusKind::SENSITIVE {
            self.tell_beside(vcpu, state, &exit.insn);
        }
        self.knowledge.memory.forget();
        let (walk, bytes) = (std::mem::take(&mut self.walk), std::mem::take(&mut self.walk_bytes));
        if exit.stimulus == StimulusKind::ACCESS {
            let mut rest = &bytes[..];
            for &(hpa, len) in &walk {
                let read;
                (read, rest) = rest.split_at(len);
                self.tell_read(hpa, read);
            }
        }
        (self.walk, self.walk_bytes) = (walk, bytes);
        self.begin_walk();
        (self.exited, self.handling) = (Some(vcpu), true);
    }

    /// Registers that few instructions look at.
    fn tell_beside(&mut self, vcpu: u32, state: &VcpuState, insn: &Sensitive) {
        match insn.kind {
            SensitiveKind::DR_READ => {
                let number = registers::DEBUG + u64::from(insn.number);
                if let Some(value) = registers::debug(&mut { *state }, number) {
                    self.tell_numbered(vcpu, number, [*value, 0]);
                }
            }
            // Another mode, of which silicon may find that the segments do not fit it.
            SensitiveKind::CR_WRITE if insn.number == 0 && !state.is_64bit_code() => {
                (0..state.seg.len()).for_each(|segment| self.segment(vcpu, state, segment));
            }
            _ => {}
        }
    }

    pub(crate) fn end_exit(&mut self, vcpu: u32, resume: &Resume, changes: RegisterChanges) {
        self.handling = false;
        self.event(Event::Resume { vcpu, resume: *resume, changes });
    }

    /// What all changes of a vCPU's registers make together, now and then and at the end.
    pub(crate) fn tell_chain(&mut self, vcpu: u32, at_end: bool) {
        if self.stimuli
            && let Some(chain) = self.changes.take_chain(vcpu, at_end)
        {
            self.tell_numbered(vcpu, registers::CHAIN, [chain, 0]);
        }
    }

    /// The entry after an exit is told with it. Another one is an event of its own.
    pub(crate) fn begin_entry(&mut self, vcpu: u32, state: &VcpuState) {
        self.handling = self.stimuli && self.exited == Some(vcpu);
        self.entry = None;
        if self.stimuli && !self.handling {
            self.begin_walk();
            self.entry = Some((
                EntryEvent {
                    vcpu,
                    icount: state.icount,
                    rip: state.rip,
                    rflags: state.rflags,
                    interruptibility: state.interruptibility.into_bits(),
                    cr8: if state.interruptibility.virtual_tpr() { state.cr8 } else { 0 },
                    ..Default::default()
                },
                EntryOutcome::new(&Resume::GUEST, state).windows,
            ));
        }
    }

    pub(crate) fn end_entry(&mut self, outcome: &EntryOutcome) {
        (self.exited, self.handling) = (None, false);
        let Some((mut entry, windows)) = self.entry.take() else { return };
        let mut rest = &self.walk_bytes[..];
        for &(hpa, len) in &self.walk {
            let read;
            (read, rest) = rest.split_at(len);
            entry.reads.push((hpa, read.to_vec()));
        }
        self.begin_walk();
        let goes_on = EntryOutcome { resume: Resume::GUEST, windows, ..Default::default() };
        if !entry.reads.is_empty() || *outcome != goes_on {
            entry.outcome = *outcome;
            self.event(Event::Entry(Box::new(entry)));
        }
    }

    /// Tells those registers of the mask that the tape's reader does not have.
    pub(crate) fn registers(&mut self, vcpu: u32, state: &VcpuState, wanted: u32) {
        if self.stimuli {
            let registers = self.knowledge.untold(vcpu, state, wanted);
            self.tell_registers(registers);
        }
    }

    fn tell_registers(&mut self, registers: Registers) {
        if registers.mask != 0 {
            self.event(Event::Registers(registers));
        }
    }

    /// Tells a register of the FPU that an emulation may use.
    pub(crate) fn fpu(&mut self, vcpu: u32, state: &VcpuState, number: usize) {
        self.tell_numbered(vcpu, number as u64, fpu::get(&state.fpu, number));
    }

    /// Tells a segment that an emulation goes by.
    pub(crate) fn segment(&mut self, vcpu: u32, state: &VcpuState, number: usize) {
        if self.changes.are_told() {
            let number_told = registers::SEGMENT + number as u64;
            self.tell_numbered(vcpu, number_told, registers::segment(&state.seg[number]));
        }
    }

    fn tell_numbered(&mut self, vcpu: u32, number: u64, [low, high]: [u64; 2]) {
        let values = vec![number, low, high];
        self.event(Event::Registers(Registers { vcpu, mask: registers::FPU, values }));
    }

    /// A backend read memory.
    pub(crate) fn read(&mut self, hpa: u64, bytes: &[u8]) {
        if !self.stimuli {
            return;
        }
        if self.handling {
            self.tell_read(hpa, bytes);
        } else {
            self.walk.push((hpa, bytes.len()));
            self.walk_bytes.extend_from_slice(bytes);
        }
    }

    /// Tells the bytes of a read that the tape's reader does not have: not those that the handler has just written itself.
    fn tell_read(&mut self, hpa: u64, bytes: &[u8]) {
        for (hpa, bytes) in (hpa..).step_by(WORD).zip(bytes.chunks(WORD)) {
            if self.knowledge.memory.holds(hpa, bytes.len() as u64) {
                continue;
            }
            if !self.knowledge.memory.holds_some(hpa, bytes.len() as u64) {
                self.tell_bytes(hpa, bytes);
                continue;
            }
            let untold = |n: usize| !self.knowledge.memory.holds(hpa + n as u64, 1);
            let Some(first) = (0..bytes.len()).find(|n| untold(*n)) else { continue };
            let len = (first..bytes.len()).take_while(|n| untold(*n)).count();
            self.tell_bytes(hpa + first as u64, &bytes[first..first + len]);
            if first + len < bytes.len() {
                self.tell_read(hpa + (first + len) as u64, &bytes[first + len..]);
            }
        }
    }

    fn tell_bytes(&mut self, hpa: u64, bytes: &[u8]) {
        self.knowledge.memory.learn(hpa, bytes.len() as u64);
        let data = match *bytes {
            [a, b, c, d, e, f, g, h] => Data::U64(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
            [a, b, c, d] => Data::U32(u32::from_le_bytes([a, b, c, d])),
            _ => Data::Bytes(bytes.to_vec()),
        };
        self.event(Event::Read { hpa, data });
    }

    /// A backend wrote memory: what was there before is no stimulus, and a reader that runs the same handler has what is there
    /// now.
    pub(crate) fn wrote(&mut self, hpa: u64, bytes: &[u8]) {
        if self.handling {
            self.knowledge.memory.learn(hpa, bytes.len() as u64);
        }
    }
}
