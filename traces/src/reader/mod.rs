//! Reading a tape: by its index if it is whole, otherwise by walking the chunks as far as they are good.

mod chunks;
mod events;
mod source;

pub use events::Events;

use crate::{
    error::{Cause, Error, Place, Result},
    event::{End, Event, Milestone},
    exits::Exits,
    flat::kind_bit,
    format::{
        header::{ChunkKind, FileHeader, Sealed},
        payload::IndexEntry,
    },
    metadata::{Metadata, Stored},
};
use source::Source;
use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

/// An open tape. Clones share the file.
#[derive(Clone)]
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
    damage: Option<Arc<Error>>,
    end: OnceLock<Option<(u64, End)>>,
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
        let source = Source::open(path).map_err(|c| c.at(&name, Place::File))?;
        Self::new(name, source)
    }

    /// Opens a tape and insists on every byte of it.
    pub fn open_whole(path: &Path) -> Result<Self> {
        let mut tape = Self::open(path)?;
        if let Some(damage) = tape.damage.take().and_then(Arc::into_inner) {
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
            end: OnceLock::new(),
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
                tape.damage = Some(Arc::new(stopped.unwrap_or(error)));
            }
        }
        tape.metadata = match tape.first(ChunkKind::METADATA) {
            Some(chunk) => tape.read::<Stored>(chunk)?.1.into(),
            None => {
                let missing = || Cause::Missing("metadata").at(&tape.name, Place::File);
                return Err(tape.damage.and_then(Arc::into_inner).unwrap_or_else(missing));
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

    /// The schema of its events, which says what they tell: see traces/README.md.
    pub fn schema(&self) -> u32 {
        self.header.schema.get()
    }

    /// The recorded machine.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Why the tape is not whole, if it is not.
    pub fn damage(&self) -> Option<&Error> {
        self.damage.as_deref()
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

    /// The last of the chunks of events that two tapes have alike before they differ; the first chunk where there is none.
    pub fn last_common(&self, other: &Self) -> usize {
        let before = &self.chunks[..self.first_difference(other)];
        before.iter().rposition(|chunk| chunk.kind == ChunkKind::EVENTS.0).unwrap_or(0)
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
        self.chunks_with(tag).flat_map(|chunk| self.events_of(chunk))
    }

    /// The chunks that may hold events of this kind, as far as the index knows.
    pub fn chunks_with(&self, tag: u64) -> impl Iterator<Item = usize> {
        let chunks = (0..).zip(&self.chunks).filter(|(_, c)| c.kind == ChunkKind::EVENTS.0);
        let kinds = self.kinds.iter().map(Some).chain(std::iter::repeat(None));
        let wanted = chunks.zip(kinds).filter(move |(_, kinds)| kinds.is_none_or(|k| k & kind_bit(tag) != 0));
        wanted.map(|((chunk, _), _)| chunk)
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

    /// How the tape ends, and after how many instructions; `None`: it breaks off. Many ask for it, and each time it is in the last
    /// chunk.
    pub fn end(&self) -> Result<Option<(u64, End)>> {
        if let Some(end) = self.end.get() {
            return Ok(end.clone());
        }
        let last = self.chunks.iter().rposition(|chunk| chunk.events != 0).unwrap_or(0);
        let mut end = None;
        for event in self.events_from(last) {
            if let Event::End { icount, end: how, .. } = event? {
                end = Some((icount, how));
                break;
            }
        }
        Ok(self.end.get_or_init(|| end).clone())
    }

    /// The events of one chunk.
    pub fn events_of(&self, chunk: usize) -> Events<'_> {
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
}
