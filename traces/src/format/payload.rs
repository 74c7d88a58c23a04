//! The archives inside chunks: flat rkyv types, always accessed with validation.

use super::{header::Codec, limit};
use crate::error::Cause;
use rkyv::{
    Archive, Deserialize, Serialize,
    api::high::{HighDeserializer, HighSerializer, HighValidator},
    bytecheck::CheckBytes,
    rancor,
    ser::allocator::ArenaHandle,
    util::AlignedVec,
};
use std::io::Read;
use xxhash_rust::xxh3::xxh3_64;

/// The payload of an event chunk: a stream of operations and the columns that it draws from (see `codec`).
#[derive(Archive, Serialize, Deserialize, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    pub ops: Vec<u8>,
    pub columns: Vec<Column>,
}

/// The bytes of one column: what the words at one position of one kind of event need beside their prediction.
#[derive(Archive, Serialize, Deserialize, Debug, PartialEq, Eq)]
pub struct Column {
    pub tag: u64,
    /// The word's position, or one of the special columns.
    pub word: u8,
    pub bytes: Vec<u8>,
}

/// The payload of an image or a checkpoint.
#[derive(Archive, Serialize, Deserialize, Debug, PartialEq, Eq)]
pub struct Blob {
    pub name: String,
    pub data: Vec<u8>,
}

/// The payload of the index chunk.
#[derive(Archive, Serialize, Deserialize, Debug, Default, PartialEq, Eq)]
pub struct Index {
    pub chunks: Vec<IndexEntry>,
    /// Instructions, exits and events of the whole tape.
    pub icount: u64,
    pub exits: u64,
    pub events: u64,
    /// For each chunk of events, in order, a digest of it and of all before it.
    pub digests: Vec<u64>,
    /// And the kinds of events in it: bit n for tag n, bit 31 for all tags from 31 on.
    pub kinds: Vec<u32>,
    /// The tape's milestones: instructions, exits, hash.
    pub milestones: Vec<[u64; 3]>,
}

/// The index of schema 1.
#[derive(Archive, Serialize, Deserialize, Debug, PartialEq, Eq)]
pub struct FirstIndex {
    chunks: Vec<IndexEntry>,
    icount: u64,
    exits: u64,
    events: u64,
}

impl From<FirstIndex> for Index {
    fn from(first: FirstIndex) -> Self {
        let FirstIndex { chunks, icount, exits, events } = first;
        Self { chunks, icount, exits, events, ..Self::default() }
    }
}

/// One chunk, in words of its header.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    pub offset: u64,
    pub length: u64,
    pub uncompressed: u64,
    pub first_exit: u64,
    pub first_icount: u64,
    pub kind: u32,
    pub events: u32,
}

/// An archive on its way into a chunk.
pub(crate) struct Packed {
    pub stored: Vec<u8>,
    pub uncompressed: u64,
    pub digest: u64,
}

/// An archive as stored bytes: serialized, then compressed.
pub(crate) fn pack<T>(value: &T, level: i32) -> Result<Packed, Cause>
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    let raw = rkyv::to_bytes::<rancor::Error>(value).map_err(Cause::Archive)?;
    let stored = zstd::bulk::compress(&raw, level)?;
    Ok(Packed { stored, uncompressed: raw.len() as u64, digest: xxh3_64(&raw) })
}

/// The inverse of [`pack`]. Memory grows with what really decompresses, up to the size that the header names.
pub(crate) fn unpack<T>(stored: &[u8], uncompressed: u64, codec: Codec) -> Result<T, Cause>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
        + Deserialize<T, HighDeserializer<rancor::Error>>,
{
    let mut raw = AlignedVec::<16>::new();
    match codec {
        Codec::NONE => raw.extend_from_slice(stored),
        Codec::ZSTD => {
            let decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(Cause::Decompress)?;
            raw.extend_from_reader(&mut decoder.take(uncompressed.min(limit::BLOB) + 1))
                .map_err(Cause::Decompress)?;
        }
        other => return Err(Cause::Unknown { what: "codec", value: other.0.into() }),
    }
    if raw.len() as u64 != uncompressed {
        return Err(Cause::Mismatch {
            what: "decompressed size",
            found: raw.len() as u64,
            expected: uncompressed,
        });
    }
    rkyv::from_bytes::<T, rancor::Error>(&raw).map_err(Cause::Archive)
}
