//! The fixed structures that no library version can change: file header, chunk header, trailer. All little-endian.

use crate::error::Cause;
use vmtape_arch::open_enum;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// The first bytes of every tape. The high bit and the newline catch transfers that damage binary files.
pub const FILE_MAGIC: [u8; 8] = *b"\x89VMTAPE\n";
/// The first bytes of every chunk.
pub const CHUNK_MAGIC: [u8; 4] = *b"CHNK";
/// The last structure of a whole tape starts with this.
pub const TRAILER_MAGIC: [u8; 8] = *b"TAPE-END";

open_enum! {
    /// What a chunk holds.
    pub struct ChunkKind(u32) {
        METADATA = 1 => "metadata",
        IMAGE = 2 => "image",
        EVENTS = 3 => "events",
        CHECKPOINT = 4 => "checkpoint",
        INDEX = 5 => "index",
    }
}

open_enum! {
    /// How a payload is compressed.
    pub struct Codec(u32) {
        NONE = 0 => "none",
        ZSTD = 1 => "zstd",
    }
}

/// The first 64 bytes of a tape.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct FileHeader {
    pub magic: [u8; 8],
    pub version: U16,
    /// Bytes of this header: the first chunk starts there.
    pub size: U16,
    /// None defined yet; a reader refuses those that it does not know.
    pub flags: U32,
    pub schema: U32,
    /// The rkyv release whose archives the chunks hold.
    pub rkyv_major: U16,
    pub rkyv_minor: U16,
    pub reserved: [u8; 36],
    /// CRC-32 of the bytes before it.
    pub crc: U32,
}

/// The 64 bytes before each payload.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct ChunkHeader {
    pub magic: [u8; 4],
    pub kind: U32,
    /// Stored bytes of the payload; zeros follow up to the next multiple of 16.
    pub length: U64,
    /// Bytes of the payload once decompressed.
    pub uncompressed: U64,
    pub codec: U32,
    /// Events in the chunk.
    pub events: U32,
    /// Exits before the chunk.
    pub first_exit: U64,
    /// Retired instructions at the event before the chunk.
    pub first_icount: U64,
    /// Where the chunk before this one starts; zero for the first.
    pub previous: U64,
    /// CRC-32 of the stored payload with its padding.
    pub payload_crc: U32,
    /// CRC-32 of the header's bytes before it.
    pub crc: U32,
}

/// The last 32 bytes of a whole tape.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Trailer {
    pub magic: [u8; 8],
    /// Where the index chunk starts.
    pub index: U64,
    /// Bytes of the whole file, this trailer included.
    pub file_size: U64,
    pub reserved: [u8; 4],
    /// CRC-32 of the bytes before it.
    pub crc: U32,
}

/// A structure that ends in the CRC of what precedes it.
pub trait Sealed: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {
    const SIZE: usize = size_of::<Self>();

    fn crc_field(&mut self) -> &mut U32;

    /// The structure with its CRC filled in.
    fn sealed(mut self) -> Self {
        let bytes = self.as_bytes();
        let crc = crc32fast::hash(&bytes[..bytes.len() - 4]);
        *self.crc_field() = crc.into();
        self
    }

    /// Reads the structure from the start of `bytes` and checks its CRC.
    fn parse(bytes: &[u8]) -> Result<Self, Cause> {
        let short = || Cause::Short { needed: Self::SIZE as u64, have: bytes.len() as u64 };
        let (mut value, _) = Self::read_from_prefix(bytes).map_err(|_| short())?;
        let computed = crc32fast::hash(&bytes[..Self::SIZE - 4]);
        let found = value.crc_field().get();
        if found != computed {
            return Err(Cause::Checksum { found, computed });
        }
        Ok(value)
    }
}

impl Sealed for FileHeader {
    fn crc_field(&mut self) -> &mut U32 {
        &mut self.crc
    }
}

impl Sealed for ChunkHeader {
    fn crc_field(&mut self) -> &mut U32 {
        &mut self.crc
    }
}

impl Sealed for Trailer {
    fn crc_field(&mut self) -> &mut U32 {
        &mut self.crc
    }
}

impl FileHeader {
    /// The header that this build writes.
    pub fn current() -> Self {
        Self {
            magic: FILE_MAGIC,
            version: super::FORMAT_VERSION.into(),
            size: (Self::SIZE as u16).into(),
            flags: 0.into(),
            schema: super::SCHEMA.into(),
            rkyv_major: 0.into(),
            rkyv_minor: 8.into(),
            reserved: [0; 36],
            crc: 0.into(),
        }
        .sealed()
    }

    /// Whether this build can read the tape. The magic comes first, so that other files are called what they are.
    pub fn check(bytes: &[u8]) -> Result<Self, Cause> {
        let have = bytes.len().min(FILE_MAGIC.len());
        if have == 0 || bytes[..have] != FILE_MAGIC[..have] {
            return Err(Cause::NotATape);
        }
        let header = Self::parse(bytes)?;
        if header.version.get() > super::FORMAT_VERSION {
            return Err(Cause::Version { found: header.version.get(), known: super::FORMAT_VERSION });
        }
        if !(super::FIRST_SCHEMA..=super::SCHEMA).contains(&header.schema.get()) {
            return Err(Cause::Schema { found: header.schema.get(), known: super::SCHEMA });
        }
        if header.flags.get() != 0 {
            return Err(Cause::Unknown { what: "flags", value: header.flags.get().into() });
        }
        let size = u64::from(header.size.get());
        if size < Self::SIZE as u64 || !size.is_multiple_of(super::ALIGN) {
            return Err(Cause::Mismatch { what: "header size", found: size, expected: Self::SIZE as u64 });
        }
        Ok(header)
    }
}

impl ChunkHeader {
    /// Reads a chunk header and checks what can be checked without its payload.
    pub fn check(bytes: &[u8]) -> Result<Self, Cause> {
        let header = Self::parse(bytes)?;
        if header.magic != CHUNK_MAGIC {
            return Err(Cause::Unknown {
                what: "chunk magic",
                value: u32::from_le_bytes(header.magic).into(),
            });
        }
        use super::limit;
        let limit = match header.kind() {
            ChunkKind::METADATA | ChunkKind::INDEX => limit::METADATA,
            ChunkKind::EVENTS => limit::EVENTS,
            ChunkKind::IMAGE | ChunkKind::CHECKPOINT => limit::BLOB,
            other => return Err(Cause::Unknown { what: "chunk kind", value: other.0.into() }),
        };
        within("uncompressed size", header.uncompressed.get(), limit)?;
        // zstd makes incompressible data a little longer.
        within("stored size", header.length.get(), limit + limit / 128 + 1024)?;
        within("number of events", header.events.get().into(), limit::EVENT_COUNT.into())?;
        Ok(header)
    }

    pub fn kind(&self) -> ChunkKind {
        ChunkKind(self.kind.get())
    }

    /// Bytes from the start of this chunk to the next.
    pub fn span(&self) -> u64 {
        Self::SIZE as u64 + super::align(self.length.get())
    }
}

/// Refuses what is larger than its limit.
pub(crate) fn within(what: &'static str, found: u64, limit: u64) -> Result<(), Cause> {
    if found > limit { Err(Cause::Limit { what, found, limit }) } else { Ok(()) }
}

const _: () = {
    assert!(size_of::<FileHeader>() == 64);
    assert!(size_of::<ChunkHeader>() == 64);
    assert!(size_of::<Trailer>() == 32);
};
