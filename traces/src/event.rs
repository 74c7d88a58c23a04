//! What happens in a run, event by event.
//!
//! An exit is told by a group of events of its vCPU: `Exit`, then the stimulus (`Registers`, `Read`) and the `Note`s in
//! the order in which they happened, then `Resume`. Notes outside such a group belong to the entry that follows
//! (injected events, for one); `Note::Entry` ends them where the guest goes on. Nothing on the tape depends on
//! wall-clock time, addresses of this process, or threads.

pub use crate::ioctl::Control;
use serde::Serialize;
use vmtape_arch::{exit::Exit, exit::Resume, level::Place, note::Note};

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
    Resume { vcpu: u32, resume: Resume },
    /// A nondeterministic input: random numbers, bytes typed on the serial port, ...
    Input { icount: u64, source: InputSource, value: u64 },
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
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ExitEvent {
    pub vcpu: u32,
    /// Instructions retired by all vCPUs: the virtual clock.
    pub icount: u64,
    pub rip: u64,
    pub exit: Exit,
}

/// Values of registers, by mask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Registers {
    pub vcpu: u32,
    /// Bits 0-15 general registers, 16 RFLAGS, 17 CR0, 18 CR2, 19 CR3, 20 CR4, 21 CR8, 22 EFER, 23 CPL, 24 PKRU,
    /// 25 XCR0, 26 interruptibility, 27 CS attributes and base, 28 GDTR base, 29 IDTR base, 30 DR7, 31 an XMM
    /// or (numbered from 16 on) MMX register.
    pub mask: u32,
    /// One value per set bit, low bit first (bit 27 takes two: attributes, base; bit 31 three: number, low
    /// and high half).
    pub values: Vec<u64>,
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
    /// All vCPUs are halted and nothing can wake them.
    Idle,
    /// KVM_RUN returned something that the VMM cannot continue from.
    Fatal { vcpu: u32, resume: Resume, reason: String },
    /// The exit budget or the instruction limit was reached.
    Limit { what: String },
    /// The watchdog saw no progress: equal exits without end.
    NoProgress { vcpu: u32, repeats: u64, reason: String },
    /// The recording stops here (imported tapes, killed recordings).
    Cut,
}
