//! Events as the kernel's ftrace text, so that what one greps for in a trace is found on a tape as well.
//!
//! Events that no tracepoint has are lines named `vmtape_*`: words for people, ` | `, and the event's words.
//! See: KVM arch/x86/kvm/trace.h, arch/x86/kvm/mmu/mmutrace.h (6.12)

mod note;
mod own;
mod print;
pub(crate) mod tables;

pub use note::note_text;
pub use own::{changes_text, fault_in_text, fault_text, own_text, pcpu_text, stimulus_text};
pub(crate) use own::{merge_stimulus, parse as parse_own};
pub use print::Printer;

use vmtape_arch::level::{Dimension, Level, Place};

/// What follows a note's text where it is not L1's own: the level, and the dimension of a walk's step.
pub fn place_text(place: Place) -> String {
    match place {
        Place::L1 => String::new(),
        Place { level, dimension: Dimension::GUEST } => format!(" @{level}"),
        Place { level, dimension } => format!(" @{level} {dimension}"),
    }
}

/// Takes what [`place_text`] wrote off a line's end.
pub(crate) fn split_place(text: &str) -> (&str, Place) {
    let parse = || {
        let (text, place) = text.trim_end().rsplit_once(" @")?;
        let (level, dimension) = place.split_once(' ').unwrap_or((place, "guest"));
        let number = |name: &str| u8::from_str_radix(name.strip_prefix("0x")?, 16).ok();
        let level = Level::from_name(level).or_else(|| number(level).map(Level))?;
        let dimension = Dimension::from_name(dimension).or_else(|| number(dimension).map(Dimension))?;
        Some((text, Place { level, dimension }))
    };
    parse().unwrap_or((text, Place::L1))
}

/// The first line of printed tapes. It tells the importer that the order of lines is the order of events.
pub const TRACER: &str = "# tracer: vmtape";

/// The first line of the text of imported tapes, whose lines are those of the trace.
pub const TRACER_OF_IMPORT: &str = "# tracer: vmtape import";

/// The mode in a `kvm_emulate_insn` of a trace that does not tell it.
pub const MODE_UNTOLD: u8 = 0xff;

/// The event under which a tape keeps that a trace has a gap.
const LOST: &str = "lost_events";

/// The line of an imported tape where events of a CPU are missing.
pub(crate) fn lost_text(cpu: Option<u32>, events: u64) -> String {
    let cpu = cpu.map_or("?".to_owned(), |cpu| cpu.to_string());
    format!("{LOST}: cpu {cpu} count {events}")
}

/// The event in which a tape keeps what `kvm_exit` has no room for.
pub(crate) const STIMULUS: &str = "vmtape_stimulus";
/// The prefix of all events that are not the kernel's.
pub(crate) const OWN: &str = "vmtape_";
