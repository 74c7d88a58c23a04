//! What can be wrong with a tape: every error names the file, the place in it and the cause.

use crate::format::header::ChunkKind;
use std::{fmt, io};

/// An error on a tape.
#[derive(Debug, thiserror::Error)]
#[error("{tape}: {place}: {cause}")]
pub struct Error {
    /// The file, or a word for a tape that is no file.
    pub tape: String,
    pub place: Place,
    pub cause: Cause,
}

/// Where on the tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    File,
    Header,
    Chunk { offset: u64, kind: ChunkKind },
    Trailer,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("file"),
            Self::Header => f.write_str("header"),
            Self::Chunk { offset, kind } => write!(f, "{kind} chunk at byte {offset}"),
            Self::Trailer => f.write_str("trailer"),
        }
    }
}

/// Why.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("not a tape (the first bytes are not the magic number)")]
    NotATape,
    #[error("format version {found} is newer than {known}, the newest that this build reads")]
    Version { found: u16, known: u16 },
    #[error("written with another layout of events ({found}; this build reads up to {known})")]
    Schema { found: u32, known: u32 },
    #[error("cut short: {needed} bytes are needed, {have} are there")]
    Short { needed: u64, have: u64 },
    #[error("checksum is {found:#010x}, but the bytes give {computed:#010x}")]
    Checksum { found: u32, computed: u32 },
    #[error("{what} is {found}, the limit is {limit}")]
    Limit { what: &'static str, found: u64, limit: u64 },
    #[error("{what} is {found}, expected {expected}")]
    Mismatch { what: &'static str, found: u64, expected: u64 },
    #[error("unknown {what} {value}")]
    Unknown { what: &'static str, value: u64 },
    #[error("does not decompress: {0}")]
    Decompress(io::Error),
    #[error("is not a valid archive: {0}")]
    Archive(rkyv::rancor::Error),
    #[error("event {number} does not decode: {why}")]
    Event { number: u64, why: &'static str },
    #[error("the recording was cut: the tape has no end")]
    NoEnd,
    #[error("the tape has no {0}")]
    Missing(&'static str),
    #[error(
        "is there already and no regular file; a finished tape is renamed to its name, which would replace it"
    )]
    NotAFile,
    #[error(
        "is there already and no regular file, so nothing is recorded there: remove it, or name another tape"
    )]
    InTheWay,
    #[error("another recording writes this tape")]
    Busy,
    #[error("somebody has put another file in its place, so the recording cannot get its name")]
    Replaced,
    #[error("is no regular file, and a tape is read here and there: copy it to a file first")]
    Pipe,
    #[error("the writer thread ended early")]
    WriterGone,
}

impl Cause {
    /// The cause with its tape and place.
    pub(crate) fn at(self, tape: &str, place: Place) -> Error {
        Error { tape: tape.to_owned(), place, cause: self }
    }
}

/// What fails on a tape.
pub type Result<T, E = Error> = std::result::Result<T, E>;
