//! The first divergence of a tape as a test of kvm-unit-tests, in C: what the tape's guest did at it, and what came of it there.
//!
//! A test stands for one exit: a memory access with the guest's entries on its way, CPUID, or an MSR.

use crate::{explain::address_of, report::Divergence};
use thiserror::Error;
use vmtape_arch::{
    access::AccessKind,
    cpuid::{CpuidEntry, maxphyaddr},
    exception::{PageFaultError, Vector},
    exit::{Exit, StimulusKind},
    note::Note,
    paging::Pte,
};
use vmtape_traces::{ExitGroup, Tape};

const MEMORY: &str = include_str!("memory.c");
const CPUID: &str = include_str!("cpuid.c");
const MSR: &str = include_str!("msr.c");

/// Why there is no test.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the first difference is at no exit of the tape, and a test is made of what an exit tells")]
    NoExit,
    #[error(
        "exit {exit}: a test can be made of a memory access whose entries the tape tells, of CPUID, and of an MSR: not of this"
    )]
    NotExpressible { exit: u64 },
    #[error(transparent)]
    Tape(#[from] vmtape_traces::Error),
}

/// A vector that no exception has.
const NO_VECTOR: u32 = 0x100;

/// Writes the test. It passes where the guest sees what the tape's guest saw.
pub fn write(tape: &Tape, table: &[CpuidEntry], divergence: &Divergence) -> Result<String, Error> {
    let group = exit_of(tape, divergence)?;
    let number = group.number;
    let told = group.notes.iter().find_map(|note| match *note {
        Note::Cpuid { function, index, eax, ebx, ecx, edx, .. } => Some(fill(
            CPUID,
            &[
                ("FUNCTION", hex(function)),
                ("INDEX", hex(index)),
                ("EAX", hex(eax)),
                ("EBX", hex(ebx)),
                ("ECX", hex(ecx)),
                ("EDX", hex(edx)),
            ],
        )),
        Note::Msr { write, index, data, exception, .. } => Some(fill(
            MSR,
            &[
                ("INDEX", hex(index)),
                ("VALUE", hex(data)),
                ("WRITE", write.to_string()),
                ("VECTOR", if exception { "GP_VECTOR".to_owned() } else { "0".to_owned() }),
            ],
        )),
        _ => None,
    });
    let text = match told {
        Some(text) => text,
        None => memory(&group, table).ok_or(Error::NotExpressible { exit: number })?,
    };
    let place = format!("At exit {number} of the tape, rip {:#x}; {}", divergence.rip, divergence.signature);
    Ok(fill(&text, &[("WHAT", comment(&divergence.summary)), ("WHERE", comment(&place))]))
}

/// The exit of the instruction at which the guest sees the difference: the one that the report names, or the one before it where
/// what the exit did is seen only when the guest goes on.
fn exit_of(tape: &Tape, divergence: &Divergence) -> Result<ExitGroup, Error> {
    let number = divergence.expected_exit.ok_or(Error::NoExit)?;
    for group in tape.exits_from(number.saturating_sub(1))?.take(2) {
        let group = group?;
        if group.exit.rip == divergence.rip && group.exit.vcpu == divergence.vcpu {
            return Ok(group);
        }
    }
    Err(Error::NotExpressible { exit: number })
}

/// What the guest did.
struct Access {
    gva: u64,
    kind: AccessKind,
    user: bool,
}

/// The access that an exit is about: that of the stimulus, or what silicon's page fault says of it.
fn access(exit: &Exit) -> Option<Access> {
    let gva = address_of(exit)?;
    if exit.stimulus == StimulusKind::ACCESS {
        return Some(Access { gva, kind: exit.access.kind, user: exit.access.user.is_set() });
    }
    let code = PageFaultError::from_bits(exit.exception.error_code);
    let kind = match (code.i(), code.w()) {
        (true, _) => AccessKind::FETCH,
        (_, true) => AccessKind::WRITE,
        _ => AccessKind::READ,
    };
    Some(Access { gva, kind, user: code.u() })
}

