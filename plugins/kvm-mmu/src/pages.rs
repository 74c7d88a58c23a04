//! Private pages: the memory in which EPT, NPT and shadow page tables live. Guests never see it.

use crate::tdp::recent::Recent;
use serde::{Deserialize, Serialize};
use vmtape_arch::PAGE_SHIFT;

/// Entries per table.
pub const ENTRIES: usize = 512;
/// Where the private pages lie in the host's physical address space: below 4 GiB, so that every host reaches them.
const BASE: u64 = 0xc000_0000;

/// A pool of page tables, addressed as silicon would: by host physical address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    words: Vec<u64>,
    /// Free pages; the last one freed is used first.
    free: Vec<u32>,
    /// By page: it is in use.
    used: Vec<bool>,
    /// What walks have found, for as long as nothing changes here.
    #[serde(skip)]
    pub(crate) recent: Recent,
}

impl Pages {
    /// Takes a page and fills it with `value`.
    pub fn alloc(&mut self, value: u64) -> u64 {
        self.recent.forget();
        let index = match self.free.pop() {
            Some(index) => {
                let start = index as usize * ENTRIES;
                self.words[start..start + ENTRIES].fill(value);
                index
            }
            None => {
                let index = self.words.len() / ENTRIES;
                self.words.resize(self.words.len() + ENTRIES, value);
                self.used.push(true);
                index as u32
            }
        };
        self.used[index as usize] = true;
        BASE + (u64::from(index) << PAGE_SHIFT)
    }

    /// Gives a page back; one that is not in use stays as it is.
    pub fn release(&mut self, table: u64) {
        if self.holds(table) {
            let number = Self::number(table);
            self.used[number] = false;
            self.free.push(number as u32);
            self.recent.forget();
        }
    }

    /// Whether an address lies in the pool.
    pub fn spans(&self, address: u64) -> bool {
        Self::slot(address) < self.words.len()
    }

    /// Whether there is a page in use at an address.
    pub fn holds(&self, address: u64) -> bool {
        self.used.get(Self::number(address)).is_some_and(|used| *used)
    }

    /// Number of the page, for tables kept beside it.
    pub fn number(address: u64) -> usize {
        (address.wrapping_sub(BASE) >> PAGE_SHIFT) as usize
    }

    /// The inverse of `number`.
    pub fn address(number: usize) -> u64 {
        BASE + ((number as u64) << PAGE_SHIFT)
    }

    fn slot(address: u64) -> usize {
        (address.wrapping_sub(BASE) >> 3) as usize
    }

    /// The entry at an address; zero outside the pool.
    pub fn read(&self, address: u64) -> u64 {
        self.words.get(Self::slot(address)).copied().unwrap_or(0)
    }

    /// Replaces the entry at an address.
    pub fn write(&mut self, address: u64, value: u64) {
        if let Some(word) = self.words.get_mut(Self::slot(address)) {
            *word = value;
            self.recent.forget();
        }
    }

    /// The entries of a table.
    pub fn table(&self, table: u64) -> &[u64] {
        let start = Self::slot(table);
        &self.words[start..start + ENTRIES]
    }
}

/// Address of entry `index` of a table.
pub const fn entry_address(table: u64, index: u64) -> u64 {
    table + 8 * index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_filled_whenever_it_is_taken() {
        let mut pages = Pages::default();
        let first = pages.alloc(7);
        pages.write(entry_address(first, 511), 1);
        let second = pages.alloc(9);
        pages.release(first);
        pages.release(first);
        assert_eq!((pages.holds(first), pages.holds(second)), (false, true));
        assert!(!pages.holds(0) && !pages.holds(u64::MAX));
        assert_eq!(pages.alloc(3), first);
        assert_ne!(pages.alloc(3), first, "what is given back twice is taken once");
        assert!(pages.table(first).iter().all(|e| *e == 3));
        assert_eq!(pages.read(second), 9);
        assert_eq!(pages.read(0), 0);
    }
}
