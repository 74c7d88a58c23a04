//! Events into columns.

use super::{
    BLOB_BIT, DICTIONARY, OF_TAG, column, form,
    model::{Model, TAGS},
    op, varint, words_of,
};
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

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    dictionary: HashMap<u64, usize>,
}

/// The columns of a chunk.
struct Outputs {
    columns: Vec<((u64, u8), Output)>,
    /// For each of the lower tags that has columns, where they are by word.
    places: Vec<Option<Box<[Option<u32>; OF_TAG]>>>,
    /// Likewise for the other tags.
    others: BTreeMap<(u64, u8), u32>,
}

impl Outputs {
    fn new() -> Self {
        Self { columns: Vec::new(), places: vec![None; TAGS], others: BTreeMap::new() }
    }

    fn get(&mut self, tag: u64, word: u8) -> &mut Output {
        let next = self.columns.len() as u32;
        let place = match self.places.get_mut(tag as usize) {
            Some(of_tag) => {
                let of_tag = of_tag.get_or_insert_with(|| Box::new([None; OF_TAG]));
                *of_tag[usize::from(word)].get_or_insert(next)
            }
            None => *self.others.entry((tag, word)).or_insert(next),
        };
        if place == next {
            self.columns.push(((tag, word), Output::default()));
        }
        &mut self.columns[place as usize].1
    }

    /// By tag and word.
    fn sorted(mut self) -> Vec<Column> {
        self.columns.sort_by_key(|(key, _)| *key);
        let column = |((tag, word), output): ((u64, u8), Output)| Column { tag, word, bytes: output.bytes };
        self.columns.into_iter().map(column).collect()
    }

    /// What [`Outputs::sorted`] would give now.
    fn so_far(&self) -> Vec<Column> {
        let column = |((tag, word), output): &((u64, u8), Output)| Column {
            tag: *tag,
            word: *word,
            bytes: output.bytes.clone(),
        };
        let mut columns: Vec<_> = self.columns.iter().map(column).collect();
        columns.sort_by_key(|column| (column.tag, column.word));
        columns
    }
}

/// Encodes the events of one chunk.
pub struct Encoder {
    clock: Clock,
    flat: Flat,
    coded: Coded,
}

/// What has become of the events.
struct Coded {
    model: Model,
    ops: Vec<u8>,
    columns: Outputs,
    /// Predicted events since the last operation.
    run: u64,
    size: usize,
    kinds: u32,
}

impl Encoder {
    /// An encoder for a chunk that starts at `clock`.
    pub fn new(clock: Clock) -> Self {
        let (model, columns) = (Model::new(), Outputs::new());
        let coded = Coded { model, ops: Vec::new(), columns, run: 0, size: 0, kinds: 0 };
        Self { clock, flat: Flat::default(), coded }
    }

    /// Where the stream is.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// About how many bytes the columns hold.
    pub fn size(&self) -> usize {
        self.coded.size + self.coded.ops.len()
    }

    /// The kinds of events so far, as an index has them.
    pub fn kinds(&self) -> u32 {
        self.coded.kinds
    }

    /// Appends an event.
    pub fn push(&mut self, event: &Event) {
        self.flat.set(event, &mut self.clock);
        self.coded.push(&self.flat);
    }

    /// Ends the chunk.
    pub fn finish(self) -> Columns {
        let Coded { mut ops, columns, run, .. } = self.coded;
        end(&mut ops, run);
        Columns { ops, columns: columns.sorted() }
    }

    /// The chunk as it would be if it ended now.
    pub fn so_far(&self) -> Columns {
        let mut ops = self.coded.ops.clone();
        end(&mut ops, self.coded.run);
        Columns { ops, columns: self.coded.columns.so_far() }
    }
}

/// The predicted events behind the last operation.
fn end(ops: &mut Vec<u8>, run: u64) {
    if run > 0 {
        varint::put(ops, run);
    }
}

impl Coded {
    fn push(&mut self, flat: &Flat) {
        self.kinds |= kind_bit(flat.tag);
        let predicted = self
            .model
            .predicted()
            .is_some_and(|slot| slot.tag == flat.tag && slot.words().len() == flat.words.len());
        if !predicted {
            self.operation(op::TAG + flat.tag);
            self.model.unpredicted(flat.tag, flat.words.len());
            let count = &mut self.columns.get(flat.tag, column::COUNT).bytes;
            varint::put(count, flat.words.len() as u64);
        }
        let mask = self.words(flat);
        if predicted && mask == 0 {
            self.run += 1;
        } else {
            if predicted {
                self.operation(op::DIFFERS);
            }
            varint::put(&mut self.columns.get(flat.tag, column::MASK).bytes, mask);
        }
        self.model.advance();
    }

    fn operation(&mut self, code: u64) {
        varint::put(&mut self.ops, std::mem::take(&mut self.run));
        varint::put(&mut self.ops, code);
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
                let output = self.columns.get(flat.tag, i as u8);
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
            let output = &mut self.columns.get(flat.tag, column::BLOB).bytes;
            varint::put(output, flat.blob.len() as u64);
            output.extend_from_slice(&flat.blob);
            self.size += flat.blob.len();
        }
        mask
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
