//! Guest RAM as the interpreter sees it: shared bytes, and which pages hold decoded code.

use std::cell::Cell;
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE};

/// What is known of one 4 KiB page of RAM.
#[derive(Default)]
struct PageInfo {
    /// Bumped by every write while `has_code` is set; a decoded block of an older generation is stale.
    generation: Cell<u32>,
    has_code: Cell<bool>,
    dirty: Cell<bool>,
}

/// Host physical memory from zero up: bytes that the interpreter, devices and backends share on one thread.
///
/// `Cell` rather than `&mut`, because a backend reads and writes guest memory in the middle of an instruction.
pub struct Ram {
    bytes: &'static [Cell<u8>],
    pages: Vec<PageInfo>,
}

impl Ram {
    /// Wraps memory whose owner keeps it mapped for as long as the `Ram` lives.
    pub fn new(bytes: &'static [Cell<u8>]) -> Self {
        let pages = bytes.len().div_ceil(PAGE_SIZE as usize);
        Self { bytes, pages: (0..pages).map(|_| PageInfo::default()).collect() }
    }

    /// Zeroed memory that is never freed; for tests.
    pub fn leaked(size: usize) -> Self {
        Self::new(Vec::leak(vec![Cell::new(0); size]))
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether there is no memory at all.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Copies bytes out. False: the range is not RAM.
    pub fn read(&self, hpa: u64, buf: &mut [u8]) -> bool {
        let Some(bytes) = self.range(hpa, buf.len()) else { return false };
        for (to, from) in buf.iter_mut().zip(bytes) {
            *to = from.get();
        }
        true
    }

    /// Copies bytes in, drops decoded code on the pages and marks them dirty. False: the range is not RAM.
    pub fn write(&self, hpa: u64, data: &[u8]) -> bool {
        let Some(bytes) = self.range(hpa, data.len()) else { return false };
        for (to, from) in bytes.iter().zip(data) {
            to.set(*from);
        }
        if !data.is_empty() {
            for page in hpa >> PAGE_SHIFT..=(hpa + data.len() as u64 - 1) >> PAGE_SHIFT {
                self.wrote_page(page);
            }
        }
        true
    }

    fn range(&self, hpa: u64, len: usize) -> Option<&[Cell<u8>]> {
        let start = usize::try_from(hpa).ok()?;
        self.bytes.get(start..start.checked_add(len)?)
    }

    fn wrote_page(&self, page: u64) {
        let info = &self.pages[page as usize];
        info.dirty.set(true);
        if info.has_code.get() {
            info.generation.set(info.generation.get().wrapping_add(1));
        }
    }
}
