//! Guest RAM as the interpreter sees it: shared bytes, and which pages hold decoded code.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    rc::Rc,
};
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE};

/// Decoded code is tracked in lines, so that a stack or data beside code does not drop it.
const LINE_SHIFT: u32 = 6;

/// What is known of one 4 KiB page of RAM.
#[derive(Default)]
struct PageInfo {
    /// Lines that hold decoded code.
    code: Cell<u64>,
    /// Bumped by a write to a line with code; a decoded block of an older generation is stale.
    generation: Cell<u32>,
    dirty: Cell<bool>,
    /// On the list of written pages.
    listed: Cell<bool>,
}

struct Pages {
    info: Vec<PageInfo>,
    /// Bumped when pages must no longer be written behind this module's back: a TLB that has seen an older value drops
    /// its entries.
    write_epoch: Cell<u64>,
    /// Pages that were written since the list was last taken.
    written: RefCell<Vec<u64>>,
    /// Keeps the bytes mapped.
    _owner: Box<dyn Any>,
}

/// Host physical memory from zero up: bytes that the interpreter, devices and backends share on one thread.
///
/// `Cell` rather than `&mut`, because a backend reads and writes guest memory in the middle of an instruction. A clone
/// is another handle to the same memory.
#[derive(Clone)]
pub struct Ram {
    bytes: &'static [Cell<u8>],
    pages: Rc<Pages>,
}

impl Ram {
    /// Wraps memory that is never freed.
    pub fn new(bytes: &'static [Cell<u8>]) -> Self {
        Self::kept_by(bytes, Box::new(()))
    }

    /// Wraps memory that stays mapped while `owner` lives, which the `Ram` and its clones keep.
    pub fn kept_by(bytes: &'static [Cell<u8>], owner: Box<dyn Any>) -> Self {
        let count = bytes.len().div_ceil(PAGE_SIZE as usize);
        let info = (0..count).map(|_| PageInfo::default()).collect();
        let (write_epoch, written) = (Cell::new(0), RefCell::default());
        Self { bytes, pages: Rc::new(Pages { info, write_epoch, written, _owner: owner }) }
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
        self.wrote(hpa, data.len() as u64);
        true
    }

    /// Notes that `len` bytes were written: marks pages dirty and drops decoded code. True: there was some.
    pub fn wrote(&self, hpa: u64, len: u64) -> bool {
        let mut hit = false;
        let end = hpa + len;
        let mut at = hpa;
        while at < end {
            let next = ((at >> PAGE_SHIFT) + 1) << PAGE_SHIFT;
            let info = &self.pages.info[(at >> PAGE_SHIFT) as usize];
            info.dirty.set(true);
            if !info.listed.replace(true) {
                self.pages.written.borrow_mut().push(at >> PAGE_SHIFT);
            }
            if info.code.get() & lines(at, next.min(end)) != 0 {
                info.code.set(0);
                info.generation.set(info.generation.get().wrapping_add(1));
                hit = true;
            }
            at = next;
        }
        hit
    }

    /// Notes that the bytes from `hpa` to `end`, on one page, were decoded.
    pub(crate) fn mark_code(&self, hpa: u64, end: u64) {
        let info = &self.pages.info[(hpa >> PAGE_SHIFT) as usize];
        let before = info.code.get();
        if before == 0 {
            self.end_fast_writes();
        }
        info.code.set(before | lines(hpa, end));
    }

    /// Whether a page holds decoded code, so that writes must be reported to [`Ram::wrote`].
    pub(crate) fn has_code(&self, hpa: u64) -> bool {
        self.pages.info[(hpa >> PAGE_SHIFT) as usize].code.get() != 0
    }

    /// The generation of the code on a page.
    #[inline(always)]
    pub(crate) fn generation(&self, page: u64) -> u32 {
        self.pages.info.get(page as usize).map_or(0, |info| info.generation.get())
    }

    /// Changes when TLB entries that allow writing must be dropped.
    #[inline(always)]
    pub(crate) fn write_epoch(&self) -> u64 {
        self.pages.write_epoch.get()
    }

    /// Whether the page was written since [`Ram::clear_dirty`].
    pub fn is_dirty(&self, page: u64) -> bool {
        self.pages.info.get(page as usize).is_some_and(|info| info.dirty.get())
    }

    /// Forgets which pages were written.
    pub fn clear_dirty(&self) {
        for info in &self.pages.info {
            info.dirty.set(false);
        }
        self.end_fast_writes();
    }

    /// The pages that were written since the last call, in no particular order.
    pub fn take_written(&self) -> Vec<u64> {
        let written = self.pages.written.take();
        for page in &written {
            self.pages.info[*page as usize].listed.set(false);
        }
        self.end_fast_writes();
        written
    }

    /// Forgets which bytes were decoded; for a caller that drops every [`crate::Cpu`] on this memory too.
    pub fn forget_code(&self) {
        for info in &self.pages.info {
            info.code.set(0);
        }
        self.end_fast_writes();
    }

    fn end_fast_writes(&self) {
        self.pages.write_epoch.set(self.pages.write_epoch.get() + 1);
    }

    /// `N` bytes at once; compiles to one load where `N` is a register size.
    #[inline(always)]
    pub(crate) fn load<const N: usize>(&self, hpa: u64) -> Option<[u8; N]> {
        let start = hpa as usize;
        let bytes: &[Cell<u8>; N] = self.bytes.get(start..)?.first_chunk()?;
        Some(std::array::from_fn(|i| bytes[i].get()))
    }

    /// Stores `N` bytes at once on a page that was announced as written and holds no code.
    #[inline(always)]
    pub(crate) fn store<const N: usize>(&self, hpa: u64, data: [u8; N]) -> bool {
        let start = hpa as usize;
        let Some(bytes) = self.bytes.get(start..).and_then(|b| b.first_chunk::<N>()) else { return false };
        for (to, from) in bytes.iter().zip(data) {
            to.set(from);
        }
        true
    }

    /// The bytes of a range, for bulk operations of the interpreter.
    pub(crate) fn range(&self, hpa: u64, len: usize) -> Option<&'static [Cell<u8>]> {
        let start = usize::try_from(hpa).ok()?;
        self.bytes.get(start..start.checked_add(len)?)
    }
}

/// The lines that the bytes from `start` to `end` touch, all on one page.
fn lines(start: u64, end: u64) -> u64 {
    let line = |at: u64| (at & (PAGE_SIZE - 1)) >> LINE_SHIFT;
    vmtape_arch::paging::bits(line(start) as u32, line(end - 1) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_to_a_line_with_code_ends_the_generation() {
        let ram = Ram::leaked(0x3000);
        ram.mark_code(0x1040, 0x1048);
        assert!(!ram.wrote(0x1000, 0x40) && !ram.wrote(0x1080, 8));
        assert!(ram.wrote(0x103f, 2));
        assert_eq!(ram.generation(1), 1);
        assert!(!ram.has_code(0x1040) && ram.is_dirty(1) && !ram.is_dirty(0));
        assert_eq!((ram.take_written(), ram.take_written()), (vec![1], vec![]));
    }
}
