//! Pages of a slot, and entries of a dirty ring, as ioctls of dirty logging have them.

use super::field::{Field, Packed, Shown, Unpacked};
use serde::{Deserialize, Serialize};
use std::{fmt, ops::RangeInclusive};
use xxhash_rust::xxh3::xxh3_64;

/// Pages of a slot by number, as runs that do not touch, lowest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<RangeInclusive<u64>>")]
pub struct Pages(Vec<RangeInclusive<u64>>);

/// Runs and entries that a text lists; more are a digest.
const LISTED: usize = 8;
/// How the command line spells every page.
const ALL: &str = "all";

impl Pages {
    /// The pages of a bitmap.
    pub fn of_bitmap(bits: &[u64]) -> Self {
        let mut pages = Self::default();
        for (at, word) in bits.iter().enumerate().filter(|(_, word)| **word != 0) {
            (0..64).filter(|bit| word >> bit & 1 != 0).for_each(|bit| pages.push(64 * at as u64 + bit));
        }
        pages
    }

    /// The bitmap of `count` pages from `first` on.
    pub fn bitmap(&self, first: u64, count: u64) -> Vec<u64> {
        let mut bits = vec![0; count.div_ceil(64) as usize];
        let last = first.saturating_add(count).saturating_sub(1);
        for run in self.0.iter().filter(|run| *run.start() <= last && *run.end() >= first) {
            for page in *run.start().max(&first)..=*run.end().min(&last) {
                bits[((page - first) / 64) as usize] |= 1 << ((page - first) % 64);
            }
        }
        bits
    }

    /// `all`, or numbers and runs with plus signs between them: `3+5-9`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == ALL {
            return Ok(Self(vec![0..=u64::MAX]));
        }
        let number = |text: &str| text.parse().map_err(|_| format!("`{text}` is not a page's number"));
        let mut pages: Vec<u64> = Vec::new();
        for word in text.split('+') {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            let (first, last): (u64, u64) = (number(first)?, number(last)?);
            if last < first || last - first >= MOST_LISTED || pages.len() as u64 >= MOST_LISTED {
                return Err(format!("`{word}` are no pages, or too many to list"));
            }
            pages.extend(first..=last);
        }
        pages.sort_unstable();
        let mut found = Self::default();
        pages.into_iter().for_each(|page| found.push(page));
        Ok(found)
    }

    /// Appends a page that is not below any other.
    fn push(&mut self, page: u64) {
        match self.0.last_mut() {
            Some(run) if *run.end() >= page => {}
            Some(run) if *run.end() + 1 == page => *run = *run.start()..=page,
            _ => self.0.push(page..=page),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.0.iter().cloned().flatten()
    }
}

/// Pages that a command line may list.
const MOST_LISTED: u64 = 1 << 20;

/// An entry that was harvested: the page of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingEntry {
    /// The address space in the upper half, the slot's number in the lower.
    pub slot: u32,
    pub offset: u64,
}

/// What was harvested from a ring, in its order.
pub type RingEntries = Vec<RingEntry>;

const NO_RUNS: &str = "runs of pages that are none";

impl TryFrom<Vec<RangeInclusive<u64>>> for Pages {
    type Error = &'static str;

    fn try_from(runs: Vec<RangeInclusive<u64>>) -> Result<Self, Self::Error> {
        let apart = runs.windows(2).all(|pair| *pair[0].end() < pair[1].start().saturating_sub(1));
        if !apart || runs.iter().any(RangeInclusive::is_empty) { Err(NO_RUNS) } else { Ok(Self(runs)) }
    }
}

impl Field for Pages {
    fn pack(&self, to: &mut Packed<'_>) {
        to.bytes(self.0.iter().flat_map(|run| [*run.start(), *run.end()]).flat_map(u64::to_le_bytes));
    }

