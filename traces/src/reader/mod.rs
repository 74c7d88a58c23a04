//! Reading a tape: by its index if it is whole, otherwise by walking the chunks as far as they are good.

mod events;
mod source;

pub use events::Events;

use crate::{
    error::{Cause, Error, Place, Result},
    event::{Event, Milestone},
    exits::Exits,
    flat::kind_bit,
    format::{
        FIRST_SCHEMA, align,
        header::{ChunkHeader, ChunkKind, FileHeader, Sealed, TRAILER_MAGIC, Trailer},
        payload::{Blob, Columns, FirstIndex, Index, IndexEntry, unpack},
    },
    metadata::{Metadata, Stored},
};
use rkyv::{
    Archive, Deserialize,
    api::high::{HighDeserializer, HighValidator},
    bytecheck::CheckBytes,
    rancor,
};
use source::Source;
use std::path::Path;

/// An open tape.
pub struct Tape {
    name: String,
    source: Source,
    header: FileHeader,
    chunks: Vec<IndexEntry>,
    metadata: Metadata,
    totals: Option<Totals>,
    digests: Vec<u64>,
    kinds: Vec<u32>,
    milestones: Vec<Milestone>,
    damage: Option<Error>,
}

/// How long a tape is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    pub exits: u64,
    pub icount: u64,
    pub events: u64,
}

/// A checkpoint's place on the tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The chunk that holds it.
    pub chunk: usize,
    /// Exits before it.
    pub exit: u64,
    pub icount: u64,
}

