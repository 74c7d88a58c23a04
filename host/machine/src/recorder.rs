//! What happens in a run, told to whoever listens.

use crate::fpu;
use std::{collections::HashMap, ops::ControlFlow};
use vmtape_arch::{
    exit::{Exit, Resume, StimulusKind},
    level::Place,
    note::{Note, NoteKind},
    regs::Rflags,
    sensitive::SensitiveKind,
    vcpu::{VcpuState, gpr, seg},
};
use vmtape_traces::event::{Data, Event, ExitEvent, Registers};

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

    /// Takes an event; `Break` ends the run with [`vmtape_traces::event::End::Cut`].
    fn event(&mut self, event: Event) -> ControlFlow<()>;

    /// Takes a checkpoint of the whole machine, made after `exits` exits.
    fn checkpoint(&mut self, _icount: u64, _exits: u64, _bytes: Vec<u8>) {}

    /// Whether checkpoints are worth building.
    fn wants_checkpoints(&self) -> bool {
        false
    }
}

/// Bits of [`Registers::mask`] past the general registers.
mod bit {
    pub const RFLAGS: u32 = 1 << 16;
    pub const CR0: u32 = 1 << 17;
    pub const CR2: u32 = 1 << 18;
    pub const CR3: u32 = 1 << 19;
    pub const CR4: u32 = 1 << 20;
    pub const CR8: u32 = 1 << 21;
    pub const EFER: u32 = 1 << 22;
    pub const CPL: u32 = 1 << 23;
    pub const PKRU: u32 = 1 << 24;
    pub const XCR0: u32 = 1 << 25;
    pub const INTERRUPTIBILITY: u32 = 1 << 26;
    pub const CS: u32 = 1 << 27;
    pub const GDTR: u32 = 1 << 28;
    pub const IDTR: u32 = 1 << 29;
    pub const DR7: u32 = 1 << 30;
    pub const COUNT: usize = 31;
    pub const FPU: u32 = 1 << 31;
}

/// Reads and writes of memory are told and known in units of so many bytes.
const WORD: u64 = 8;

/// What every exit's handling may look at. CR8 is the local APIC's task priority, which a guest may have changed without an
/// exit.
const ALWAYS: u32 =
    bit::CR0 | bit::CR3 | bit::CR4 | bit::CR8 | bit::EFER | bit::CPL | bit::INTERRUPTIBILITY | bit::CS;
const RFLAGS_INDEX: usize = bit::RFLAGS.trailing_zeros() as usize;
const CS_INDEX: usize = bit::CS.trailing_zeros() as usize;

/// The registers of the mask by position; CS gives its attributes here and its base apart.
type Values = [u64; bit::COUNT + 1];

fn values(state: &VcpuState) -> Values {
    let cs = &state.seg[seg::CS];
    let mut values = [0; bit::COUNT + 1];
    values[..16].copy_from_slice(&state.gpr);
    values[16..].copy_from_slice(&[
        state.rflags,
        state.cr0,
        state.cr2,
        state.cr3,
        state.cr4,
        state.cr8,
        state.efer,
        state.cpl.into(),
        state.pkru.into(),
        state.xcr0,
        state.interruptibility.into_bits().into(),
        cs.attr.into_bits().into(),
        state.gdtr.base,
        state.idtr.base,
        state.dr7,
        cs.base,
    ]);
    values
}

/// The registers that the handling of an exit reads, beyond [`ALWAYS`].
fn used_registers(exit: &Exit) -> u32 {
    let one = |n: usize| 1 << n;
    if exit.stimulus != StimulusKind::SENSITIVE {
        return bit::RFLAGS | bit::PKRU | bit::CR2;
    }
    let insn = &exit.insn;
    match insn.kind {
        SensitiveKind::CPUID | SensitiveKind::XSETBV | SensitiveKind::WRMSR => {
            one(gpr::RAX) | one(gpr::RCX) | one(gpr::RDX)
        }
        SensitiveKind::RDMSR | SensitiveKind::RDPMC => one(gpr::RCX),
        SensitiveKind::CR_WRITE
        | SensitiveKind::CR_READ
        | SensitiveKind::DR_WRITE
        | SensitiveKind::DR_READ => one(insn.gpr.into()) | bit::CR8 | bit::DR7,
        SensitiveKind::IN | SensitiveKind::OUT => one(gpr::RAX),
        SensitiveKind::INS | SensitiveKind::OUTS => {
            one(gpr::RCX) | one(gpr::RSI) | one(gpr::RDI) | bit::RFLAGS
        }
        SensitiveKind::VMCALL | SensitiveKind::VMMCALL => {
            one(gpr::RAX) | one(gpr::RBX) | one(gpr::RCX) | one(gpr::RDX) | one(gpr::RSI)
        }
        SensitiveKind::HLT | SensitiveKind::INTERRUPT_WINDOW | SensitiveKind::NMI_WINDOW => bit::RFLAGS,
        SensitiveKind::GDTR_IDTR | SensitiveKind::LDTR_TR => bit::GDTR | bit::IDTR,
        SensitiveKind::APIC_READ | SensitiveKind::APIC_WRITE => bit::CR8,
        _ => bit::RFLAGS | bit::XCR0,
    }
}

/// The recorder and what it has been told: what it knows already is not told again.
#[derive(Default)]
pub(crate) struct Tape {
    recorder: Option<Box<dyn Recorder>>,
    /// Per vCPU: the registers as the tape's reader has them.
    known: Vec<Values>,
    /// Memory words as the tape's reader has them, by host physical address.
    words: HashMap<u64, u64>,
    /// Reads of the silicon's walk that is going on, told only if it ends in an exit.
    walk: Vec<(u64, Data)>,
    before: Values,
    handling: bool,
    stop: bool,
    /// Exits, registers and reads are told.
    stimuli: bool,
}

