//! The translation look-aside buffer: direct-mapped, one table per privilege context, with separate tags for reading,
//! writing and fetching.
//!
//! A tag is the page's linear address with the current epoch in its low bits, so that dropping everything is one
//! increment, and one comparison decides on page, epoch, permission and (because the address of the last byte is
//! compared) on crossing a page. Global entries are dropped together with the others: a TLB may forget at any time.

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
    epoch: u64,
    /// Changes with every flush, single pages included: caches of fetched code hang on it.
    version: u64,
    /// Linear range that holds all entries cut out of large pages, inclusive.
    large: Option<(u64, u64)>,
    write_epoch: u64,
    requests: FlushHandle,
}

impl Tlb {
    pub(crate) fn new() -> Self {
        let entries = vec![Entry::default(); ENTRIES * CONTEXTS].into_boxed_slice();
        let entries = entries.try_into().unwrap_or_else(|_| unreachable!());
        let requests = FlushHandle::default();
        Self { entries, epoch: 1, version: 0, large: None, write_epoch: 0, requests }
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
        let tag = match kind {
            AccessKind::READ => entry.read,
            AccessKind::WRITE => entry.write,
            _ => entry.fetch,
        };
        let want = (gva.wrapping_add(size - 1) & !OFFSET) | self.epoch;
        (tag == want).then(|| gva.wrapping_add(entry.addend))
    }

    /// Enters a mapping of RAM.
    pub(crate) fn insert(&mut self, context: Context, gva: u64, mapping: &Mapping, write: bool) {
        let page = gva & !OFFSET;
        let tag = page | self.epoch;
        let addend = mapping.hpa.wrapping_sub(page);
        let entry = &mut self.entries[Self::index(context, gva)];
        let known = [entry.read, entry.write, entry.fetch].contains(&tag) && entry.addend == addend;
        if !known {
            *entry = Entry { addend, ..Entry::default() };
        }
        for (slot, allowed) in
            [(&mut entry.read, mapping.read), (&mut entry.write, write), (&mut entry.fetch, mapping.fetch)]
        {
            if allowed {
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
                    self.entries[Self::index(context, gva)] = Entry::default();
                }
            }
            _ => self.flush_all(),
        }
    }

    fn flush_all(&mut self) {
        self.large = None;
        self.epoch += 1;
        if self.epoch == EPOCHS {
            self.entries.fill(Entry::default());
            self.epoch = 1;
        }
    }

    /// Takes up requests made through the handle, and pages that have become code.
    #[inline]
    pub(crate) fn sync(&mut self, write_epoch: u64) {
        if self.write_epoch != write_epoch {
            self.write_epoch = write_epoch;
            self.flush(Flush::All);
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
        Mapping { hpa, read: true, guest_page_shift: shift, ..Mapping::default() }
    }

    #[test]
    fn a_hit_needs_context_permission_and_one_page() {
        let mut tlb = Tlb::new();
        tlb.insert(Context::User, 0x1234, &mapping(0x8000, 12), false);
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
        tlb.insert(Context::User, 0x20_1000, &mapping(0x8000, 21), false);
        tlb.flush(Flush::Page(0x3f_f000));
        assert_eq!(tlb.lookup(Context::User, 0x20_1000, 1, AccessKind::READ), None);
    }

    #[test]
    fn epochs_wrap_without_reviving_entries() {
        let mut tlb = Tlb::new();
        tlb.insert(Context::User, 0x1000, &mapping(0, 12), false);
        for _ in 0..2 * EPOCHS {
            tlb.flush(Flush::All);
            assert_eq!(tlb.lookup(Context::User, 0x1000, 1, AccessKind::READ), None);
        }
    }
}