    fn unpack(from: &mut Unpacked<'_>) -> Result<Self, &'static str> {
        let (words, rest) = from.bytes().as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let (runs, odd) = words.as_chunks::<2>();
        if !rest.is_empty() || !odd.is_empty() {
            return Err(NO_RUNS);
        }
        runs.iter().map(|[first, last]| *first..=*last).collect::<Vec<_>>().try_into()
    }
}

impl Field for RingEntries {
    fn pack(&self, to: &mut Packed<'_>) {
        to.bytes(
            self.iter().flat_map(|entry| [u64::from(entry.slot), entry.offset]).flat_map(u64::to_le_bytes),
        );
    }

    fn unpack(from: &mut Unpacked<'_>) -> Result<Self, &'static str> {
        let (entries, rest) = from.bytes().as_chunks::<16>();
        if !rest.is_empty() {
            return Err("a dirty ring that ends within an entry");
        }
        let entry = |bytes: &[u8; 16]| {
            let [slot, offset] = [0, 1].map(|at| u64::from_le_bytes(bytes.as_chunks::<8>().0[at]));
            let slot = u32::try_from(slot).map_err(|_| "a slot beyond 32 bits")?;
            Ok(RingEntry { slot, offset })
        };
        entries.iter().map(entry).collect()
    }
}

impl Shown for Pages {
    type Text<'a> = Listed;

    fn shown(&self) -> Listed {
        let runs = self.0.iter().map(|run| match (run.start(), run.end()) {
            (0, &u64::MAX) => ALL.to_owned(),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        });
        let count = self
            .0
            .iter()
            .fold(0u64, |sum, run| sum.saturating_add((run.end() - run.start()).saturating_add(1)));
        let words = self.0.iter().flat_map(|run| [*run.start(), *run.end()]);
        Listed::new("pages", count, runs.collect(), words)
    }
}

impl Shown for RingEntries {
    type Text<'a> = Listed;

    fn shown(&self) -> Listed {
        let texts = self.iter().map(|entry| format!("{}:{}", entry.slot, entry.offset)).collect();
        let words = self.iter().flat_map(|entry| [u64::from(entry.slot), entry.offset]);
        Listed::new("entries", self.len() as u64, texts, words)
    }
}

/// How many there are, the first of them, and a digest where there are more.
pub struct Listed {
    what: &'static str,
    count: u64,
    texts: Vec<String>,
    digest: Option<u64>,
}

impl Listed {
    fn new(what: &'static str, count: u64, mut texts: Vec<String>, words: impl Iterator<Item = u64>) -> Self {
        let digest =
            (texts.len() > LISTED).then(|| xxh3_64(&words.flat_map(u64::to_le_bytes).collect::<Vec<_>>()));
        texts.truncate(LISTED);
        Self { what, count, texts, digest }
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            u64::MAX => write!(f, "all {}", self.what)?,
            0 => return write!(f, "no {}", self.what),
            count => write!(f, "{count} {}: {}", self.what, self.texts.join(" "))?,
        }
        self.digest.map_or(Ok(()), |digest| write!(f, " ... ({digest:016x})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_those_of_the_bitmap() {
        let bits = [1 << 63 | 1 << 3, 0b11, 0, 1];
        let pages = Pages::of_bitmap(&bits);
        assert_eq!(pages.shown().to_string(), "5 pages: 3 63-65 192");
        assert_eq!(pages.bitmap(0, 256), bits);
        assert_eq!(pages.bitmap(64, 64), [0b11]);
        assert_eq!(Pages::parse("192+3+63-65"), Ok(pages));
        assert_eq!(Pages::parse("all").unwrap().bitmap(1 << 40, 65), [u64::MAX, 1]);
        assert!(Pages::parse("5-3").is_err() && Pages::parse("").is_err());
        let many = Pages::of_bitmap(&[0x5555_5555_5555_5555]);
        assert!(many.shown().to_string().starts_with("32 pages: 0 2 4 6 8 10 12 14 ... ("));
    }
}
