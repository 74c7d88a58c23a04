//! What happens in a run, event by event.
//!
//! An exit is told by a group of events of its vCPU: `Exit`, then the stimulus (`Registers`, `Read`) and the `Note`s in
//! the order in which they happened, then `Resume`. Notes outside such a group belong to the entry that follows
//! (injected events, for one); `Note::Entry` ends them where the guest goes on. Nothing on the tape depends on
//! wall-clock time, addresses of this process, or threads.

pub use crate::ioctl::Control;
use crate::registers::{Register, numbered::CHAIN};
use schemars::JsonSchema;
use serde::Serialize;
use std::fmt;
use vmtape_arch::{
    event::Event as Injected, exit::Exit, exit::Resume, level::Place, memory::MemoryStatus, note::Note,
    sensitive::SensitiveKind, vcpu::Interruptibility, vcpu::VcpuState,
};

/// One event of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Event {
    /// The guest left guest mode.
    Exit(Box<ExitEvent>),
    /// Registers that the handling of the exit uses.
    Registers(Registers),
    /// Guest memory that the handling of the exit read.
    Read { hpa: u64, data: Data },
    /// What the backend did, and for which level.
    Note { vcpu: u32, place: Place, note: Note },
    /// The end of the exit's handling.
    Resume { vcpu: u32, resume: Resume, changes: RegisterChanges },
    /// An entry that no exit came before, where it did more than go on. See [`EntryEvent`].
    Entry(Box<EntryEvent>),
    /// A nondeterministic input: random numbers, bytes typed on the serial port, ...
    Input { icount: u64, source: InputSource, value: u64 },
    /// A fault point answered.
    Fault(Fault),
    /// A page was needed that was not there.
    FaultIn(FaultIn),
    /// A physical CPU begins or ceases to run VMs, or a vCPU moves to it.
    Pcpu(PcpuEvent),
    /// An ioctl of the VMM while the guest was stopped.
    Control { icount: u64, control: Control },
    /// A hash over registers and memory, so that two runs can be compared without their events.
    StateHash { icount: u64, exits: u64, hash: u64 },
    /// A hash over what the guest can observe of itself at a fixed count of instructions, and over all milestones before
    /// it: the same under every backend, for as long as they treat the guest alike.
    Milestone(Milestone),
    /// What devices saw so far, natively or by exits: the number of accesses and a hash over each and the ones before.
    Devices { icount: u64, accesses: u64, hash: u64 },
    /// A line of an imported trace that has no decoded form: `event: text`.
    Line { vcpu: u32, text: String },
    /// When the event of an imported trace that follows happened, and at which rip if it tells one: outside an exit, whose
    /// own time and rip are those of what belongs to it.
    Moment { vcpu: u32, icount: u64, rip: Option<u64> },
    /// The run ended.
    End { icount: u64, exits: u64, end: End },
}

impl Event {
    /// The end of an exit's handling, of which no changes are told.
    pub const fn resume(vcpu: u32, resume: Resume) -> Self {
        Self::Resume { vcpu, resume, changes: RegisterChanges::NONE }
    }
}

/// A fault: the point that was asked, which time it was, and what it answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Fault {
    pub icount: u64,
    /// [`NO_VCPU`] where the point is about none.
    pub vcpu: u32,
    /// A number of the backend's table, or of the host's ([`Metadata::fault_point`](crate::Metadata::fault_point)).
    pub point: u32,
    /// How often the vCPU has asked the point in this run, this time included.
    pub occurrence: u64,
    /// How often since its last exit began: what a reader that replays exits without their guest can count.
    pub since_exit: u64,
    /// Two words of detail, which the point's row in its table describes.
    #[serde(serialize_with = "crate::hex::word")]
    #[schemars(with = "String")]
    pub a: u64,
    #[serde(serialize_with = "crate::hex::word")]
    #[schemars(with = "String")]
    pub b: u64,
    #[serde(serialize_with = "crate::hex::word")]
    #[schemars(with = "String")]
    pub answer: u64,
    /// The rule of a plan that gave it, from one on; zero: none.
    pub rule: u32,
    /// Why it did not happen though it was due.
    #[schemars(with = "u32")]
    pub skipped: Skip,
}

