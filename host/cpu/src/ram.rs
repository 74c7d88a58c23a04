//! Guest RAM as the interpreter sees it: shared bytes, when each page was last written, and which hold decoded code.
//!
//! Time is counted in epochs. Whoever wants to know what is written from now on sets a [`Mark`], which begins an epoch,
//! and asks later what was written since. Nobody clears anything, so any number of readers can do so.

use crate::changes::{Changes, WORD};
use std::{any::Any, cell::Cell, ops::Range, rc::Rc};
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
    /// How often the generation of a page has ended.
    code_changes: Cell<u64>,
    changes: Changes,
    /// Ranges that lie elsewhere on other hosts.
    elsewhere: Vec<Range<u64>>,
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
    /// Where the memory begins that every host has in the same order, and where it ends.
    common: Range<u64>,
}

impl Ram {
    /// Wraps memory that is never freed.
    pub fn new(bytes: &'static [Cell<u8>]) -> Self {
        Self::kept_by(bytes, Box::new(()))
    }

    /// Wraps memory that stays mapped while `owner` lives, which the `Ram` and its clones keep.
    pub fn kept_by(bytes: &'static [Cell<u8>], owner: Box<dyn Any>) -> Self {
        Self::placed(bytes, owner, 0..bytes.len() as u64, Vec::new())
    }

    /// As [`Ram::kept_by`], for memory of which only a range lies, from its beginning on, as on any other host. Ranges that may lie
    /// anywhere behind it are known by their order.
    pub fn placed(
        bytes: &'static [Cell<u8>],
        owner: Box<dyn Any>,
        common: Range<u64>,
        elsewhere: Vec<Range<u64>>,
    ) -> Self {
        let count = bytes.len().div_ceil(PAGE_SIZE as usize);
        let info = (0..count).map(|_| PageInfo::default()).collect();
        let groups = vec![Cell::new(0); count.div_ceil(1 << GROUP_SHIFT)];
        let epoch = Cell::new(Mark::START.0);
        let changes = Changes::default();
        let code_changes = Cell::new(0);
        let pages = Rc::new(Pages { info, groups, epoch, code_changes, changes, elsewhere, _owner: owner });
        Self { bytes, pages, common }
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
        // What most reads are: a paging entry.
        if let Ok(word) = <&mut [u8; WORD]>::try_from(&mut *buf) {
            return self.load(hpa).map(|loaded| *word = loaded).is_some();
        }
        let Some(bytes) = self.range(hpa, buf.len()) else { return false };
        for (to, from) in buf.iter_mut().zip(bytes) {
            *to = from.get();
        }
        true
    }

    /// Copies bytes in, drops decoded code there and notes the epoch. False: the range is not RAM. For what comes before
    /// the first instruction, or takes no part in the guest's time.
    pub fn write(&self, hpa: u64, data: &[u8]) -> bool {
        self.write_at(hpa, data, 0)
    }

    /// As [`Ram::write`], after so many instructions.
    pub fn write_at(&self, hpa: u64, data: &[u8], icount: u64) -> bool {
        let done = self.replace(hpa, data.len(), icount, |at, chunk| {
            chunk.copy_from_slice(&data[at..at + chunk.len()]);
        });
        if done {
            self.wrote(hpa, data.len() as u64);
        }
        done
    }

    /// Counts changes of memory from here on.
    pub fn keep_changes(&self) {
        self.pages.changes.keep();
    }

    /// Counts none from here on, and forgets those that were.
    pub fn forget_changes(&self) {
        self.pages.changes.forget();
    }

    /// Whether changes are counted.
    pub(crate) fn keeps_changes(&self) -> bool {
        self.pages.changes.are_kept()
    }

    /// A digest of all changes of memory since [`Ram::keep_changes`], each with the instruction that made it: equal on two machines that began with equal
    /// memory exactly if their memory was equal after every instruction.
    pub fn changes(&self) -> u128 {
        self.pages.changes.sum()
    }

    /// Takes over the digest from compiled code.
    pub(crate) fn set_changes(&self, sum: u128) {
        self.pages.changes.set(sum);
    }