impl Tape {
    /// Opens a tape. One that was cut opens too: [`Tape::damage`] says why, [`Tape::totals`] how far it is good.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let source = Source::open(path).map_err(|e| Cause::Io(e).at(&name, Place::File))?;
        Self::new(name, source)
    }

    /// Opens a tape and insists on every byte of it.
    pub fn open_whole(path: &Path) -> Result<Self> {
        let mut tape = Self::open(path)?;
        if let Some(damage) = tape.damage.take() {
            return Err(damage);
        }
        tape.verify()?;
        Ok(tape)
    }

    /// A tape in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::new("(memory)".to_owned(), Source::from(bytes))
    }

    fn new(name: String, source: Source) -> Result<Self> {
        let bytes = source.prefix(0, FileHeader::SIZE as u64);
        let header = bytes
            .map_err(Cause::Io)
            .and_then(|bytes| FileHeader::check(&bytes))
            .map_err(|c| c.at(&name, Place::Header))?;
        let mut tape = Self {
            name,
            source,
            header,
            chunks: Vec::new(),
            metadata: Metadata::default(),
            totals: None,
            digests: Vec::new(),
            kinds: Vec::new(),
            milestones: Vec::new(),
            damage: None,
        };
        match tape.read_index() {
            Ok(index) => {
                tape.totals = Some(Totals { exits: index.exits, icount: index.icount, events: index.events });
                tape.chunks = index.chunks;
                tape.digests = index.digests;
                tape.kinds = index.kinds;
                let milestone = |[icount, exits, hash]: [u64; 3]| Milestone { icount, exits, hash };
                tape.milestones = index.milestones.into_iter().map(milestone).collect();
            }
            Err(error) => {
                let stopped = tape.scan();
                tape.damage = Some(stopped.unwrap_or(error));
            }
        }
        tape.metadata = match tape.first(ChunkKind::METADATA) {
            Some(chunk) => tape.read::<Stored>(chunk)?.1.into(),
            None => {
                return Err(tape.damage.unwrap_or(Cause::Missing("metadata").at(&tape.name, Place::File)));
            }
        };
        Ok(tape)
    }

    /// The name that errors carry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.source.len()
    }

    /// The format version of the file.
    pub fn version(&self) -> u16 {
        self.header.version.get()
    }

    /// The recorded machine.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Why the tape is not whole, if it is not.
    pub fn damage(&self) -> Option<&Error> {
        self.damage.as_ref()
    }

    /// How long the tape is. A tape that was cut is read for it, up to where it is good.
    pub fn totals(&self) -> Result<Totals> {
        if let Some(totals) = self.totals {
            return Ok(totals);
        }
        let mut totals = Totals::default();
        let Some(last) = self.chunks.iter().rposition(|c| c.kind == ChunkKind::EVENTS.0) else {
            return Ok(totals);
        };
        let mut events = self.events_of(last);
        for event in events.by_ref() {
            event?;
        }
        totals.exits = events.clock().exits;
        totals.icount = events.clock().icount;
        totals.events = self.chunks.iter().map(|c| u64::from(c.events)).sum();
        Ok(totals)
    }

    /// The chunks in the order of the file.
    pub fn chunks(&self) -> &[IndexEntry] {
        &self.chunks
    }

    /// The milestones of the run, in order. A tape of schema 1 has none, nor has one that was cut.
    pub fn milestones(&self) -> &[Milestone] {
        &self.milestones
    }

    /// Up to which milestone two runs of a guest were alike, whatever their backends, and the one at which they no
    /// longer were. Nothing is read for it.
    pub fn alike_until(&self, other: &Self) -> (Option<Milestone>, Option<Milestone>) {
        let pairs: Vec<_> = self.milestones.iter().zip(&other.milestones).collect();
        // Each hash holds those before it: once different, always different.
        let alike = pairs.partition_point(|(a, b)| (a.icount, a.hash) == (b.icount, b.hash));
        let at = |n: usize| pairs.get(n).map(|(a, _)| **a);
        (alike.checked_sub(1).and_then(at), at(alike))
    }

    /// The chunk from which on the events of two tapes differ, as a number for [`Tape::events_from`]; chunks before it
    /// hold the same events. Nothing is read for it; tapes of schema 1 and tapes that were cut give their first chunk.
    pub fn first_difference(&self, other: &Self) -> usize {
        let pairs: Vec<_> = self.digests.iter().zip(&other.digests).collect();
        let equal = pairs.partition_point(|(a, b)| a == b);
        let mut events = (0..).zip(&self.chunks).filter(|(_, c)| c.kind == ChunkKind::EVENTS.0);
        events.nth(equal).map_or(self.chunks.len(), |(chunk, _)| chunk)
    }

    /// The guest's files by name.
    pub fn images(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let images = self.chunks.iter().enumerate().filter(|(_, c)| c.kind == ChunkKind::IMAGE.0);
        images.map(|(chunk, _)| self.blob(chunk)).collect()
    }

    /// Where checkpoints are, in order.
    pub fn checkpoints(&self) -> impl DoubleEndedIterator<Item = Checkpoint> + '_ {
        let checkpoints = self.chunks.iter().enumerate().filter(|(_, c)| c.kind == ChunkKind::CHECKPOINT.0);
        checkpoints.map(|(chunk, c)| Checkpoint { chunk, exit: c.first_exit, icount: c.first_icount })
    }

    /// The last checkpoint with at most so many exits before it.
    pub fn checkpoint_before(&self, exit: u64) -> Option<Checkpoint> {
        self.checkpoints().rev().find(|checkpoint| checkpoint.exit <= exit)
    }

    /// The name and the bytes of a checkpoint.
    pub fn checkpoint(&self, checkpoint: Checkpoint) -> Result<(String, Vec<u8>)> {
        self.blob(checkpoint.chunk)
    }

    /// All events.
    pub fn events(&self) -> Events<'_> {
        self.events_from(0)
    }

    /// The events of chunks that may hold this kind (see [`crate::flat::tag`]), as far as the index knows.
    pub fn events_with(&self, tag: u64) -> impl Iterator<Item = Result<Event>> {
        let chunks = (0..).zip(&self.chunks).filter(|(_, c)| c.kind == ChunkKind::EVENTS.0);
        let kinds = self.kinds.iter().map(Some).chain(std::iter::repeat(None));
        let wanted = chunks.zip(kinds).filter(move |(_, kinds)| kinds.is_none_or(|k| k & kind_bit(tag) != 0));
        wanted.flat_map(|((chunk, _), _)| self.events_of(chunk))
    }

    /// All exits, each with everything that belongs to it.
    pub fn exits(&self) -> Exits<Events<'_>> {
        Exits::new(self.events(), 0)
    }

    /// The exits from a number on.
    pub fn exits_from(&self, exit: u64) -> Result<Exits<Events<'_>>> {
        Ok(Exits::new(self.events_from_exit(exit)?, exit))
    }

    /// The events from a chunk on.
    pub fn events_from(&self, chunk: usize) -> Events<'_> {
        Events::new(self, chunk, self.chunks.len())
    }

    fn events_of(&self, chunk: usize) -> Events<'_> {
        Events::new(self, chunk, chunk + 1)
    }

    /// The events from exit number `exit` on (the first is 0), with that exit's own event first.
    pub fn events_from_exit(&self, exit: u64) -> Result<Events<'_>> {
        let mut events = self.events_from(self.last_chunk(|c| c.first_exit <= exit));
        events.skip_to(|clock, _| clock.exits >= exit)?;
        Ok(events)
    }

    /// The events from the first exit at or after an instruction count on.
    pub fn events_from_icount(&self, icount: u64) -> Result<Events<'_>> {
        let mut events = self.events_from(self.last_chunk(|c| c.first_icount < icount));
        events.skip_to(|_, exit| exit.icount >= icount)?;
        Ok(events)
    }

    /// The last event chunk for which `at` holds; it holds for a prefix of them.
    fn last_chunk(&self, at: impl Fn(&IndexEntry) -> bool) -> usize {
        let end = self.chunks.partition_point(|c| at(c));
        let events = self.chunks[..end].iter().rposition(|c| c.kind == ChunkKind::EVENTS.0);
        events.unwrap_or(0)
    }

    /// Reads every byte: headers, checksums, and that the chunks follow each other without a gap.
    pub fn verify(&self) -> Result<()> {
        let mut offset = self.header.size.get().into();
        let mut previous = 0;
        for entry in &self.chunks {
            let (header, _) = self.stored(entry.offset)?;
            let place = Place::Chunk { offset: entry.offset, kind: header.kind() };
            self.expect("offset", entry.offset, offset, place)?;
            self.expect("link to the chunk before", header.previous.get(), previous, place)?;
            previous = offset;
            offset += header.span();
        }
        Ok(())
    }

    fn expect(&self, what: &'static str, found: u64, expected: u64, place: Place) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        Err(Cause::Mismatch { what, found, expected }.at(&self.name, place))
    }

    fn first(&self, kind: ChunkKind) -> Option<usize> {
        self.chunks.iter().position(|c| c.kind == kind.0)
    }

    fn blob(&self, chunk: usize) -> Result<(String, Vec<u8>)> {
        let (_, blob) = self.read::<Blob>(chunk)?;
        Ok((blob.name, blob.data))
    }

    pub(crate) fn columns(&self, chunk: usize) -> Result<(ChunkHeader, Columns)> {
        self.read(chunk)
    }

    /// Reads a chunk of the index and checks that it is what the index says.
    fn read<T>(&self, chunk: usize) -> Result<(ChunkHeader, T)>
    where
        T: Archive,
        T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
            + Deserialize<T, HighDeserializer<rancor::Error>>,
    {
        let entry = self
            .chunks
            .get(chunk)
            .ok_or_else(|| Cause::Missing("chunk of this number").at(&self.name, Place::File))?;
        let (header, payload) = self.stored(entry.offset)?;
        let place = Place::Chunk { offset: entry.offset, kind: header.kind() };
        self.expect("kind", header.kind.get().into(), entry.kind.into(), place)?;
        self.expect("events", header.events.get().into(), entry.events.into(), place)?;
        self.expect("first exit", header.first_exit.get(), entry.first_exit, place)?;
        self.expect("first icount", header.first_icount.get(), entry.first_icount, place)?;
        Ok((header, self.archive(&header, &payload, place)?))
    }

    fn archive<T>(&self, header: &ChunkHeader, payload: &[u8], place: Place) -> Result<T>
    where
        T: Archive,
        T::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
            + Deserialize<T, HighDeserializer<rancor::Error>>,
    {
        let codec = crate::format::header::Codec(header.codec.get());
        unpack(payload, header.uncompressed.get(), codec).map_err(|c| c.at(&self.name, place))
    }

    /// The header and the stored payload of the chunk at an offset, both with their checksums checked.
    fn stored(&self, offset: u64) -> Result<(ChunkHeader, Vec<u8>)> {
        let mut place = Place::Chunk { offset, kind: ChunkKind(0) };
        let bytes = self.source.prefix(offset, ChunkHeader::SIZE as u64);
        let header = bytes
            .map_err(Cause::Io)
            .and_then(|b| ChunkHeader::check(&b))
            .map_err(|c| c.at(&self.name, place))?;
        place = Place::Chunk { offset, kind: header.kind() };
        let needed = align(header.length.get());
        let read = self.source.prefix(offset + ChunkHeader::SIZE as u64, needed);
        let mut payload = read.map_err(|e| Cause::Io(e).at(&self.name, place))?;
        let have = payload.len() as u64;
        if have < needed {
            return Err(Cause::Short { needed, have }.at(&self.name, place));
        }
        let (found, computed) = (header.payload_crc.get(), crc32fast::hash(&payload));
        if found != computed {
            return Err(Cause::Checksum { found, computed }.at(&self.name, place));
        }
        payload.truncate(header.length.get() as usize);
        Ok((header, payload))
    }

    /// The index of a whole tape.
    fn read_index(&self) -> Result<Index> {
        let at = self.source.len().saturating_sub(Trailer::SIZE as u64);
        let trailer = self
            .source
            .prefix(at, Trailer::SIZE as u64)
            .map_err(Cause::Io)
            .and_then(|bytes| if bytes.starts_with(&TRAILER_MAGIC) { Ok(bytes) } else { Err(Cause::NoEnd) })
            .and_then(|bytes| Trailer::parse(&bytes))
            .map_err(|c| c.at(&self.name, Place::Trailer))?;
        self.expect("file size", self.source.len(), trailer.file_size.get(), Place::Trailer)?;
        let offset = trailer.index.get();
        let (header, payload) = self.stored(offset)?;
        let place = Place::Chunk { offset, kind: header.kind() };
        self.expect("kind", header.kind.get().into(), ChunkKind::INDEX.0.into(), place)?;
        self.expect("end of the index", offset.saturating_add(header.span()), at, place)?;
        if self.header.schema.get() == FIRST_SCHEMA {
            return Ok(self.archive::<FirstIndex>(&header, &payload, place)?.into());
        }
        self.archive(&header, &payload, place)
    }

    /// Walks the chunks from the first. Returns what stopped the walk, unless that is the index or the plain end.
    fn scan(&mut self) -> Option<Error> {
        let mut offset = u64::from(self.header.size.get());
        while offset < self.source.len() {
            let header = match self.stored(offset) {
                Ok((header, _)) => header,
                Err(error) => return Some(error),
            };
            if header.kind() == ChunkKind::INDEX {
                return None;
            }
            self.chunks.push(IndexEntry {
                offset,
                length: header.length.get(),
                uncompressed: header.uncompressed.get(),
                first_exit: header.first_exit.get(),
                first_icount: header.first_icount.get(),
                kind: header.kind.get(),
                events: header.events.get(),
            });
            offset += header.span();
        }
        None
    }
}