vmtape_arch::open_enum! {
    /// Why a fault that was due did not happen.
    pub struct Skip(u32) {
        /// It happened.
        NONE = 0 => "none",
        /// Its rule has no part in this run.
        INACTIVE = 1 => "inactive",
        /// Another rule answered.
        OVERRULED = 2 => "overruled",
        /// The time of faults is over: the guest shall recover.
        HEALING = 3 => "healing",
    }
}

/// A page of the guest's memory that the host did not have was waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FaultIn {
    pub icount: u64,
    /// The page's guest physical address.
    pub gpa: u64,
    /// What came of it: READY from here on, MISSING or REFUSED.
    pub answer: MemoryStatus,
}

vmtape_arch::open_enum! {
    /// What happened to a physical CPU.
    pub struct PcpuKind(u32) {
        /// `hardware_enable`.
        ENABLE = 0 => "enable",
        /// `hardware_disable`.
        DISABLE = 1 => "disable",
        /// `vcpu_load` of a vCPU that ran elsewhere before, or nowhere.
        LOAD = 2 => "load",
        /// An NMI while the guest ran.
        NMI = 3 => "nmi",
        /// The host crashes.
        CRASH = 4 => "crash",
    }
}

/// An event of a physical CPU. Hosts with one CPU tell of none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PcpuEvent {
    pub icount: u64,
    pub kind: PcpuKind,
    pub cpu: u32,
    /// [`NO_VCPU`] where it is about none.
    pub vcpu: u32,
    /// Zero or a negative errno.
    pub result: i32,
}

/// What became of a vCPU's registers, as digests of 16 bits over those of which a tape's reader can know it; 0: nothing did. All
/// are 0 on tapes that do not tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RegisterChanges {
    /// By the handling of the exit.
    pub handling: u16,
    /// By the entry before it, where that followed another exit at once.
    pub entry: u16,
}

impl RegisterChanges {
    /// Nothing changed, or nothing is told.
    pub const NONE: Self = Self { handling: 0, entry: 0 };

    /// As the tape has it; 0: nothing.
    pub fn to_word(self) -> u64 {
        u64::from(self.handling) | u64::from(self.entry) << 16
    }

    /// `None`: no such word is on a tape.
    pub fn from_word(word: u64) -> Option<Self> {
        let word = u32::try_from(word).ok().filter(|word| *word != 0)?;
        Some(Self { handling: word as u16, entry: (word >> 16) as u16 })
    }
}

impl fmt::Display for RegisterChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handling, entry } = *self;
        match (handling, entry) {
            (0, 0) => f.write_str("none"),
            (_, 0) => write!(f, "{handling:04x}"),
            _ => write!(f, "{handling:04x}, by the entry before {entry:04x}"),
        }
    }
}

/// Where a run was after a round number of instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Milestone {
    pub icount: u64,
    pub exits: u64,
    pub hash: u64,
}

/// The vCPU of an imported line whose task never was a vCPU.
pub const NO_VCPU: u32 = u32::MAX;

/// The exit itself and where it happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ExitEvent {
    pub vcpu: u32,
    /// Instructions retired by all vCPUs: the virtual clock.
    pub icount: u64,
    pub rip: u64,
    pub exit: Exit,
}

/// An entry that no exit came before: what it looked at, and what came of it. One after an exit is told with that.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EntryEvent {
    pub vcpu: u32,
    /// As of an exit.
    pub icount: u64,
    pub rip: u64,
    /// Whether the guest takes interrupts now.
    pub rflags: u64,
    pub interruptibility: u32,
    /// CR8 where it is V_TPR, L2's own; zero elsewhere.
    pub cr8: u64,
    /// Memory that it read, as it was before.
    pub reads: Vec<(u64, Vec<u8>)>,
    pub outcome: EntryOutcome,
}

/// What came of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EntryOutcome {
    pub resume: Resume,
    /// What is delivered at the entry.
    pub inject: Injected,
    /// Bits of `SensitiveKind`: the windows that the backend waits for.
    pub windows: u64,
}

