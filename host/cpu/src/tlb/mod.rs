//! The translation look-aside buffer, in two levels, as the silicon's own.
//!
//! The second level holds what the processor knows ([`Geometry`]). The first is a direct-mapped table per privilege context of
//! what was used last of it: no guest can tell what is there, since the second level has it too, and it may change freely.
//!
//! The first level has separate tags for reading, writing and fetching. A tag is the page's linear address with the current
//! epoch in its low bits, so that dropping everything is one increment, and one comparison decides on page, epoch,
//! permission and (because the address of the last byte is compared) on crossing a page. Global entries are dropped
//! together with the others: a TLB may forget at any time.
//!
//! A page that may be written is not therefore written: tags for writing have an epoch of their own, which ends with
//! every [`crate::Mark`]. The first write after it takes the slow path, where it is noted, and needs no walk.

mod second;

pub use second::Geometry;

use second::{SecondLevel, Translation};
use std::{cell::Cell, rc::Rc};
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE, access::AccessKind, access::Mapping};
use vmtape_jit::{TLB_ENTRIES as ENTRIES, TlbEntry as Entry};

const CONTEXTS: usize = 4;
const OFFSET: u64 = PAGE_SIZE - 1;
/// Epochs fit the low bits of a tag; zero and this one never match.
const EPOCHS: u64 = PAGE_SIZE - 1;

/// Whose permissions an entry carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Context {
    #[default]
    User = 0,
    /// CPL below 3 with RFLAGS.AC clear, and implicit supervisor accesses.
    Supervisor = 1,
    /// CPL below 3 with RFLAGS.AC set, where SMAP does not apply.
    SupervisorAc = 2,
    /// Never filled: every access takes the slow path, which alone checks alignment and breakpoints.
    Slow = 3,
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
    second: SecondLevel,
    epoch: u64,
    /// What tags for writing have in place of the epoch.
    write_epoch: u64,
    /// Changes where code that was fetched may have to be fetched again: with every flush, single pages included.
    version: u64,
    /// Linear range that holds all entries cut out of large pages, inclusive.
    large: Option<(u64, u64)>,
    /// The epoch of RAM that writes were noted in.
    ram_epoch: u64,
    requests: FlushHandle,
}

impl Tlb {
    pub(crate) fn new(geometry: Geometry) -> Self {
        let entries = vec![Entry::default(); ENTRIES * CONTEXTS].into_boxed_slice();
        Self {
            entries: entries.try_into().unwrap_or_else(|_| unreachable!()),
            second: SecondLevel::new(geometry),
            epoch: 1,
            write_epoch: 1,
            version: 0,
            large: None,
            ram_epoch: 0,
            requests: FlushHandle::default(),
        }
    }

    pub(crate) fn handle(&self) -> FlushHandle {
        self.requests.clone()
    }

    #[inline(always)]
    fn index(context: Context, gva: u64) -> usize {
        (context as usize * ENTRIES) | ((gva >> PAGE_SHIFT) as usize % ENTRIES)
    }

    /// The host physical address for `size` bytes at `gva`, if they lie on one page that was used lately.
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

    /// The host physical address of a byte on a page that the processor knows. A write is allowed, though not noted yet.
    pub(crate) fn find(&mut self, context: Context, gva: u64, kind: AccessKind) -> Option<u64> {
        let known = self.second.find(context, gva, self.epoch)?;
        let used = known.used_for(kind)?;
        Some(self.use_page(context, gva, used))
    }

    /// Takes a page into the first level, and gives the host physical address.
    fn use_page(&mut self, context: Context, gva: u64, known: Translation) -> u64 {
        let tag = gva & !OFFSET | self.epoch;
        let tag_if = |allowed: bool| if allowed { tag } else { 0 };
        let addend = known.addend();
        let entry = &mut self.entries[Self::index(context, gva)];
        let written = gva & !OFFSET | self.write_epoch;
        *entry = Entry {
            read: tag_if(known.read()),
            write: if entry.write == written && entry.addend == addend { written } else { 0 },
            fetch: tag_if(known.fetch()),
            addend,
        };
        gva.wrapping_add(addend)
    }

    /// Lets a page that was just found be written until the next mark.
    pub(crate) fn allow_write(&mut self, context: Context, gva: u64) {
        self.entries[Self::index(context, gva)].write = gva & !OFFSET | self.write_epoch;
    }

    /// Enters a mapping of RAM for an access, and gives what [`Tlb::find`] would.
    pub(crate) fn insert(
        &mut self,
        context: Context,
        gva: u64,
        mapping: &Mapping,
        kind: AccessKind,
    ) -> Option<u64> {
        let (displaced, known) = self.second.insert(context, gva, mapping, self.epoch);
        let used = known.used_for(kind);
        if let Some((context, page)) = displaced.page {
            self.entries[Self::index(context, page)] = Entry::default();
        }
        self.version += u64::from(displaced.code);
        if u32::from(mapping.guest_page_shift) > PAGE_SHIFT {
            self.note_large(gva, mapping.guest_page_shift);
        }
        used.map(|used| self.use_page(context, gva, used))
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
                    self.second.remove(context, gva);
                }
            }
            _ => self.flush_all(),
        }
    }

    /// As it was when it was made, replacement included, and nobody has asked for a flush.
    pub(crate) fn forget(&mut self) {
        self.requests.0.take();
        self.second.forget_turns();
        self.flush(Flush::All);
    }

    fn flush_all(&mut self) {
        self.large = None;
        self.end_writes();
        self.epoch += 1;
        if self.epoch == EPOCHS {
            self.entries.fill(Entry::default());
            self.second.clear();
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

    /// A context's part of the first level, and what tags have in their low bits for reading and for writing.
    #[inline(always)]
    pub(crate) fn table(&self, context: Context) -> (&[Entry; ENTRIES], u64, u64) {
        (&self.entries.as_chunks::<ENTRIES>().0[context as usize], self.epoch, self.write_epoch)
    }

    #[inline(always)]
    pub(crate) fn version(&self) -> u64 {
        self.version
    }
}

#[cfg(test)]
mod tests;
