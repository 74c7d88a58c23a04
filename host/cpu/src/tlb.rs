//! The translation look-aside buffer: direct-mapped, one table per privilege context, with separate tags for reading,
//! writing and fetching.
//!
//! A tag is the page's linear address with the current epoch in its low bits, so that dropping everything is one
//! increment, and one comparison decides on page, epoch, permission and (because the address of the last byte is
//! compared) on crossing a page. Global entries are dropped together with the others: a TLB may forget at any time.
//!
//! A page that may be written is not therefore written: tags for writing have an epoch of their own, which ends with
//! every [`crate::Mark`]. The first write after it takes the slow path, where it is noted, and needs no walk.

use std::{cell::Cell, rc::Rc};
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE, access::AccessKind, access::Mapping};

const ENTRIES: usize = 1024;
const CONTEXTS: usize = 4;
const OFFSET: u64 = PAGE_SIZE - 1;
/// Epochs fit the low bits of a tag; zero never matches.
const EPOCHS: u64 = PAGE_SIZE;

/// Whose permissions an entry carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    User = 0,
    /// CPL below 3 with RFLAGS.AC clear, and implicit supervisor accesses.
    Supervisor = 1,
    /// CPL below 3 with RFLAGS.AC set, where SMAP does not apply.
    SupervisorAc = 2,
    /// Never filled: every access takes the slow path, which alone checks alignment and breakpoints.
    Slow = 3,
}

/// One page: a tag per kind of access, and what to add to a linear address for the host physical one.
#[derive(Clone, Copy, Default)]
struct Entry {
    read: u64,
    write: u64,
    fetch: u64,
    addend: u64,
}

/// What is to be dropped from a TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    All,
    /// Everything but global entries (at least).
    NonGlobal,
    /// The guest's page, of whatever size, that holds a linear address.
    Page(u64),
}

/// Asks a [`crate::Cpu`] to drop translations while it may be running; taken up before the next access.
#[derive(Clone, Default)]
pub struct FlushHandle(Rc<Cell<Option<Flush>>>);

impl FlushHandle {
    /// Adds a request.
    pub fn request(&self, flush: Flush) {
        let merged = match self.0.get() {
            None => flush,
            Some(before) if before == flush => flush,
            Some(_) => Flush::All,
        };
        self.0.set(Some(merged));
    }
}

pub(crate) struct Tlb {
    entries: Box<[Entry; ENTRIES * CONTEXTS]>,
    /// Tags of pages that may be written, noted or not.
    writable: Box<[u64; ENTRIES * CONTEXTS]>,
    epoch: u64,
    /// What tags for writing have in place of the epoch.
    write_epoch: u64,
    /// Changes with every flush, single pages included: caches of fetched code hang on it.
    version: u64,
    /// Linear range that holds all entries cut out of large pages, inclusive.
    large: Option<(u64, u64)>,
    /// The epoch of RAM that writes were noted in.
    ram_epoch: u64,
    requests: FlushHandle,
}

impl Tlb {
    pub(crate) fn new() -> Self {
        let entries = vec![Entry::default(); ENTRIES * CONTEXTS].into_boxed_slice();
        let entries = entries.try_into().unwrap_or_else(|_| unreachable!());
        let writable = vec![0; ENTRIES * CONTEXTS].into_boxed_slice();
        let writable = writable.try_into().unwrap_or_else(|_| unreachable!());
        let requests = FlushHandle::default();
        Self { entries, writable, epoch: 1, write_epoch: 1, version: 0, large: None, ram_epoch: 0, requests }
    }

    pub(crate) fn handle(&self) -> FlushHandle {
        self.requests.clone()
    }

    #[inline(always)]
    fn index(context: Context, gva: u64) -> usize {
        (context as usize * ENTRIES) | ((gva >> PAGE_SHIFT) as usize % ENTRIES)
    }

    /// The host physical address for `size` bytes at `gva`, if they lie on one page that is known.
    #[inline(always)]
    pub(crate) fn lookup(&self, context: Context, gva: u64, size: u64, kind: AccessKind) -> Option<u64> {
        let entry = &self.entries[Self::index(context, gva)];
        let (tag, epoch) = match kind {
            AccessKind::READ => (entry.read, self.epoch),
            AccessKind::WRITE => (entry.write, self.write_epoch),
            _ => (entry.fetch, self.epoch),
        };
        let want = (gva.wrapping_add(size - 1) & !OFFSET) | epoch;
        (tag == want).then(|| gva.wrapping_add(entry.addend))
    }

    /// The host physical address of a byte on a page that may be written, though the write is not noted yet.
    pub(crate) fn lookup_writable(&self, context: Context, gva: u64) -> Option<u64> {
        let index = Self::index(context, gva);
        (self.writable[index] == gva & !OFFSET | self.epoch)
            .then(|| gva.wrapping_add(self.entries[index].addend))
    }

    /// Lets a known page be written until the next mark.
    pub(crate) fn allow_write(&mut self, context: Context, gva: u64) {
        self.entries[Self::index(context, gva)].write = gva & !OFFSET | self.write_epoch;
    }