    /// The memory that every host has, as [`Ram::place`] counts it from its beginning.
    pub(crate) fn common(&self) -> std::ops::Range<u64> {
        self.common.clone()
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
                self.pages.code_changes.set(self.pages.code_changes.get() + 1);
                hit = true;
            }
            at = next;
        }
        hit
    }

    /// Notes that the bytes from `hpa` to `end`, on one page, were decoded.
    pub(crate) fn mark_code(&self, hpa: u64, end: u64) {
        let Some(info) = self.pages.info.get((hpa >> PAGE_SHIFT) as usize) else { return };
        let before = info.code.get();
        if before == 0 {
            self.begin_epoch();
        }
        info.code.set(before | lines(hpa, end));
    }

    /// Whether a page holds decoded code, so that writes must be reported to [`Ram::wrote`]. One that is not there, to which only
    /// a broken entry leads, is written in no way that is not checked.
    pub(crate) fn has_code(&self, hpa: u64) -> bool {
        self.pages.info.get((hpa >> PAGE_SHIFT) as usize).is_none_or(|info| info.code.get() != 0)
    }

    /// The generation of the code on a page.
    #[inline(always)]
    pub(crate) fn generation(&self, page: u64) -> u32 {
        self.pages.info.get(page as usize).map_or(0, |info| info.generation.get())
    }

    /// Changes with the generation of any page.
    #[inline(always)]
    pub(crate) fn code_changes(&self) -> u64 {
        self.pages.code_changes.get()
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[Cell<u8>] {
        self.bytes
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

    /// A word of `N` bytes, zero-extended, as a page walk reads it.
    #[inline(always)]
    pub fn word<const N: usize>(&self, hpa: u64) -> Option<u64> {
        let bytes = self.load::<N>(hpa)?;
        Some(u64::from_le_bytes(std::array::from_fn(|n| if n < N { bytes[n] } else { 0 })))
    }

    /// Stores `N` bytes at once on a page that was announced as written and holds no code, where changes are not counted.
    #[inline(always)]
    pub(crate) fn store<const N: usize>(&self, hpa: u64, data: [u8; N]) -> bool {
        let start = hpa as usize;
        let Some(bytes) = self.bytes.get(start..).and_then(|b| b.first_chunk::<N>()) else { return false };
        for (to, from) in bytes.iter().zip(data) {
            to.set(from);
        }
        true
    }

    /// As [`Ram::store`], where changes are counted, by the instruction that so many have retired before.
    #[inline(never)]
    pub(crate) fn store_counted<const N: usize>(&self, hpa: u64, data: [u8; N], icount: u64) -> bool {
        let Some(before) = self.load::<N>(hpa) else { return false };
        let place = self.place(hpa);
        if N <= WORD {
            self.pages.changes.add(place, before, data, icount);
        } else {
            let pairs = before.as_chunks::<WORD>().0.iter().zip(data.as_chunks::<WORD>().0);
            for (at, (before, after)) in (place..).step_by(WORD).zip(pairs) {
                self.pages.changes.add(at, *before, *after, icount);
            }
        }
        self.store(hpa, data)
    }

    /// As [`Ram::store`], for `len` bytes that repeat a quadword.
    pub(crate) fn fill(&self, hpa: u64, len: usize, data: [u8; WORD], icount: u64) -> bool {
        self.replace(hpa, len, icount, |_, chunk| chunk.copy_from_slice(&data[..chunk.len()]))
    }

    /// As [`Ram::store`], for `len` bytes out of a range that does not overlap.
    pub(crate) fn copy(&self, from: u64, to: u64, len: usize, icount: u64) -> bool {
        let Some(source) = self.range(from, len) else { return false };
        self.replace(to, len, icount, |at, chunk| {
            for (to, from) in chunk.iter_mut().zip(&source[at..]) {
                *to = from.get();
            }
        })
    }

    /// Replaces bytes by quadwords, the last one perhaps in part, that `fill` gives for an offset.
    #[inline(always)]
    fn replace(&self, hpa: u64, len: usize, icount: u64, fill: impl Fn(usize, &mut [u8])) -> bool {
        let Some(bytes) = self.range(hpa, len) else { return false };
        let (place, counted) = (self.place(hpa), self.keeps_changes());
        let (words, rest) = bytes.as_chunks::<WORD>();
        for (n, word) in words.iter().enumerate() {
            let at = n * WORD;
            let mut after = [0; WORD];
            fill(at, &mut after);
            // Not looked at needlessly: a store need not wait for the line.
            if counted {
                let before = std::array::from_fn(|n| word[n].get());
                self.pages.changes.add(place + at as u64, before, after, icount);
            }
            for (to, from) in word.iter().zip(after) {
                to.set(from);
            }
        }
        let (at, mut after) = (words.len() * WORD, [0; WORD]);
        fill(at, &mut after[..rest.len()]);
        for ((n, to), from) in rest.iter().enumerate().zip(after) {
            if counted {
                self.pages.changes.add(place + (at + n) as u64, [to.get()], [from], icount);
            }
            to.set(from);
        }
        true
    }

    /// Where bytes lie in a guest's memory, whatever its host.
    #[inline(always)]
    fn place(&self, hpa: u64) -> u64 {
        if hpa < self.common.end { hpa.wrapping_sub(self.common.start) } else { self.place_elsewhere(hpa) }
    }

    #[cold]
    fn place_elsewhere(&self, hpa: u64) -> u64 {
        /// More than any memory has.
        const ROOM: u32 = 48;
        let ranges = (1u64..).zip(&self.pages.elsewhere);
        let mut found = ranges.filter(|(_, range)| range.contains(&hpa));
        found.next().map_or(hpa, |(number, range)| number << ROOM | (hpa - range.start))
    }

    fn range(&self, hpa: u64, len: usize) -> Option<&'static [Cell<u8>]> {
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
    fn memory_that_is_not_there_takes_no_marks() {
        let ram = Ram::leaked(0x1000);
        ram.mark_code(1 << 40, (1 << 40) + 4);
        assert!(ram.has_code(1 << 40) && !ram.write(1 << 40, &[1]));
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

    const START: u64 = 0x1003;
    const LEN: usize = 37;

    /// The digest of what `write` does in one instruction to memory that counts up.
    fn changes(write: impl Fn(&Ram)) -> u128 {
        let ram = Ram::leaked(0x2000);
        let bytes: Vec<u8> = (0..=255).cycle().take(0x2000).collect();
        ram.write(0, &bytes);
        assert_eq!(ram.changes(), 0, "nobody wants them yet");
        ram.keep_changes();
        write(&ram);
        ram.changes()
    }

    #[test]
    fn it_does_not_matter_in_which_pieces_an_instruction_writes() {
        let data: Vec<u8> = (0..LEN).map(|n| 0x5a ^ n as u8).collect();
        let whole = changes(|ram| assert!(ram.write_at(START, &data, 7)));
        let bytes = changes(|ram| {
            for (at, byte) in (START..).zip(&data) {
                ram.store_counted(at, [*byte], 7);
            }
        });
        let wide = changes(|ram| {
            ram.store_counted::<16>(START, data[..16].try_into().unwrap(), 7);
            ram.store_counted::<16>(START + 16, data[16..32].try_into().unwrap(), 7);
            ram.store_counted::<4>(START + 32, data[32..36].try_into().unwrap(), 7);
            ram.store_counted(START + 36, [data[36]], 7);
        });
        let twice = changes(|ram| {
            ram.write_at(START, &[0; LEN], 7);
            ram.write_at(START, &data, 7);
        });
        assert_eq!([bytes, wide, twice], [whole; 3]);
        assert_ne!(whole, 0);
    }

    #[test]
    fn bulk_operations_count_as_single_stores() {
        let filled = changes(|ram| assert!(ram.fill(START, LEN, *b"abababab", 7)));
        let stored = changes(|ram| {
            for n in 0..LEN as u64 {
                ram.store_counted(START + n, [b"ab"[n as usize % 2]], 7);
            }
        });
        let copied = changes(|ram| assert!(ram.copy(0x80, START, LEN, 7)));
        let written = changes(|ram| {
            let bytes: Vec<u8> = (0x80..).take(LEN).collect();
            assert!(ram.write_at(START, &bytes, 7));
        });
        assert_eq!((filled, copied), (stored, written));
    }

    #[test]
    fn what_heals_later_stays_in_the_digest() {
        let heals = |at: u64, between: u8, first, second| {
            changes(|ram| {
                ram.store_counted(at, [between], first);
                ram.store_counted(at, [at as u8], second);
            })
        };
        assert_eq!(heals(START, 0, 7, 7), 0, "nobody can see what is there within an instruction");
        let seen = [
            (START, 0, 7, 8),
            (START, 1, 7, 8),
            (START, 0, 7, 9),
            (START + 1, 0, 7, 8),
            (START | 7, 0, 7, 8),
        ]
        .map(|(at, between, first, second)| heals(at, between, first, second));
        for (n, one) in seen.iter().enumerate() {
            assert!(*one != 0 && !seen[n + 1..].contains(one), "{n}");
        }
        assert_eq!(changes(|ram| assert!(ram.write_at(0, &[0, 1, 2], 7))), 0, "nothing changes");
    }

    #[test]
    fn another_host_has_the_memory_elsewhere() {
        let digest = |base: u64, slot: u64| {
            let bytes = Vec::leak(vec![Cell::new(0); 0x9000]);
            let slots = std::iter::once(slot..slot + 0x1000).collect();
            let ram = Ram::placed(bytes, Box::new(()), base..base + 0x2000, slots);
            ram.keep_changes();
            ram.write_at(base + 0x1008, &[1], 1);
            let first = ram.changes();
            ram.write_at(slot + 8, &[1], 2);
            (first, ram.changes())
        };
        assert_eq!(digest(0x1000, 0x4000), digest(0x3000, 0x6000));
        assert_ne!(digest(0x1000, 0x4000).0, 0);
    }
}
