//! The stream in which a guest moves: a head, then sections, each with its number, length and checksum. Byte by byte it stands in
//! host/migrate/README.md.

mod bytes;
mod reader;
mod record;
mod writer;

pub use reader::{Reader, Section};
pub use record::{Offer, Pages, Record, Run};
pub use writer::Writer;

use thiserror::Error;

/// How a stream begins.
pub const MAGIC: [u8; 8] = *b"vmtape\x1aM";
/// The version that this program writes and reads.
pub const VERSION: u32 = 1;
/// Magic, version, and a word that is zero.
pub const HEAD: usize = 16;
/// Kind, flags, number and length of a section.
pub const SECTION_HEAD: usize = 16;
/// The checksum behind a section's payload.
pub const CHECKSUM: usize = 4;
/// The longest payload that is read: a length comes from the peer, and memory is reserved by it.
pub const LONGEST: usize = 16 << 20;
/// A section's only flag: who does not know it must refuse the guest.
pub const MANDATORY: u32 = 1;

vmtape_arch::open_enum! {
    /// What a section holds.
    pub struct SectionKind(u32) {
        /// Which guest it is, and the machine that it needs.
        OFFER = 1 => "offer",
        /// A vCPU's CPUID.
        CPUID = 2 => "cpuid",
        /// Pages of memory.
        PAGES = 3 => "pages",
        /// A part of a vCPU's state, in KVM's words.
        STATE = 4 => "state",
        /// The VMM's models of devices.
        DEVICES = 5 => "devices",
        /// The VMM's books.
        BOOKS = 6 => "books",
        /// The slots that the guest has.
        SLOTS = 8 => "slots",
        /// Everything was sent.
        END = 7 => "end",
        /// The destination takes the guest that was offered.
        ACCEPT = 0x10 => "accept",
        /// The destination has loaded the guest, and runs it as soon as it is told to.
        READY = 0x11 => "ready",
        /// The source runs the guest no more, whatever comes.
        GO = 0x12 => "go",
        /// The destination runs the guest.
        DONE = 0x13 => "done",
        /// The destination does not take the guest, and why.
        REFUSED = 0x14 => "refused",
        /// Pages that were sent and are out of date: they come when they are asked for.
        DISCARD = 0x20 => "discard",
        /// A page that the destination waits for.
        REQUEST = 0x21 => "request",
        /// What the destination has received, after a broken link.
        RECEIVED = 0x22 => "received",
        /// Where the stream comes from, in words.
        NOTE = 0x100 => "note",
    }
}

/// Why a stream cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StreamError {
    #[error("this is no stream of a migration: it begins with {0:02x?}")]
    Foreign(Vec<u8>),
    #[error("the stream has version {0}, this program reads version {VERSION}")]
    Version(u32),
    #[error("the stream has flags {0:#x} that this program does not know")]
    Flags(u32),
    #[error("the stream ends within {0}")]
    Torn(&'static str),
    #[error("section {number} ({kind}): its checksum is {found:08x}, not {expected:08x}")]
    Checksum { kind: SectionKind, number: u32, expected: u32, found: u32 },
    #[error("section {found} ({kind}) comes where section {expected} should")]
    Order { kind: SectionKind, expected: u32, found: u32 },
    #[error("section {number} ({kind}) says that it has {length} bytes: more than {LONGEST} are none")]
    Length { kind: SectionKind, number: u32, length: u32 },
    #[error("section {number} is of a kind that this program does not know ({kind}), and mandatory")]
    Unknown { kind: SectionKind, number: u32 },
    #[error("section {kind}: {what}")]
    Payload { kind: SectionKind, what: &'static str },
}

#[cfg(test)]
mod tests;
