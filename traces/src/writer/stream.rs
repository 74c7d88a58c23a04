//! The tape as a stream of chunks: the same events give the same bytes, whatever threads did.

use super::Options;
use crate::{
    codec::Encoder,
    error::{Cause, Place, Result},
    event::Event,
    flat::Clock,
    format::{
        align, cut,
        header::{
            CHUNK_MAGIC, ChunkHeader, ChunkKind, Codec, FileHeader, Sealed, TRAILER_MAGIC, Trailer, within,
        },
        limit,
        payload::{Blob, Index, IndexEntry, pack},
    },
    metadata::{Metadata, Stored},
};
use std::{fs::File, io::Write, os::unix::fs::FileExt};
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::IntoBytes;

/// The zstd level of images and checkpoints: they are large, and the guest may wait for them.
const BLOB_LEVEL: i32 = 3;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    pub exits: u64,
    pub events: u64,
    pub icount: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of event chunks alone, their headers included.
    pub event_bytes: u64,
}

/// A tape on its way into `out`.
pub struct Stream<W> {
    out: W,
    tape: String,
    level: i32,
    offset: u64,
    index: Vec<IndexEntry>,
    encoder: Encoder,
    /// Events and exits of the chunk that is being filled, and where it started.
    events: u32,
    start: Clock,
    total: u64,
    digests: Vec<u64>,
    kinds: Vec<u32>,
    milestones: Vec<[u64; 3]>,
}

impl<W: Write> Stream<W> {
    /// Writes the file header. `tape` is the name that errors carry.
    pub fn new(mut out: W, tape: &str, options: Options) -> Result<Self> {
        let header = FileHeader::current();
        out.write_all(header.as_bytes()).map_err(|e| Cause::Io(e).at(tape, Place::Header))?;
        Ok(Self {
            out,
            tape: tape.to_owned(),
            level: options.level,
            offset: FileHeader::SIZE as u64,
            index: Vec::new(),
            encoder: Encoder::new(Clock::default()),
            events: 0,
            start: Clock::default(),
            total: 0,
            digests: Vec::new(),
            kinds: Vec::new(),
            milestones: Vec::new(),
        })
    }

    /// Writes the metadata chunk: the first one.
    pub fn metadata(&mut self, metadata: &Metadata) -> Result<()> {
        self.archive(ChunkKind::METADATA, &Stored::from(metadata), limit::METADATA).map(drop)
    }

    /// Writes a file of the guest.
    pub fn image(&mut self, name: &str, data: &[u8]) -> Result<()> {
        self.blob(ChunkKind::IMAGE, name, data.to_vec())
    }

    /// Writes a checkpoint. It lies between two event chunks, so that a replay from it starts at a chunk.
    pub fn checkpoint(&mut self, name: &str, data: Vec<u8>) -> Result<()> {
        self.cut()?;
        self.blob(ChunkKind::CHECKPOINT, name, data)
    }

    fn blob(&mut self, kind: ChunkKind, name: &str, data: Vec<u8>) -> Result<()> {
        within("size", data.len() as u64, limit::BLOB - 4096).map_err(|c| self.error(c, kind))?;
        self.archive(kind, &Blob { name: name.to_owned(), data }, limit::BLOB).map(drop)
    }

    /// Writes a chunk and gives the digest of what is in it.
    fn archive<T>(&mut self, kind: ChunkKind, value: &T, most: u64) -> Result<u64>
    where
        T: for<'a> rkyv::Serialize<
                rkyv::api::high::HighSerializer<
                    rkyv::util::AlignedVec,
                    rkyv::ser::allocator::ArenaHandle<'a>,
                    rkyv::rancor::Error,
                >,
            >,
    {
        let blob = matches!(kind, ChunkKind::IMAGE | ChunkKind::CHECKPOINT);
        let level = if blob { BLOB_LEVEL } else { self.level };
        let packed = pack(value, level).map_err(|c| self.error(c, kind))?;
        within("uncompressed size", packed.uncompressed, most).map_err(|c| self.error(c, kind))?;
        self.chunk(kind, &packed.stored, packed.uncompressed)?;
        Ok(packed.digest)
    }