impl Tape {
    pub(crate) fn new(recorder: Option<Box<dyn Recorder>>, vcpus: u32) -> Self {
        let stimuli = recorder.as_ref().is_some_and(|recorder| recorder.wants_stimuli());
        Self { recorder, stimuli, known: vec![[0; bit::COUNT + 1]; vcpus as usize], ..Self::default() }
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

    pub(crate) fn event(&mut self, event: Event) {
        if let Some(recorder) = &mut self.recorder {
            self.stop |= recorder.event(event).is_break();
        }
    }

    pub(crate) fn note(&mut self, vcpu: u32, place: Place, note: Note) {
        self.event(Event::Note { vcpu, place, note });
    }

    /// A reader that starts here knows nothing: tell everything again.
    pub(crate) fn forget(&mut self) {
        self.words.clear();
        // No register holds this value with this neighbour, so each one counts as changed.
        self.known.fill([u64::MAX; bit::COUNT + 1]);
    }

    /// The silicon begins to translate an access.
    pub(crate) fn begin_walk(&mut self) {
        self.walk.clear();
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
        self.registers(vcpu, state, ALWAYS | used_registers(exit));
        let mut walk = std::mem::take(&mut self.walk);
        if exit.stimulus == StimulusKind::ACCESS {
            for (hpa, data) in walk.drain(..) {
                self.tell_read(hpa, data);
            }
        }
        walk.clear();
        self.walk = walk;
        self.before = values(state);
        self.handling = true;
    }

    pub(crate) fn end_exit(&mut self, vcpu: u32, state: &VcpuState, resume: &Resume) {
        if self.recorder.is_none() {
            return;
        }
        if self.stimuli {
            self.handling = false;
            self.learn(vcpu, state);
        }
        self.event(Event::Resume { vcpu, resume: *resume });
    }

    /// What the handler changed is known to a reader that has handled the exit too.
    fn learn(&mut self, vcpu: u32, state: &VcpuState) {
        let after = values(state);
        for (known, (before, after)) in
            self.known[vcpu as usize].iter_mut().zip(self.before.iter().zip(&after))
        {
            if before != after {
                *known = *after;
            }
        }
        self.before = after;
    }

    /// Tells those registers of the mask that the tape's reader does not have.
    pub(crate) fn registers(&mut self, vcpu: u32, state: &VcpuState, wanted: u32) {
        if !self.stimuli {
            return;
        }
        let now = values(state);
        let known = &mut self.known[vcpu as usize];
        // Every handler that skips an instruction looks at TF, and every entry at IF; they change rarely.
        let decisive = Rflags::new().with_tf(true).with_intr(true).into_bits();
        let changed = (known[RFLAGS_INDEX] ^ now[RFLAGS_INDEX]) & decisive != 0;
        let wanted = if changed { wanted | bit::RFLAGS } else { wanted };
        let mut told = Registers { vcpu, mask: 0, values: Vec::new() };
        for n in (0..bit::COUNT).filter(|n| wanted >> n & 1 != 0) {
            let with_base = n == CS_INDEX;
            if known[n] == now[n] && (!with_base || known[bit::COUNT] == now[bit::COUNT]) {
                continue;
            }
            told.mask |= 1 << n;
            told.values.push(now[n]);
            known[n] = now[n];
            if with_base {
                told.values.push(now[bit::COUNT]);
                known[bit::COUNT] = now[bit::COUNT];
            }
        }
        if told.mask != 0 {
            self.event(Event::Registers(told));
        }
    }

    /// Tells a register of the FPU that an emulation may use.
    pub(crate) fn fpu(&mut self, vcpu: u32, state: &VcpuState, number: usize) {
        let [low, high] = fpu::get(&state.fpu, number);
        let values = vec![number as u64, low, high];
        self.event(Event::Registers(Registers { vcpu, mask: bit::FPU, values }));
    }

    /// A backend read memory.
    pub(crate) fn read(&mut self, hpa: u64, bytes: &[u8]) {
        if !self.stimuli {
            return;
        }
        // Whole words are told one by one: a word that is known already, or that the handler has just written itself, is
        // not told again as part of a longer read.
        if hpa.is_multiple_of(WORD) && (bytes.len() as u64).is_multiple_of(WORD) {
            for (hpa, word) in (hpa..).step_by(WORD as usize).zip(bytes.chunks_exact(WORD as usize)) {
                self.read_data(hpa, Data::U64(u64::from_le_bytes(word.try_into().unwrap_or_default())));
            }
            return;
        }
        let data = match bytes.len() {
            4 => Data::U32(u32::from_le_bytes(bytes.try_into().unwrap_or_default())),
            _ => Data::Bytes(bytes.to_vec()),
        };
        self.read_data(hpa, data);
    }

    fn read_data(&mut self, hpa: u64, data: Data) {
        if self.handling { self.tell_read(hpa, data) } else { self.walk.push((hpa, data)) }
    }

    fn tell_read(&mut self, hpa: u64, data: Data) {
        if let Data::U64(value) = data
            && self.words.insert(hpa, value) == Some(value)
        {
            return;
        }
        self.event(Event::Read { hpa, data });
    }

    /// A backend wrote memory: a reader of the tape that runs the same handler knows the value.
    pub(crate) fn wrote(&mut self, hpa: u64, bytes: &[u8]) {
        if self.stimuli && self.handling {
            match bytes.try_into() {
                Ok(word) if hpa.is_multiple_of(WORD) => _ = self.words.insert(hpa, u64::from_le_bytes(word)),
                _ => {
                    for word in hpa / WORD..(hpa + bytes.len() as u64).div_ceil(WORD) {
                        self.words.remove(&(word * WORD));
                    }
                }
            }
        }
    }
}