/// An access to memory, and what the guest took.
fn memory(group: &ExitGroup, table: &[CpuidEntry]) -> Option<String> {
    let Access { gva, kind, user } = access(&group.exit.exit)?;
    let walk = walk(group, gva)?;
    let kind = match kind {
        AccessKind::WRITE => "WRITE",
        AccessKind::FETCH => "FETCH",
        _ => "READ",
    };
    let taken = group.notes.iter().find_map(|note| match *note {
        Note::InjException { vector, error_code, .. } => Some((vector.0.into(), error_code)),
        _ => None,
    });
    let (vector, error) = taken.unwrap_or((NO_VECTOR, 0));
    if taken.is_some() && vector != u32::from(Vector::PF.0) {
        return None;
    }
    let device = group.notes.iter().any(|note| matches!(note, Note::Mmio { .. }));
    // An instruction that is to be executed again may change them yet, and KVM's own walk does not tell what it makes of them.
    let by_kvm = |note: &Note| matches!(note, Note::SetAccessed { .. } | Note::SetDirty { .. });
    let told = (taken.is_some() || device) && !group.notes.iter().any(by_kvm);
    let fetches = PageFaultError::from_bits(error).i();
    let never = walk.iter().any(|step| Pte::from_bits(step.entry).nx());
    let rows: String = walk
        .iter()
        .map(|Step { level, entry, after }| format!("\t{{ {level}, {entry:#x}ul, {after:#x}ul }},\n"))
        .collect();
    Some(fill(
        MEMORY,
        &[
            ("GVA", format!("{:#x}", elsewhere(gva))),
            ("WIDTH", maxphyaddr(table).to_string()),
            ("ACCESS", kind.to_owned()),
            ("USER", user.to_string()),
            ("DEVICE", device.to_string()),
            ("NX", (fetches || never).to_string()),
            ("WALK", rows),
            ("BITS", told.to_string()),
            ("VECTOR", hex(vector)),
            ("ERROR", hex(error)),
        ],
    ))
}

/// An entry on the way to an address, before the access and after it.
struct Step {
    level: u8,
    entry: u64,
    after: u64,
}

/// The guest's entries from the top down: as silicon walked them, or KVM.
fn walk(group: &ExitGroup, address: u64) -> Option<Vec<Step>> {
    let notes = || group.before.iter().chain(&group.notes);
    let mut by_silicon: Vec<Step> = Vec::new();
    for note in notes() {
        if let Note::SiliconStep { before, after, level, .. } = *note
            && by_silicon.last().is_none_or(|last| level < last.level)
        {
            by_silicon.push(Step { level, entry: before, after });
        }
    }
    let mut about = false;
    let mut by_kvm: Vec<Step> = Vec::new();
    for note in notes() {
        match *note {
            Note::PagetableWalk { address: of, .. } => about = by_kvm.is_empty() && of >> 12 == address >> 12,
            Note::PagingElement { pte, level } if about => {
                by_kvm.push(Step { level, entry: pte, after: pte });
            }
            _ => {}
        }
    }
    let walk = if by_kvm.len() > by_silicon.len() { by_kvm } else { by_silicon };
    // Down to a page, or to the entry that ends it, from the top.
    let whole = walk.first().is_some_and(|step| step.level >= 4)
        && walk
            .windows(2)
            .all(|pair| pair[0].level == pair[1].level + 1 && Pte::from_bits(pair[0].entry).p());
    whole.then_some(walk)
}

/// The same address where the test's own tables have nothing.
fn elsewhere(gva: u64) -> u64 {
    const ENTRY: u64 = 0x1ff << 39;
    /// Far from the test's own code and data, and from its vmalloc.
    const FREE: u64 = 0xa0 << 39;
    match gva & ENTRY {
        0 | ENTRY => gva & ((1 << 39) - 1) | FREE,
        _ => gva,
    }
}

fn hex(value: impl Into<u64>) -> String {
    format!("{:#x}", value.into())
}

fn fill(text: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value))
}

/// A text within a comment in C.
fn comment(text: &str) -> String {
    text.replace("*/", "* /").replace(['\n', '\r'], " ").replace('@', "(at)")
}
