//! The chunks of the file: each is checked before anything of it is used.

use super::Tape;
use crate::{
    error::{Cause, Error, Place, Result},
    format::{
        FIRST_SCHEMA, align,
        header::{ChunkHeader, ChunkKind, Codec, Sealed, TRAILER_MAGIC, Trailer},
        payload::{Blob, Columns, FirstIndex, Index, IndexEntry, unpack},
    },
};
use rkyv::{
    Archive, Deserialize,
    api::high::{HighDeserializer, HighValidator},
    bytecheck::CheckBytes,
    rancor,
};

impl Tape {
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

    pub(super) fn first(&self, kind: ChunkKind) -> Option<usize> {
        self.chunks.iter().position(|c| c.kind == kind.0)
    }

    pub(super) fn blob(&self, chunk: usize) -> Result<(String, Vec<u8>)> {
        let (_, blob) = self.read::<Blob>(chunk)?;
        Ok((blob.name, blob.data))
    }

    pub(crate) fn columns(&self, chunk: usize) -> Result<(ChunkHeader, Columns)> {
        self.read(chunk)
    }

    /// Reads a chunk of the index and checks that it is what the index says.
    pub(super) fn read<T>(&self, chunk: usize) -> Result<(ChunkHeader, T)>
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
        let codec = Codec(header.codec.get());
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
    pub(super) fn read_index(&self) -> Result<Index> {
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
        let index: Index = match self.header.schema.get() {
            FIRST_SCHEMA => self.archive::<FirstIndex>(&header, &payload, place)?.into(),
            _ => self.archive(&header, &payload, place)?,
        };
        self.expect_every_chunk(&index, offset)?;
        Ok(index)
    }

    /// An index names each chunk before it once, in order: nothing is to be read twice, or left out.
    fn expect_every_chunk(&self, index: &Index, end: u64) -> Result<()> {
        let mut next = u64::from(self.header.size.get());
        for entry in &index.chunks {
            let place = Place::Chunk { offset: next, kind: ChunkKind(entry.kind) };
            self.expect("offset in the index", entry.offset, next, place)?;
            next = next.saturating_add(ChunkHeader::SIZE as u64).saturating_add(align(entry.length));
        }
        self.expect("end of the chunks in the index", next, end, Place::Trailer)
    }

    /// Walks the chunks from the first. Returns what stopped the walk, unless that is the index or the plain end.
    pub(super) fn scan(&mut self) -> Option<Error> {
        let mut offset = u64::from(self.header.size.get());
        let mut stopped = None;
        while offset < self.source.len() {
            match self.stored(offset) {
                Ok((header, _)) if header.kind() == ChunkKind::INDEX => break,
                Ok((header, _)) => {
                    self.chunks.push(entry(offset, &header));
                    offset += header.span();
                }
                Err(error) => {
                    stopped = Some(error);
                    break;
                }
            }
        }
        self.hold_last(offset).err().or(stopped)
    }

    /// The writer of an unfinished tape may put a longer chunk in the place of the last one at any time: it is held as it is.
    fn hold_last(&mut self, end: u64) -> Result<()> {
        let Some(last) = self.chunks.pop() else { return Ok(()) };
        let place = Place::Chunk { offset: last.offset, kind: ChunkKind(last.kind) };
        let held = self.source.keep_tail(last.offset, end - last.offset);
        held.map_err(|e| Cause::Io(e).at(&self.name, place))?;
        let (header, _) = self.stored(last.offset)?;
        self.chunks.push(entry(last.offset, &header));
        Ok(())
    }
}

/// A chunk of an unfinished tape, as its index would name it.
fn entry(offset: u64, header: &ChunkHeader) -> IndexEntry {
    IndexEntry {
        offset,
        length: header.length.get(),
        uncompressed: header.uncompressed.get(),
        first_exit: header.first_exit.get(),
        first_icount: header.first_icount.get(),
        kind: header.kind.get(),
        events: header.events.get(),
    }
}