    /// Enters a mapping of RAM.
    pub(crate) fn insert(&mut self, context: Context, gva: u64, mapping: &Mapping) {
        let page = gva & !OFFSET;
        let tag = page | self.epoch;
        let addend = mapping.hpa.wrapping_sub(page);
        let index = Self::index(context, gva);
        let (entry, writable) = (&mut self.entries[index], &mut self.writable[index]);
        let known = [entry.read, *writable, entry.fetch].contains(&tag) && entry.addend == addend;
        if !known {
            (*entry, *writable) = (Entry { addend, ..Entry::default() }, 0);
        }
        for (slot, allowed) in
            [(&mut entry.read, mapping.read), (writable, mapping.write), (&mut entry.fetch, mapping.fetch)]
        {
            if allowed.is_set() {
                *slot = tag;
            }
        }
        if u32::from(mapping.guest_page_shift) > PAGE_SHIFT {
            self.note_large(gva, mapping.guest_page_shift);
        }
    }

    fn note_large(&mut self, gva: u64, shift: u8) {
        let size = 1u64.checked_shl(u32::from(shift)).unwrap_or(0);
        let (first, last) = (gva & size.wrapping_neg(), gva | size.wrapping_sub(1));
        let (low, high) = self.large.unwrap_or((first, last));
        self.large = Some((low.min(first), high.max(last)));
    }

    pub(crate) fn flush(&mut self, what: Flush) {
        self.version += 1;
        match what {
            Flush::Page(gva) if !self.large.is_some_and(|(low, high)| (low..=high).contains(&gva)) => {
                for context in [Context::User, Context::Supervisor, Context::SupervisorAc] {
                    let index = Self::index(context, gva);
                    (self.entries[index], self.writable[index]) = (Entry::default(), 0);
                }
            }
            _ => self.flush_all(),
        }
    }

    fn flush_all(&mut self) {
        self.large = None;
        self.end_writes();
        self.epoch += 1;
        if self.epoch == EPOCHS {
            self.entries.fill(Entry::default());
            self.writable.fill(0);
            self.epoch = 1;
        }
    }

    /// Every write is to be noted again.
    fn end_writes(&mut self) {
        self.write_epoch += 1;
        if self.write_epoch == EPOCHS {
            self.entries.iter_mut().for_each(|entry| entry.write = 0);
            self.write_epoch = 1;
        }
    }

    /// Takes up requests made through the handle, and a new epoch of RAM.
    #[inline]
    pub(crate) fn sync(&mut self, ram_epoch: u64) {
        if self.ram_epoch != ram_epoch {
            self.ram_epoch = ram_epoch;
            self.end_writes();
        }
        if let Some(flush) = self.requests.0.take() {
            self.flush(flush);
        }
    }

    #[inline(always)]
    pub(crate) fn version(&self) -> u64 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(hpa: u64, shift: u8) -> Mapping {
        Mapping { hpa, read: true.into(), guest_page_shift: shift, ..Mapping::default() }
    }

    #[test]
    fn a_hit_needs_context_permission_and_one_page() {
        let mut tlb = Tlb::new();
        tlb.insert(Context::User, 0x1234, &mapping(0x8000, 12));
        let read = |tlb: &Tlb, gva, size| tlb.lookup(Context::User, gva, size, AccessKind::READ);
        assert_eq!(read(&tlb, 0x1ff8, 8), Some(0x8ff8));
        assert_eq!(read(&tlb, 0x1ff9, 8), None);
        assert_eq!(tlb.lookup(Context::User, 0x1000, 1, AccessKind::WRITE), None);
        assert_eq!(tlb.lookup(Context::Supervisor, 0x1000, 1, AccessKind::READ), None);
        tlb.flush(Flush::Page(0x1000));
        assert_eq!(read(&tlb, 0x1000, 1), None);
    }

    #[test]
    fn a_large_page_goes_as_a_whole() {
        let mut tlb = Tlb::new();
        tlb.insert(Context::User, 0x20_1000, &mapping(0x8000, 21));
        tlb.flush(Flush::Page(0x3f_f000));
        assert_eq!(tlb.lookup(Context::User, 0x20_1000, 1, AccessKind::READ), None);
    }

    #[test]
    fn a_mark_ends_writing_without_a_walk() {
        let mut tlb = Tlb::new();
        tlb.insert(Context::User, 0x1000, &Mapping { write: true.into(), ..mapping(0x8000, 12) });
        let write = |tlb: &Tlb| tlb.lookup(Context::User, 0x1234, 8, AccessKind::WRITE);
        for ram_epoch in 1..2 * EPOCHS {
            assert_eq!((write(&tlb), tlb.lookup_writable(Context::User, 0x1234)), (None, Some(0x8234)));
            tlb.allow_write(Context::User, 0x1234);
            assert_eq!(write(&tlb), Some(0x8234));
            tlb.sync(ram_epoch);
        }
        assert_eq!(tlb.lookup(Context::User, 0x1234, 8, AccessKind::READ), Some(0x8234));
        tlb.flush(Flush::All);
        assert_eq!(tlb.lookup_writable(Context::User, 0x1234), None);
    }

    #[test]
    fn epochs_wrap_without_reviving_entries() {
        let mut tlb = Tlb::new();
        tlb.insert(Context::User, 0x1000, &mapping(0, 12));
        for _ in 0..2 * EPOCHS {
            tlb.flush(Flush::All);
            assert_eq!(tlb.lookup(Context::User, 0x1000, 1, AccessKind::READ), None);
        }
    }
}