impl fmt::Display for EntryEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.outcome)?;
        let held = Interruptibility::from_bits(self.interruptibility);
        if held.virtual_tpr() {
            write!(f, ", V_TPR {:#x}", self.cr8)?;
        }
        f.write_str(if held.virtual_irq() { ", V_IRQ" } else { "" })
    }
}

impl fmt::Display for EntryOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.resume.kind)?;
        if self.resume.errno != 0 {
            write!(f, " errno {}", self.resume.errno)?;
        }
        if self.inject.valid.is_set() {
            write!(f, ", injects {} {:#x}", self.inject.kind, self.inject.vector)?;
        }
        let windows = SensitiveKind::NAMED.iter().filter(|(kind, _)| self.windows >> kind.0 & 1 != 0);
        windows.into_iter().try_for_each(|(_, name)| write!(f, ", waits for the {name}"))
    }
}

impl EntryOutcome {
    /// What an entry has left in a vCPU's state.
    pub fn new(resume: &Resume, state: &VcpuState) -> Self {
        const WINDOWS: u64 = 1 << SensitiveKind::INTERRUPT_WINDOW.0 | 1 << SensitiveKind::NMI_WINDOW.0;
        Self { resume: *resume, inject: state.inject, windows: state.intercepts.sensitive & WINDOWS }
    }
}

/// Values of registers, by mask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Registers {
    pub vcpu: u32,
    /// Bits of [`Register`](crate::registers::Register).
    pub mask: u32,
    /// As many values per set bit as the register takes, low bit first.
    pub values: Vec<u64>,
}

impl Registers {
    /// What all changes of the vCPU's registers make together, where this tells that and nothing else.
    pub fn chain(&self) -> Option<u64> {
        match self.values[..] {
            [CHAIN, chain, _] if self.mask == Register::FPU.mask() => Some(chain),
            _ => None,
        }
    }
}

/// Up to 16 bytes inline: reads by handlers are mostly one paging entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Data {
    U64(u64),
    U32(u32),
    Bytes(Vec<u8>),
}

impl Data {
    /// Bytes that were read.
    #[expect(clippy::len_without_is_empty, reason = "a length in memory, not of a collection")]
    pub fn len(&self) -> u64 {
        match self {
            Self::U64(_) => 8,
            Self::U32(_) => 4,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// The bytes in the order of memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::U64(value) => value.to_le_bytes().to_vec(),
            Self::U32(value) => value.to_le_bytes().to_vec(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

vmtape_arch::open_enum! {
    /// Where an input came from.
    pub struct InputSource(u32) {
        RANDOM = 0 => "random",
        SERIAL = 1 => "serial",
        /// Of tapes before schema 3; `Event::Fault` now.
        FAULT = 2 => "fault",
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum End {
    /// The guest wrote to the debug-exit port: the status as QEMU's process would give it, `(code << 1) | 1`.
    DebugExit { status: u32 },
    /// Triple fault or reset.
    Shutdown { reason: String },
    /// All vCPUs are halted and nothing can wake them; why. Older recordings do not say.
    Idle { reason: String },
    /// KVM_RUN returned something that the VMM cannot continue from.
    Fatal { vcpu: u32, resume: Resume, reason: String },
    /// The exit budget or the instruction limit was reached.
    Limit { what: String },
    /// The watchdog saw no progress: equal exits without end.
    NoProgress { vcpu: u32, repeats: u64, reason: String },
    /// The recording stops here (imported tapes, killed recordings).
    Cut,
    /// Whoever recorded wanted the run to end.
    Interrupted,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DebugExit { status } => write!(f, "the guest left with status {status}"),
            Self::Shutdown { reason } => write!(f, "shutdown: {reason}"),
            Self::Idle { reason } if reason.is_empty() => f.write_str("all vCPUs are halted for ever"),
            Self::Idle { reason } => write!(f, "halted for ever: {reason}"),
            Self::Fatal { vcpu, reason, .. } => write!(f, "vCPU {vcpu} cannot go on: {reason}"),
            Self::Limit { what } => write!(f, "limit reached: {what}"),
            Self::NoProgress { reason, .. } => write!(f, "no progress: {reason}"),
            Self::Cut => f.write_str("the recording stops here"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}
