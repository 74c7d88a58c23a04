//! The events of a tape, chunk by chunk.

use super::Tape;
use crate::{
    codec::Decoder,
    error::{Cause, Error, Place, Result},
    event::{Event, ExitEvent},
    flat::Clock,
    format::header::{ChunkHeader, ChunkKind},
};

/// An iterator over events. After an error it is at its end.
pub struct Events<'t> {
    tape: &'t Tape,
    /// The next chunk to open, and where to stop.
    next: usize,
    end: usize,
    open: Option<Open>,
    clock: Clock,
    ahead: Option<Event>,
}

struct Open {
    decoder: Decoder,
    header: ChunkHeader,
    offset: u64,
    /// Events decoded so far.
    number: u32,
}

impl<'t> Events<'t> {
    pub(super) fn new(tape: &'t Tape, next: usize, end: usize) -> Self {
        Self { tape, next, end, open: None, clock: Clock::default(), ahead: None }
    }

    /// Exits so far, that of the last event included, and its instruction count.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Skips to the first exit for which `wanted(clock before it, exit)` holds.
    pub(super) fn skip_to(&mut self, wanted: impl Fn(Clock, &ExitEvent) -> bool) -> Result<()> {
        loop {
            let before = self.clock_before_next();
            match self.decode().transpose()? {
                None => return Ok(()),
                Some(Event::Exit(exit)) if wanted(before, &exit) => {
                    self.clock = before;
                    self.ahead = Some(Event::Exit(exit));
                    return Ok(());
                }
                Some(_) => {}
            }
        }
    }

    /// The clock that the next event starts from: a new chunk brings its own.
    fn clock_before_next(&self) -> Clock {
        match &self.open {
            Some(open) if open.number < open.header.events.get() => open.decoder.clock(),
            _ => {
                let events = self.tape.chunks.get(self.next..self.end).unwrap_or_default().iter();
                let next = events.clone().find(|c| c.kind == ChunkKind::EVENTS.0);
                next.map_or(self.clock, |c| Clock { icount: c.first_icount, exits: c.first_exit })
            }
        }
    }

    fn decode(&mut self) -> Option<Result<Event>> {
        let mut event = None;
        let decoded = self.decode_while(|decoder| {
            event = Some(decoder.next_event()?);
            Ok(false)
        })?;
        decoded.map(|()| event).transpose()
    }

    /// Gives the next events of a chunk to `take`, for as long as it wants another. `None`: there are none.
    #[inline]
    pub(crate) fn decode_while(
        &mut self,
        mut take: impl FnMut(&mut Decoder) -> std::result::Result<bool, &'static str>,
    ) -> Option<Result<()>> {
        loop {
            if let Some(open) = self.open.as_mut().filter(|open| open.number < open.header.events.get()) {
                let count = open.header.events.get();
                let mut taken = Ok(true);
                while open.number < count && matches!(taken, Ok(true)) {
                    taken = take(&mut open.decoder);
                    open.number += 1;
                }
                self.clock = open.decoder.clock();
                return Some(taken.map(drop).map_err(|why| self.undecodable(why)));
            }
            if self.next >= self.end.min(self.tape.chunks.len()) {
                return None;
            }
            if let Err(error) = self.open_next() {
                return Some(Err(self.stop(error)));
            }
        }
    }

    /// Opens the next chunk, if it is one of events.
    fn open_next(&mut self) -> Result<()> {
        let chunk = self.next;
        self.next += 1;
        let entry = self.tape.chunks[chunk];
        if entry.kind == ChunkKind::EVENTS.0 {
            let (header, columns) = self.tape.columns(chunk)?;
            let clock = Clock { icount: entry.first_icount, exits: entry.first_exit };
            let decoder = Decoder::new(columns, clock);
            self.open = Some(Open { decoder, header, offset: entry.offset, number: 0 });
        }
        Ok(())
    }

    /// The error of the event that was decoded last, after which there is none.
    #[cold]
    fn undecodable(&mut self, why: &'static str) -> Error {
        let (number, offset) = self.open.as_ref().map_or((0, 0), |open| (open.number.into(), open.offset));
        let place = Place::Chunk { offset, kind: ChunkKind::EVENTS };
        let error = Cause::Event { number, why }.at(&self.tape.name, place);
        self.stop(error)
    }

    fn stop(&mut self, error: Error) -> Error {
        self.open = None;
        self.next = self.end;
        error
    }
}

impl Iterator for Events<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.ahead.take() {
            Some(event) => {
                self.clock = self.open.as_ref().map_or(self.clock, |open| open.decoder.clock());
                Some(Ok(event))
            }
            None => self.decode(),
        }
    }
}
