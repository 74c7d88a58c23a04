//! Columns into events. Every byte here may be hostile: what does not fit is an error, and memory is bounded by the
//! size of the chunk and the model's own limits.

use super::{
    BLOB_BIT, DICTIONARY, OF_TAG, column, form,
    model::{Model, TAGS},
    op, varint, words_of,
};
use crate::{
    event::Event,
    flat::{Clock, MAX_WORDS, View},
    format::{
        limit,
        payload::{Column, Columns},
    },
};

struct Input {
    tag: u64,
    word: u8,
    bytes: Vec<u8>,
    at: usize,
    dictionary: Vec<u64>,
}

/// The columns of a chunk.
struct Inputs {
    /// By tag and word.
    columns: Vec<Input>,
    /// For each of the lower tags that has columns, where they are by word.
    places: Vec<Option<Box<[Option<u32>; OF_TAG]>>>,
}

/// Decodes the events of one chunk.
pub struct Decoder {
    model: Model,
    clock: Clock,
    /// The slot with the event that was reached.
    reached: usize,
    ops: Vec<u8>,
    at: usize,
    columns: Inputs,
    /// Predicted events before the next operation; `None` before its count was read.
    run: Option<u64>,
}

type Decoded<T> = Result<T, &'static str>;

impl Decoder {
    /// A decoder for a chunk that starts at `clock`.
    pub fn new(columns: Columns, clock: Clock) -> Self {
        Self {
            model: Model::new(),
            clock,
            reached: 0,
            ops: columns.ops,
            at: 0,
            columns: Inputs::new(columns.columns),
            run: None,
        }
    }

    /// Where the stream is.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The next event. The chunk's header says how many there are.
    pub fn next_event(&mut self) -> Decoded<Event> {
        self.advance()?;
        self.event()
    }

    /// The event that [`Decoder::advance`] has reached; to be asked once, because it moves the clock.
    pub fn event(&mut self) -> Decoded<Event> {
        self.model.event(self.reached).event(&mut self.clock)
    }

    /// The words of that event, for who knows better than [`Decoder::event`] what to make of them.
    #[inline]
    pub fn view(&mut self) -> (View<'_>, &mut Clock) {
        (self.model.event(self.reached), &mut self.clock)
    }

    /// Decodes the words of the next event.
    #[inline]
    pub fn advance(&mut self) -> Decoded<()> {
        let run = match self.run {
            Some(run) => run,
            None => self.operation().ok_or("the operations end early")?,
        };
        self.run = run.checked_sub(1);
        let mask = if run > 0 { 0 } else { self.differing()? };
        let slot = self.model.predicted().ok_or("nothing predicts the event")?;
        let (tag, count) = (slot.tag, slot.words().len());
        self.words(tag, count, mask)?;
        self.reached = self.model.advance();
        Ok(())
    }

    fn operation(&mut self) -> Option<u64> {
        let mut rest = &self.ops[self.at..];
        let value = varint::take(&mut rest)?;
        self.at = self.ops.len() - rest.len();
        Some(value)
    }

    /// Reads an operation: the mask of words that differ. After it the model predicts the event's kind.
    fn differing(&mut self) -> Decoded<u64> {
        let tag = match self.operation().ok_or("the operations end early")? {
            op::DIFFERS => self.model.predicted().ok_or("nothing predicts the event")?.tag,
            other => {
                let tag = other - op::TAG;
                let count = self.columns.get(tag, column::COUNT)?.varint()?;
                if count > MAX_WORDS as u64 {
                    return Err("too many words");
                }
                self.model.unpredicted(tag, count as usize);
                tag
            }
        };
        self.columns.get(tag, column::MASK)?.varint()
    }

    #[inline]
    fn words(&mut self, tag: u64, count: usize, mask: u64) -> Decoded<()> {
        let (slot, recent) = self.model.current();
        if mask & !BLOB_BIT & !((1 << count) - 1) != 0 {
            return Err("a mask of more words than the event has");
        }
        let at = recent.push_slot(slot);
        for i in words_of(slot.found | mask & !BLOB_BIT) {
            let (mut word, mut back) = slot.word(i);
            if mask >> i & 1 != 0 {
                let input = self.columns.get(tag, i as u8)?;
                (word, back) = input.word(word, |back| recent.get(at + i, back))?;
                slot.set_back(i, back);
            } else {
                word = recent.get(at + i, back);
            }
            slot.set_word(i, word);
            recent.set(at + i, word);
        }
        if mask & BLOB_BIT != 0 {
            let input = self.columns.get(tag, column::BLOB)?;
            let length = input.varint()?;
            if length > limit::EVENT_BLOB {
                return Err("too many bytes in one event");
            }
            slot.blob = input.take(length as usize)?.to_vec();
        }
        Ok(())
    }
}

impl Inputs {
    fn new(columns: Vec<Column>) -> Self {
        let input = |Column { tag, word, bytes }| Input { tag, word, bytes, at: 0, dictionary: Vec::new() };
        let mut columns: Vec<Input> = columns.into_iter().map(input).collect();
        columns.sort_by_key(Input::key);
        let mut places = vec![None; TAGS];
        for (at, column) in (0..).zip(&columns) {
            if let Some(of_tag) = places.get_mut(column.tag as usize)
                && usize::from(column.word) < OF_TAG
            {
                let of_tag = of_tag.get_or_insert_with(|| Box::new([None; OF_TAG]));
                of_tag[usize::from(column.word)] = Some(at);
            }
        }
        Self { columns, places }
    }

    #[inline]
    fn get(&mut self, tag: u64, word: u8) -> Decoded<&mut Input> {
        let found = match self.places.get(tag as usize) {
            Some(of_tag) => of_tag.as_ref().and_then(|of_tag| of_tag[usize::from(word)]),
            None => self.columns.binary_search_by_key(&(tag, word), Input::key).ok().map(|at| at as u32),
        };
        found.map(|at| &mut self.columns[at as usize]).ok_or("a column is missing")
    }
}

impl Input {
    fn key(&self) -> (u64, u8) {
        (self.tag, self.word)
    }

    fn varint(&mut self) -> Decoded<u64> {
        let mut rest = &self.bytes[self.at..];
        let value = varint::take(&mut rest).ok_or("a column ends early")?;
        self.at = self.bytes.len() - rest.len();
        Ok(value)
    }

    fn take(&mut self, count: usize) -> Decoded<&[u8]> {
        let taken = self.bytes[self.at..].get(..count).ok_or("a column ends early")?;
        self.at += count;
        Ok(taken)
    }

    /// A stored word, and how far back it was found if that was its form.
    fn word(&mut self, last: u64, recent: impl FnOnce(u8) -> u64) -> Decoded<(u64, u8)> {
        let code = self.varint()?;
        let value = code >> 2;
        Ok(match code & 3 {
            form::DELTA => (last.wrapping_add(varint::unzigzag(value)), 0),
            form::COPY => {
                let back = u8::try_from(value).ok().filter(|b| *b > 0).ok_or("a copy from too far back")?;
                (recent(back), back)
            }
            form::KNOWN => {
                (*self.dictionary.get(value as usize).ok_or("an entry that the dictionary lacks")?, 0)
            }
            _ => {
                let bytes = self.take(8)?.first_chunk().ok_or("a column ends early")?;
                let word = u64::from_le_bytes(*bytes);
                if self.dictionary.len() < DICTIONARY {
                    self.dictionary.push(word);
                }
                (word, 0)
            }
        })
    }
}
