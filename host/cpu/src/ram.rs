//! Guest RAM as the interpreter sees it: shared bytes, when each page was last written, and which hold decoded code.
//!
//! Time is counted in epochs. Whoever wants to know what is written from now on sets a [`Mark`], which begins an epoch,
//! and asks later what was written since. Nobody clears anything, so any number of readers can do so.

use std::{any::Any, cell::Cell, rc::Rc};
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
    /// The epoch in which it was last written; zero: never.
    written: Cell<u64>,
}

/// Pages per group, so that looking for written ones need not visit every page.
const GROUP_SHIFT: u32 = 9;

struct Pages {
    info: Vec<PageInfo>,
    /// The epoch in which a page of each group was last written.
    groups: Vec<Cell<u64>>,
    /// Begins anew when pages must no longer be written behind this module's back: a TLB that has seen an older epoch
    /// announces its writes again.
    epoch: Cell<u64>,
    /// Keeps the bytes mapped.
    _owner: Box<dyn Any>,
}

/// A moment after which writes to memory can be told from earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

impl Mark {
    /// Before the first write.
    pub const START: Self = Self(1);
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
        let groups = vec![Cell::new(0); count.div_ceil(1 << GROUP_SHIFT)];
        let epoch = Cell::new(Mark::START.0);
        Self { bytes, pages: Rc::new(Pages { info, groups, epoch, _owner: owner }) }
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

    /// Copies bytes in, drops decoded code there and notes the epoch. False: the range is not RAM.
    pub fn write(&self, hpa: u64, data: &[u8]) -> bool {
        let Some(bytes) = self.range(hpa, data.len()) else { return false };
        for (to, from) in bytes.iter().zip(data) {
            to.set(*from);
        }
        self.wrote(hpa, data.len() as u64);
        true
    }

    /// Notes that `len` bytes were written: in which epoch, and drops decoded code. True: there was some.
    pub fn wrote(&self, hpa: u64, len: u64) -> bool {
        let mut hit = false;
        let epoch = self.pages.epoch.get();
        let end = hpa + len;
        let mut at = hpa;
        while at < end {
            let next = ((at >> PAGE_SHIFT) + 1) << PAGE_SHIFT;
            let info = &self.pages.info[(at >> PAGE_SHIFT) as usize];
            info.written.set(epoch);
            self.pages.groups[(at >> (PAGE_SHIFT + GROUP_SHIFT)) as usize].set(epoch);
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
            self.begin_epoch();
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

    /// Changes when writes to pages must be announced again.
    #[inline(always)]
    pub(crate) fn epoch(&self) -> u64 {
        self.pages.epoch.get()
    }

    /// Sets a mark: writes from here on are [`Ram::written_since`] it. A guest does not notice, and other marks stay valid.
    pub fn mark(&self) -> Mark {
        self.begin_epoch();
        Mark(self.pages.epoch.get())
    }

    /// Whether a page was written since a mark.
    pub fn written_since(&self, page: u64, mark: Mark) -> bool {
        self.pages.info.get(page as usize).is_some_and(|info| info.written.get() >= mark.0)
    }

    /// The pages that were written since a mark, in order.
    pub fn pages_since(&self, mark: Mark) -> impl Iterator<Item = u64> {
        let groups = (0..).zip(&self.pages.groups).filter(move |(_, written)| written.get() >= mark.0);
        let pages = groups.flat_map(|(group, _)| group << GROUP_SHIFT..(group + 1) << GROUP_SHIFT);
        pages.filter(move |page| self.written_since(*page, mark))
    }

    /// Forgets which bytes were decoded; for a caller that drops every [`crate::Cpu`] on this memory too.
    pub fn forget_code(&self) {
        for info in &self.pages.info {
            info.code.set(0);
        }
        self.begin_epoch();
    }

    fn begin_epoch(&self) {
        self.pages.epoch.set(self.pages.epoch.get() + 1);
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
        assert!(!ram.has_code(0x1040));
    }

    #[test]
    fn every_reader_keeps_its_own_mark() {
        let ram = Ram::leaked(0x40_3000);
        let pages = |mark| ram.pages_since(mark).collect::<Vec<_>>();
        ram.write(0x1fff, &[1, 2]);
        let first = ram.mark();
        ram.write(0x40_2000, &[1]);
        let second = ram.mark();
        assert_eq!(
            (pages(Mark::START), pages(first), pages(second)),
            (vec![1, 2, 0x402], vec![0x402], vec![])
        );
        ram.write(0x1000, &[1]);
        assert_eq!((pages(first), pages(second)), (vec![1, 0x402], vec![1]));
        assert!(!ram.written_since(2, first) && ram.written_since(2, Mark::START));
    }
}
