//! Pages that the host does not have: those of a post-copy migration that have not arrived, and those that it refuses.
//!
//! What they hold stays in the arena all the same. Nobody reads it before the page arrives, so a guest whose pages were missing
//! ends as one that always had them.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, ops::Range};
use vmtape_arch::{PAGE_SIZE, memory::Supply};

/// Ranges of host physical memory whose pages are not there, by their first byte.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Absent(BTreeMap<u64, (u64, Supply)>);

impl Absent {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Pages go; how they come back is `supply`.
    pub(crate) fn take(&mut self, range: Range<u64>, supply: Supply) {
        self.put(range.clone());
        self.0.insert(range.start, (range.end, supply));
    }

    /// Pages are there again.
    pub(crate) fn put(&mut self, range: Range<u64>) {
        let touched: Vec<_> = self.overlapping(&range).collect();
        for (start, end, supply) in touched {
            self.0.remove(&start);
            if start < range.start {
                self.0.insert(start, (range.start, supply));
            }
            if end > range.end {
                self.0.insert(range.end, (end, supply));
            }
        }
    }

    /// The first page of a range that is not there.
    pub(crate) fn first_in(&self, hpa: u64, size: u64) -> Option<(u64, Supply)> {
        if self.0.is_empty() {
            return None;
        }
        let range = hpa..hpa.saturating_add(size.max(1));
        let (start, _, supply) = self.overlapping(&range).next()?;
        Some((start.max(hpa & !(PAGE_SIZE - 1)), supply))
    }

    fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, u64, Supply)> {
        let before = self.0.range(..=range.start).next_back().filter(|(_, (end, _))| *end > range.start);
        let from = before.map_or(range.start, |(start, _)| *start);
        self.0.range(from..range.end.max(from)).map(|(start, (end, supply))| (*start, *end, *supply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE;

    #[test]
    fn ranges_are_cut_where_pages_come_and_go() {
        let mut absent = Absent::default();
        absent.take(2 * PAGE..10 * PAGE, Supply::DEMAND);
        absent.take(4 * PAGE..5 * PAGE, Supply::REFUSED);
        absent.put(6 * PAGE..7 * PAGE);
        let supplies: Vec<_> =
            (0..11).map(|page| absent.first_in(page * PAGE, PAGE).map(|(_, supply)| supply.0)).collect();
        let (demand, refused) = (Some(0), Some(2));
        assert_eq!(
            supplies,
            [None, None, demand, demand, refused, demand, None, demand, demand, demand, None]
        );
        assert_eq!(absent.first_in(6 * PAGE + 5, 2 * PAGE), Some((7 * PAGE, Supply::DEMAND)));
        assert_eq!(absent.first_in(3 * PAGE + 5, 1), Some((3 * PAGE, Supply::DEMAND)));
        assert_eq!(absent.first_in(0, u64::MAX), Some((2 * PAGE, Supply::DEMAND)));
        absent.put(0..u64::MAX);
        assert!(absent.is_empty());
    }
}
