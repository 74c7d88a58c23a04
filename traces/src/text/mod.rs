//! Events as the kernel's ftrace text, so that what one greps for in a trace is found on a tape as well.
//!
//! Events that no tracepoint has are lines named `vmtape_*`: words for people, ` | `, and the event's words.
//! See: KVM arch/x86/kvm/trace.h, arch/x86/kvm/mmu/mmutrace.h (6.12)

mod note;
mod own;
mod print;
pub(crate) mod tables;

pub use note::note_text;
pub(crate) use own::{merge_stimulus, parse as parse_own};
pub use print::Printer;

/// The first line of printed tapes. It tells the importer that the order of lines is the order of events.
pub const TRACER: &str = "# tracer: vmtape";

/// The event in which a tape keeps what `kvm_exit` has no room for.
pub(crate) const STIMULUS: &str = "vmtape_stimulus";
/// The prefix of all events that are not the kernel's.
pub(crate) const OWN: &str = "vmtape_";
