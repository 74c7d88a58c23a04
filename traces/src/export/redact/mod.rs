//! A tape that may be shown to others: guest frame numbers are permuted by a key, contents of memory and strings are gone.
//!
//! What is left is what a recording of the real KVM has: exits, what was done about them, and no machine to run. Two tapes that are
//! redacted with one key compare as they did before, and each is judged for another host as before. Linear addresses and RIP
//! stay: they say where in its program a guest was, and a comparison needs them. Where values are compared, a number that the
//! key makes of a value stands for it.

mod frames;
mod notes;

use crate::{
    Event, Metadata, Options, Tape,
    error::Result,
    event::{End, ExitEvent},
    import::{CLOCK, NOT_TOLD, ORIGIN},
    writer::{Summary, Writer},
};
use frames::Frames;
use std::{collections::BTreeMap, path::Path};
use vmtape_arch::{
    cpuid::CpuidEntry,
    exit::{Exit, Isa, SvmExitCode, VmxReason},
};

/// Says how the metadata's origin of a redacted tape begins.
pub const REDACTED: &str = "redacted";

/// The key of somebody who gives none: nobody has it who does not have the tape.
pub fn own_key(tape: &Tape) -> Result<String> {
    let mut digest = xxhash_rust::xxh3::Xxh3::new();
    for event in tape.events() {
        digest.update(format!("{:?}", event?).as_bytes());
    }
    Ok(format!("{:032x}", digest.digest128()))
}

/// Writes the redacted tape.
pub fn redact(tape: &Tape, key: &str, path: &Path) -> Result<Summary> {
    let mut redactor = Redactor { frames: Frames::new(key.as_bytes()), faults: BTreeMap::new() };
    let mut writer = Writer::create_here(path, &redactor.metadata(tape.metadata()), Options::default())?;
    for event in tape.events() {
        match event {
            Ok(event) => {
                if let Some(event) = redactor.event(event) {
                    writer.push(event);
                }
            }
            Err(error) => {
                writer.discard();
                return Err(error);
            }
        }
    }
    writer.finish()
}

struct Redactor {
    frames: Frames,
    /// By vCPU: whether the last exit is a fault for a guest physical address, which `kvm_page_fault` then has.
    faults: BTreeMap<u32, bool>,
}

impl Redactor {
    fn metadata(&self, of: &Metadata) -> Metadata {
        let known = |(name, _): &&(String, String)| name == CLOCK || name == NOT_TOLD;
        // A run's own clock counts instructions.
        let clock = (of.origin != ORIGIN).then(|| (CLOCK.to_owned(), "ticks".to_owned()));
        Metadata {
            origin: ORIGIN.to_owned(),
            guest: REDACTED.to_owned(),
            cpuid: of.cpuid.iter().map(without_strings).collect(),
            notes: of.notes.iter().filter(known).cloned().chain(clock).collect(),
            ..Metadata::default()
        }
    }

    /// An event as others may see it; `None`: not at all.
    fn event(&mut self, event: Event) -> Option<Event> {
        Some(match event {
            Event::Exit(exit) => Event::Exit(Box::new(self.exit(*exit))),
            Event::Note { vcpu, place, note } => {
                let physical = self.faults.get(&vcpu).copied().unwrap_or(false);
                Event::Note { vcpu, place, note: notes::redact(&self.frames, note, physical)? }
            }
            Event::Line { vcpu, text } => Event::Line { vcpu, text: line(&text)? },
            Event::Moment { .. } => event,
            // Its digest is of values.
            Event::Resume { vcpu, resume, .. } => Event::resume(vcpu, resume),
            Event::End { icount, exits, .. } => Event::End { icount, exits, end: End::Cut },
            _ => return None,
        })
    }

    /// What a trace has of an exit.
    fn exit(&mut self, of: ExitEvent) -> ExitEvent {
        let exit = &of.exit;
        let physical = is_physical(exit);
        self.faults.insert(of.vcpu, physical);
        let address = |gpa| self.frames.address(gpa);
        let exit = Exit {
            isa: exit.isa,
            reason: exit.reason,
            level: exit.level,
            info1: exit.info1,
            info2: if physical && exit.isa == Isa::SVM { address(exit.info2) } else { exit.info2 },
            intr_info: exit.intr_info,
            error_code: exit.error_code,
            gpa: if physical && exit.gpa != 0 { address(exit.gpa) } else { 0 },
            gva: exit.gva,
            ..Exit::default()
        };
        ExitEvent { exit, ..of }
    }
}

/// Whether an exit is about a guest physical address.
fn is_physical(exit: &Exit) -> bool {
    match exit.isa {
        Isa::SVM => SvmExitCode(exit.reason) == SvmExitCode::NPF,
        Isa::VMX => {
            matches!(VmxReason(exit.reason & 0xffff), VmxReason::EPT_VIOLATION | VmxReason::EPT_MISCONFIG)
        }
        _ => false,
    }
}

/// The name of a line's event. Of memory slots, where they lie, which is no content.
fn line(text: &str) -> Option<String> {
    const SLOTS: [&str; 3] = ["kvm_set_user_memory", "kvm_set_memslot", "kvm_set_memory_region"];
    if SLOTS.iter().any(|event| text.contains(event)) {
        return Some(text.to_owned());
    }
    Some(format!("{}: ", text.split(':').next()?))
}

/// Leaves of the processor's brand.
fn is_string(function: u32) -> bool {
    matches!(function, 0x8000_0002..=0x8000_0004)
}

fn without_strings(entry: &CpuidEntry) -> CpuidEntry {
    match is_string(entry.function) {
        true => CpuidEntry { eax: 0, ebx: 0, ecx: 0, edx: 0, ..*entry },
        false => *entry,
    }
}
