//! Addresses, register values and paging entries as JSON has them: hexadecimal text, for parsers that have no integers of 64 bits.
//! Counts stay numbers.

use serde::{Serialize, Serializer};
use std::collections::BTreeSet;

/// A word.
pub fn word<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    text(*value).serialize(serializer)
}

/// A word that may be missing.
pub fn word_or_null<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    value.map(text).serialize(serializer)
}

/// From the first to the last, several times.
pub fn ranges<S: Serializer>(ranges: &BTreeSet<(u64, u64)>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ranges.iter().map(|(first, last)| [text(*first), text(*last)]))
}

fn text(value: u64) -> String {
    format!("{value:#x}")
}
