//! The event codec: words are predicted from the last event in the same context, and only what differs is stored.
//!
//! Exits repeat: the same instruction leaves the guest with the same reason, reads the same paging entries, and the
//! backend does the same about it. So the kind of the next event, and each of its words, is predicted by what came
//! last time after the same exit and the same kinds of events since. traces/README.md describes the streams.

mod decode;
mod encode;
mod model;
mod varint;

pub use decode::Decoder;
pub use encode::Encoder;

/// Special columns of a tag, after those of its words.
mod column {
    /// Which words differ, as a varint of bits; bit 63 says that the blob does.
    pub const MASK: u8 = 64;
    /// How many words the event has, where it was not predicted.
    pub const COUNT: u8 = 65;
    /// Blobs: varint length and bytes.
    pub const BLOB: u8 = 66;
}

/// The most columns that a tag has.
const OF_TAG: usize = column::BLOB as usize + 1;

/// The mask's bit for the blob.
const BLOB_BIT: u64 = 1 << 63;

/// The numbers of a mask's words, in order.
fn words_of(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let word = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(word)
    })
}

/// The operations in the stream of operations, each after a varint that counts the predicted events before it.
mod op {
    /// The kind is as predicted, words are not.
    pub const DIFFERS: u64 = 0;
    /// Another kind: the tag plus this.
    pub const TAG: u64 = 1;
}

/// The forms of a stored word: the two low bits of its varint.
mod form {
    /// A zigzag difference to the predicted slot's value.
    pub const DELTA: u64 = 0;
    /// Equal to the word so many words back.
    pub const COPY: u64 = 1;
    /// An entry of the column's dictionary.
    pub const KNOWN: u64 = 2;
    /// Eight bytes follow, which become the next entry of the column's dictionary.
    pub const LITERAL: u64 = 3;
}

/// Entries of a column's dictionary; later literals are stored but not remembered.
const DICTIONARY: usize = 1 << 14;
