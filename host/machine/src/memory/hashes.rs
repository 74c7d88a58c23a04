//! What is in memory as one number.

use super::Memory;
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE};
use vmtape_cpu::Mark;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const PAGE: usize = PAGE_SIZE as usize;

/// Hashes of pages, kept as one number that does not depend on when a page was looked at.
pub struct PageHashes {
    pages: Vec<u64>,
    sum: u64,
    /// What was written before is hashed.
    mark: Mark,
}

impl PageHashes {
    /// All pages are zero.
    pub fn new(pages: u64) -> Self {
        Self { pages: vec![0; pages as usize], sum: 0, mark: Mark::START }
    }

    /// A zero page counts as nothing, so that untouched memory need not be read.
    fn hash(&mut self, page: u64, bytes: &[u8]) {
        let new = if is_zero(bytes) { 0 } else { xxh3_64_with_seed(bytes, page) };
        if let Some(slot) = self.pages.get_mut(page as usize) {
            self.sum ^= *slot ^ new;
            *slot = new;
        }
    }

    /// Brings the hashes of pages up to date.
    pub fn update(&mut self, memory: &Memory) {
        let mut bytes = [0; PAGE];
        let mark = std::mem::replace(&mut self.mark, memory.mark());
        for page in memory.ram().pages_since(mark) {
            if memory.ram().read(page << PAGE_SHIFT, &mut bytes) {
                self.hash(page, &bytes);
            }
        }
    }

    /// The number that stands for all of memory.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