    /// Appends an event, closing the chunk before it if that is due.
    pub fn event(&mut self, event: &Event) -> Result<()> {
        let full = self.events >= cut::EVENTS || self.encoder.size() >= cut::BYTES;
        if full || matches!(event, Event::Exit(exit) if self.is_due(exit.icount)) {
            self.cut()?;
        }
        within("bytes of one event", blob_size(event), limit::EVENT_BLOB)
            .map_err(|c| self.error(c, ChunkKind::EVENTS))?;
        if let Event::Milestone(m) = event {
            self.milestones.push([m.icount, m.exits, m.hash]);
        }
        self.encoder.push(event);
        self.events += 1;
        Ok(())
    }

    /// Whether the chunk is closed before an exit at this instruction count.
    fn is_due(&self, icount: u64) -> bool {
        let exits = self.encoder.clock().exits - self.start.exits;
        exits >= cut::EXITS.into() || icount.saturating_sub(self.start.icount) >= cut::ICOUNT
    }

    /// Closes the event chunk.
    fn cut(&mut self) -> Result<()> {
        if self.events == 0 {
            return Ok(());
        }
        let clock = self.encoder.clock();
        self.kinds.push(self.encoder.kinds());
        let columns = std::mem::replace(&mut self.encoder, Encoder::new(clock)).finish();
        let (start, events) = (self.start, self.events);
        let digest = self.archive(ChunkKind::EVENTS, &columns, limit::EVENTS)?;
        self.digests.push(chain(self.digests.last(), [start.icount, start.exits, events.into(), digest]));
        self.total += u64::from(std::mem::take(&mut self.events));
        self.start = clock;
        Ok(())
    }

    fn chunk(&mut self, kind: ChunkKind, stored: &[u8], uncompressed: u64) -> Result<()> {
        let (header, bytes) = self.sealed(kind, stored, uncompressed);
        self.out.write_all(&bytes).map_err(|e| self.error(e.into(), kind))?;
        self.index.push(IndexEntry {
            offset: self.offset,
            length: stored.len() as u64,
            uncompressed,
            first_exit: self.start.exits,
            first_icount: self.start.icount,
            kind: kind.0,
            events: self.events,
        });
        self.offset += header.span();
        Ok(())
    }

    /// A chunk as it would stand here.
    fn sealed(&self, kind: ChunkKind, stored: &[u8], uncompressed: u64) -> (ChunkHeader, Vec<u8>) {
        let length = stored.len() as u64;
        let padding = &[0; 16][..(align(length) - length) as usize];
        let mut crc = crc32fast::Hasher::new();
        crc.update(stored);
        crc.update(padding);
        let header = ChunkHeader {
            magic: CHUNK_MAGIC,
            kind: kind.0.into(),
            length: length.into(),
            uncompressed: uncompressed.into(),
            codec: Codec::ZSTD.0.into(),
            events: self.events.into(),
            first_exit: self.start.exits.into(),
            first_icount: self.start.icount.into(),
            previous: self.index.last().map_or(0, |entry| entry.offset).into(),
            payload_crc: crc.finalize().into(),
            crc: 0.into(),
        }
        .sealed();
        let mut bytes = Vec::with_capacity(header.span() as usize);
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(stored);
        bytes.extend_from_slice(padding);
        (header, bytes)
    }

    /// Ends the tape: last events, index, trailer.
    pub fn finish(mut self) -> Result<Summary> {
        self.cut()?;
        let index = Index {
            chunks: self.index.clone(),
            icount: self.start.icount,
            exits: self.start.exits,
            events: self.total,
            digests: std::mem::take(&mut self.digests),
            kinds: std::mem::take(&mut self.kinds),
            milestones: std::mem::take(&mut self.milestones),
        };
        let offset = self.offset;
        self.archive(ChunkKind::INDEX, &index, limit::METADATA)?;
        let trailer = Trailer {
            magic: TRAILER_MAGIC,
            index: offset.into(),
            file_size: (self.offset + Trailer::SIZE as u64).into(),
            reserved: [0; 4],
            crc: 0.into(),
        }
        .sealed();
        self.offset += Trailer::SIZE as u64;
        let written = self.out.write_all(trailer.as_bytes()).and_then(|()| self.out.flush());
        written.map_err(|e| Cause::Io(e).at(&self.tape, Place::Trailer))?;
        Ok(self.summary())
    }

