//! Events into columns.

use super::{BLOB_BIT, DICTIONARY, column, form, model::Model, op, varint, words_of};
use crate::{
    event::Event,
    flat::{Clock, Flat, kind_bit},
    format::payload::{Column, Columns},
};
use std::collections::{BTreeMap, HashMap};

/// Differences below this are stored as such even where a shorter form might exist.
const SMALL: u64 = 32;
/// Differences from here on are stored as literals.
const LARGE: u64 = 1 << 19;

#[derive(Clone, Default)]
struct Output {
    bytes: Vec<u8>,
    dictionary: HashMap<u64, usize>,
}

/// Encodes the events of one chunk.
#[derive(Clone)]
pub struct Encoder {
    model: Model,
    clock: Clock,
    flat: Flat,
    ops: Vec<u8>,
    columns: BTreeMap<(u64, u8), Output>,
    /// Predicted events since the last operation.
    run: u64,
    size: usize,
    kinds: u32,
}

impl Encoder {
    /// An encoder for a chunk that starts at `clock`.
    pub fn new(clock: Clock) -> Self {
        Self {
            model: Model::new(),
            clock,
            flat: Flat::default(),
            ops: Vec::new(),
            columns: BTreeMap::new(),
            run: 0,
            size: 0,
            kinds: 0,
        }
    }

    /// Where the stream is.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// About how many bytes the columns hold.
    pub fn size(&self) -> usize {
        self.size + self.ops.len()
    }

    /// The kinds of events so far, as an index has them.
    pub fn kinds(&self) -> u32 {
        self.kinds
    }

    /// Appends an event.
    pub fn push(&mut self, event: &Event) {
        let mut flat = std::mem::take(&mut self.flat);
        flat.set(event, &mut self.clock);
        self.kinds |= kind_bit(flat.tag);
        let predicted = self
            .model
            .predicted()
            .is_some_and(|slot| slot.tag == flat.tag && slot.words().len() == flat.words.len());
        if !predicted {
            self.operation(op::TAG + flat.tag);
            self.model.unpredicted(flat.tag, flat.words.len());
            varint::put(self.column(flat.tag, column::COUNT), flat.words.len() as u64);
        }
        let mask = self.words(&flat);
        if predicted && mask == 0 {
            self.run += 1;
        } else {
            if predicted {
                self.operation(op::DIFFERS);
            }
            varint::put(self.column(flat.tag, column::MASK), mask);
        }
        self.model.advance();
        self.flat = flat;
    }

    fn operation(&mut self, code: u64) {
        varint::put(&mut self.ops, std::mem::take(&mut self.run));
        varint::put(&mut self.ops, code);
    }

    fn column(&mut self, tag: u64, word: u8) -> &mut Vec<u8> {
        &mut self.columns.entry((tag, word)).or_default().bytes
    }

    /// Stores the words that differ from their prediction and says which those are.
    fn words(&mut self, flat: &Flat) -> u64 {
        let (slot, recent) = self.model.current();
        let (mut mask, at) = (0, recent.push(&flat.words));
        for i in words_of(slot.found | differing(slot.words(), &flat.words)) {
            let (word, (last, back)) = (flat.words[i], slot.word(i));
            let predicted = if back == 0 { last } else { recent.get(at + i, back) };
            if word != predicted {
                mask |= 1 << i;
                let output = self.columns.entry((flat.tag, i as u8)).or_default();
                let before = output.bytes.len();
                let back = output.put(word, last, || recent.find(at + i, word));
                slot.set_back(i, back);
                self.size += output.bytes.len() - before;
            }
            slot.set_word(i, word);
        }
        // Most events have no bytes beside their words.
        let both_empty = slot.blob.is_empty() && flat.blob.is_empty();
        if !both_empty && slot.blob != flat.blob {
            mask |= BLOB_BIT;
            slot.blob.clone_from(&flat.blob);
            let output = &mut self.columns.entry((flat.tag, column::BLOB)).or_default().bytes;
            varint::put(output, flat.blob.len() as u64);
            output.extend_from_slice(&flat.blob);
            self.size += flat.blob.len();
        }
        mask
    }

    /// Ends the chunk.
    pub fn finish(mut self) -> Columns {
        if self.run > 0 {
            varint::put(&mut self.ops, self.run);
        }
        let column = |((tag, word), output): (_, Output)| Column { tag, word, bytes: output.bytes };
        Columns { ops: self.ops, columns: self.columns.into_iter().map(column).collect() }
    }
}

/// A bit per word that is not the same in both.
fn differing(before: &[u64], after: &[u64]) -> u64 {
    let words = before.iter().zip(after).enumerate();
    words.fold(0, |mask, (i, (before, after))| mask | u64::from(before != after) << i)
}

impl Output {
    /// Stores a word in the form that is likely the shortest. Returns how far back it was found, if that is its form.
    fn put(&mut self, word: u64, last: u64, find: impl FnOnce() -> Option<u8>) -> u8 {
        let delta = varint::zigzag(word.wrapping_sub(last));
        if delta < SMALL {
            varint::put(&mut self.bytes, delta << 2 | form::DELTA);
        } else if let Some(back) = find() {
            varint::put(&mut self.bytes, u64::from(back) << 2 | form::COPY);
            return back;
        } else if let Some(entry) = self.dictionary.get(&word) {
            varint::put(&mut self.bytes, (*entry as u64) << 2 | form::KNOWN);
        } else if delta < LARGE {
            varint::put(&mut self.bytes, delta << 2 | form::DELTA);
        } else {
            varint::put(&mut self.bytes, form::LITERAL);
            self.bytes.extend_from_slice(&word.to_le_bytes());
            let entry = self.dictionary.len();
            if entry < DICTIONARY {
                self.dictionary.insert(word, entry);
            }
        }
        0
    }
}
