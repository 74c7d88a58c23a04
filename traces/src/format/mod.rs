//! The file format. traces/README.md describes it byte by byte; the words here and there are the same.

pub mod header;
pub mod payload;

/// The newest format version that this build reads, and the one that it writes.
pub const FORMAT_VERSION: u16 = 1;

/// The layout of event words and of the archives, as this build writes it. Each schema holds all of those before it; a
/// tape with a number that is not known is refused, never misread.
pub const SCHEMA: u32 = 3;
/// The first schema.
pub const FIRST_SCHEMA: u32 = 1;

/// Chunks and payloads start at multiples of this.
pub const ALIGN: u64 = 16;

/// Sizes beyond which a chunk is refused before anything is allocated.
pub mod limit {
    /// Uncompressed bytes of an event chunk.
    pub const EVENTS: u64 = 64 << 20;
    /// Events in one chunk.
    pub const EVENT_COUNT: u32 = 1 << 20;
    /// Uncompressed bytes of the metadata and of the index.
    pub const METADATA: u64 = 64 << 20;
    /// Uncompressed bytes of an image or a checkpoint: what 32-bit relative pointers reach.
    pub const BLOB: u64 = 2 << 30;
    /// Bytes that belong to one event beside its words: text, memory, CPUID tables.
    pub const EVENT_BLOB: u64 = 1 << 20;
}

/// When a chunk of events is closed. Only events count, so equal event streams give equal files.
pub mod cut {
    /// A chunk is closed before an exit once it holds so many.
    pub const EXITS: u32 = 16384;
    /// A chunk is closed before an exit once it covers so many instructions: a recording that is killed after a long
    /// stretch with few exits has kept most of them.
    pub const ICOUNT: u64 = 1 << 28;
    /// A chunk is closed at any event once it holds so many, ...
    pub const EVENTS: u32 = 1 << 18;
    /// ... or so many encoded bytes.
    pub const BYTES: usize = 8 << 20;
}

/// Rounds up to the alignment.
pub const fn align(value: u64) -> u64 {
    value.next_multiple_of(ALIGN)
}