    /// Writes the events that are there and no end: what remains of a recording that was dropped.
    pub fn abandon(mut self) -> Result<Summary> {
        self.cut()?;
        self.out.flush().map_err(|e| Cause::Io(e).at(&self.tape, Place::File))?;
        Ok(self.summary())
    }

    fn summary(&self) -> Summary {
        let events = self.index.iter().filter(|e| e.kind == ChunkKind::EVENTS.0);
        Summary {
            exits: self.start.exits,
            events: self.total,
            icount: self.start.icount,
            bytes: self.offset,
            event_bytes: events.map(|e| ChunkHeader::SIZE as u64 + align(e.length)).sum(),
        }
    }

    fn error(&self, cause: Cause, kind: ChunkKind) -> crate::error::Error {
        cause.at(&self.tape, Place::Chunk { offset: self.offset, kind })
    }
}

impl Stream<File> {
    /// Puts the events of the chunk that is being filled into the file already, as a chunk that the full one replaces: what there
    /// is of them if the program is killed.
    pub(super) fn flush(&self) {
        if self.events == 0 {
            return;
        }
        let Ok(packed) = pack(&self.encoder.so_far(), BLOB_LEVEL) else { return };
        let (_, bytes) = self.sealed(ChunkKind::EVENTS, &packed.stored, packed.uncompressed);
        // A disk that is full is met again by the full chunk, which tells.
        let _ = self.out.write_all_at(&bytes, self.offset);
    }
}

/// The digest of a chunk of events and of all before it.
fn chain(before: Option<&u64>, chunk: [u64; 4]) -> u64 {
    let words = before.into_iter().copied().chain(chunk);
    xxh3_64(&words.flat_map(u64::to_le_bytes).collect::<Vec<_>>())
}

/// Bytes that an event has beside its words.
fn blob_size(event: &Event) -> u64 {
    use crate::event::{Data, End};
    let size = match event {
        Event::Read { data: Data::Bytes(bytes), .. } => bytes.len(),
        Event::Line { text, .. } => text.len(),
        Event::Control { control, .. } => control.bytes(),
        Event::Registers(registers) => registers.values.len() * 8,
        Event::End {
            end:
                End::Shutdown { reason: text }
                | End::Idle { reason: text }
                | End::Fatal { reason: text, .. }
                | End::Limit { what: text }
                | End::NoProgress { reason: text, .. },
            ..
        } => text.len(),
        _ => 0,
    };
    size as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tape;

    /// An index that names a chunk twice, leaves one out, or has them in another order: it is said, and each chunk is read once.
    #[test]
    fn an_index_that_is_not_that_of_the_chunks_is_not_believed() {
        let tape = |bend: fn(&mut Vec<IndexEntry>)| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut stream = Stream::new(file.as_file(), "test", Options::default()).unwrap();
            stream.metadata(&Metadata::default()).unwrap();
            for text in ["one", "two", "three"] {
                stream.event(&Event::Line { vcpu: 0, text: text.to_owned() }).unwrap();
                stream.cut().unwrap();
            }
            bend(&mut stream.index);
            stream.finish().unwrap();
            Tape::open(file.path()).unwrap()
        };
        assert!(tape(|_| ()).damage().is_none());
        let bent: [fn(&mut Vec<IndexEntry>); 4] = [
            |index| index.insert(2, index[1]),
            |index| _ = index.remove(2),
            |index| index.swap(1, 2),
            |index| index.truncate(3),
        ];
        for bend in bent {
            let tape = tape(bend);
            assert!(tape.damage().is_some_and(|damage| damage.to_string().contains("the index")));
            assert_eq!(tape.events().filter(Result::is_ok).count(), 3);
        }
    }
}
