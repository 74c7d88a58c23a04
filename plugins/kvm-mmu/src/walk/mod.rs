//! THE page walk: silicon under EPT and NPT, the nested page table itself, KVM's software walk and the shadow page
//! tables all go through [`walk`], with the width as parameter.
//!
//! Rules: SDM vol. 3A chapter 4 Paging; APM vol. 2 chapter 5 Page Translation and Protection.

mod paging;
#[cfg(test)]
mod tests;

pub use paging::{Mode, Paging, WalkAccess};

use bitfield_struct::bitfield;
use vmtape_arch::{
    access::AccessKind,
    exception::PageFaultError,
    memory_type::{MemoryType, Pat},
    paging::Pte,
};

/// Access rights in KVM's ACC_* bits.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Acc {
    pub exec: bool,
    pub write: bool,
    pub user: bool,
    #[bits(5)]
    __: u8,
}

impl Acc {
    /// ACC_ALL.
    pub const ALL: Self = Self::new().with_exec(true).with_write(true).with_user(true);

    /// Rights that both give.
    pub const fn and(self, other: Self) -> Self {
        Self::from_bits(self.into_bits() & other.into_bits())
    }
}

/// When a walk sets accessed and dirty bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdPolicy {
    /// Never: entries are only looked at.
    None,
    /// Once the final address is translated: Intel's silicon, and KVM's software walk.
    /// See: KVM arch/x86/kvm/mmu/paging_tmpl.h walk_addr_generic(), update_accessed_dirty_bits()
    AfterTranslation,
    /// Before the final address is translated, so that a nested fault leaves them set: AMD's silicon.
    /// Whether the dirty bit goes with the accessed bit is not documented. Nor is what a walk that ends in a page fault does
    /// to the upper entries: it leaves them alone here, QEMU's software CPU marks each one as it passes.
    /// See: KVM arch/x86/kvm/svm/svm.c svm_hardware_setup(), the comment on allow_smaller_maxphyaddr
    BeforeTranslation { dirty: bool },
}

/// How an update of an entry went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    Done,
    /// Silicon believes that it is done, but this is what the entry holds now: a fault.
    Lost(u64),
    /// The entry is no longer what was read: walk again.
    Changed,
    /// The entry lies in memory that cannot be written; the update is skipped.
    ReadOnly,
}

/// What happens during a walk, for those who trace it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// An entry was read (or taken from the PDPTE registers).
    Element { level: u8, entry: u64 },
    /// An entry's accessed bit is about to be set.
    Accessed { gpa: u64 },
    /// A leaf's dirty bit is about to be set.
    Dirty { gpa: u64 },
}

/// The rights of a linear address once its leaf is known, as an EPT violation reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    pub acc: Acc,
    pub level: u8,
}

/// The memory that a walk reads. Addresses are those in the entries: guest physical for a guest's tables.
pub trait Tables {
    /// What ends a walk from below: a nested fault, or nothing at all.
    type Stop;

    /// Reads an entry of `size` bytes. `None`: no memory there, which KVM's walk takes for not present.
    fn read(&mut self, address: u64, size: u8) -> Result<Option<u64>, Self::Stop>;

    /// Compares and exchanges an entry.
    fn update(&mut self, address: u64, old: u64, new: u64, size: u8) -> Result<Update, Self::Stop>;

    /// Translates the final address; where nothing lies below, there is nothing to do.
    fn translate(&mut self, _address: u64, _kind: AccessKind, _leaf: Leaf) -> Result<(), Self::Stop> {
        Ok(())
    }

    /// Hears of each step.
    fn seen(&mut self, _event: Seen) {}
}

/// One entry that a walk used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub address: u64,
    pub before: u64,
    pub after: u64,
    /// Rights accumulated over the levels above this entry.
    pub above: Acc,
    pub level: u8,
}

/// The entries of a walk, top down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    steps: [Step; 5],
    len: u8,
}

impl Steps {
    fn push(&mut self, step: Step) {
        self.steps[self.len as usize] = step;
        self.len += 1;
    }

    /// The entry used at `level`, if the walk got there (PAE's third level is in registers and has none).
    pub fn at(&self, level: u8) -> Option<&Step> {
        self.iter().find(|step| step.level == level)
    }
}

impl std::ops::Deref for Steps {
    type Target = [Step];

    fn deref(&self) -> &[Step] {
        &self.steps[..self.len as usize]
    }
}

/// A walk that reached its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The physical address (guest physical in a guest's walk) of the access.
    pub gpa: u64,
    /// Level of the leaf; 0 where paging is off.
    pub level: u8,
    /// log2 of the page.
    pub page_shift: u8,
    /// Rights over all levels.
    pub acc: Acc,
    pub pkey: u8,
    pub global: bool,
    /// The leaf's dirty bit after the walk.
    pub dirty: bool,
    /// The entry of the PAT that the leaf selects. `None`: paging is off.
    pub pat: Option<u8>,
}

impl Walk {
    /// What this PAT says of the page. See: SDM vol. 3C 29.3.7.2: write-back where paging is off
    pub fn memory_type(&self, pat: Pat) -> MemoryType {
        self.pat.map_or(MemoryType::WB, |index| pat.entry(index))
    }
}

/// Why a walk did not reach its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure<S> {
    /// A page fault by these tables, with its complete error code.
    Fault(PageFaultError),
    /// Something below the tables; A and D may have been set in them.
    Stopped(S),
}

/// Entries may change under a walk only if the tables map themselves; twice round is then enough.
const RETRIES: u32 = 8;

/// Walks the tables for one access; `steps` receives the entries that were read, also of a walk that fails.
///
/// The order is the architecture's: each entry is read (which may stop from below), then checked for P, then for reserved
/// bits; permissions are checked once the leaf is known; only then is the final address translated.
pub fn walk<T: Tables>(
    paging: &Paging,
    gva: u64,
    access: &WalkAccess,
    policy: AdPolicy,
    tables: &mut T,
    steps: &mut Steps,
) -> Result<Walk, Failure<T::Stop>> {
    for _ in 0..RETRIES {
        if let Some(walk) = Walker::new(paging, gva, access, tables, steps).run(policy)? {
            return Ok(walk);
        }
    }
    // Nobody else writes during a walk, so this is not reached; the entries as they stand are the answer.
    let walk = Walker::new(paging, gva, access, tables, steps).run(AdPolicy::None)?;
    Ok(walk.expect("a walk that writes nothing has nothing to repeat"))
}

/// One pass over the tables.
struct Walker<'a, T: Tables> {
    paging: &'a Paging,
    gva: u64,
    access: &'a WalkAccess,
    tables: &'a mut T,
    steps: &'a mut Steps,
    /// Bits of each entry that were lost on their way to memory.
    lost: [u64; 5],
}

impl<'a, T: Tables> Walker<'a, T> {
    fn new(
        paging: &'a Paging,
        gva: u64,
        access: &'a WalkAccess,
        tables: &'a mut T,
        steps: &'a mut Steps,
    ) -> Self {
        steps.len = 0;
        Self { paging, gva, access, tables, steps, lost: [0; 5] }
    }

    /// `None`: an entry changed meanwhile.
    fn run(mut self, policy: AdPolicy) -> Result<Option<Walk>, Failure<T::Stop>> {
        let mut walk = match self.paging.mode {
            Mode::None => self.flat(),
            _ => self.descend()?,
        };
        let leaf = Leaf { acc: walk.acc, level: walk.level };
        let write = self.access.kind == AccessKind::WRITE;
        if let AdPolicy::BeforeTranslation { dirty } = policy
            && !self.mark(write && dirty)?
        {
            return Ok(None);
        }
        self.tables.translate(walk.gpa, self.access.kind, leaf).map_err(Failure::Stopped)?;
        if policy != AdPolicy::None && !self.mark(write)? {
            return Ok(None);
        }
        let (_, d) = self.paging.accessed_dirty();
        let lost = self.lost[usize::from(self.steps.len.saturating_sub(1))];
        walk.dirty = self.steps.last().is_none_or(|step| Paging::has_all(step.after | lost, d));
        Ok(Some(walk))
    }

    fn flat(&self) -> Walk {
        Walk {
            gpa: self.gva & 0xffff_ffff,
            level: 0,
            page_shift: 12,
            acc: Acc::ALL,
            pkey: 0,
            global: false,
            dirty: true,
            pat: None,
        }
    }

    fn fault<R>(&self, error: PageFaultError) -> Result<R, Failure<T::Stop>> {
        let error =
            PageFaultError::from_bits(error.into_bits() | self.paging.describe(self.access).into_bits());
        Err(Failure::Fault(error))
    }

    /// From the top table to the leaf, with all checks.
    fn descend(&mut self) -> Result<Walk, Failure<T::Stop>> {
        let (paging, gva) = (self.paging, self.gva);
        let mut level = paging.mode.levels();
        let mut table = paging.root;
        if paging.mode == Mode::Pae {
            let pdpte = self.pdpte((gva >> 30 & 3) as usize)?;
            self.tables.seen(Seen::Element { level, entry: pdpte.into_bits() });
            if !pdpte.p() {
                return self.fault(PageFaultError::new());
            }
            if paging.pdpt.is_some() && pdpte.into_bits() & paging.reserved_in_pdpte() != 0 {
                return self.fault(PageFaultError::new().with_p(true).with_rsvd(true));
            }
            table = pdpte.address();
            level -= 1;
        }
        let mut acc = Acc::ALL;
        loop {
            let entry = self.read_entry(table, level, acc)?;
            acc = acc.and(paging.entry_access(entry));
            if paging.is_leaf(entry, level) {
                return self.leaf(entry, level, acc);
            }
            table = entry.address();
            level -= 1;
        }
    }

    /// A page-directory pointer of PAE. It has no accessed bit, and so is no step.
    fn pdpte(&mut self, index: usize) -> Result<Pte, Failure<T::Stop>> {
        let Some(table) = self.paging.pdpt else { return Ok(Pte::from_bits(self.paging.pdptr[index])) };
        let read = self.tables.read(table + 8 * index as u64, 8).map_err(Failure::Stopped)?;
        Ok(Pte::from_bits(read.unwrap_or(0)))
    }

    /// Reads the entry for the address in a table, and checks what it must satisfy before it is used.
    fn read_entry(&mut self, table: u64, level: u8, above: Acc) -> Result<Pte, Failure<T::Stop>> {
        let paging = self.paging;
        let size = paging.mode.entry_size();
        let address = table + paging.mode.index(self.gva, level) * u64::from(size);
        let value = match self.tables.read(address, size) {
            Ok(Some(value)) => value,
            Ok(None) => return self.fault(PageFaultError::new()),
            Err(stop) => return Err(Failure::Stopped(stop)),
        };
        self.tables.seen(Seen::Element { level, entry: value });
        self.steps.push(Step { address, before: value, after: value, above, level });
        let entry = Pte::from_bits(value);
        if !paging.is_present(entry) {
            return self.fault(PageFaultError::new());
        }
        if paging.is_reserved(entry, level) {
            return self.fault(PageFaultError::new().with_p(true).with_rsvd(true));
        }
        Ok(entry)
    }

    fn leaf(&self, entry: Pte, level: u8, acc: Acc) -> Result<Walk, Failure<T::Stop>> {
        let pkey = if self.paging.pke { entry.pkey() } else { 0 };
        if let Err(error) = self.paging.permit(acc, pkey, self.access) {
            return self.fault(error);
        }
        Ok(Walk {
            gpa: self.paging.leaf_address(entry, level, self.gva),
            level,
            page_shift: self.paging.mode.shift(level) as u8,
            acc,
            pkey,
            global: entry.g() && !matches!(self.paging.mode, Mode::Ept { .. }),
            dirty: Paging::has_all(entry.into_bits(), self.paging.accessed_dirty().1),
            pat: Some(entry.pat_index(level)),
        })
    }

    /// Sets A in every entry and, if asked, D in the leaf. False: an entry changed meanwhile.
    fn mark(&mut self, dirty: bool) -> Result<bool, Failure<T::Stop>> {
        let size = self.paging.mode.entry_size();
        let (a, d) = self.paging.accessed_dirty();
        let leaf = self.steps.len.wrapping_sub(1);
        for i in 0..self.steps.len {
            let step = self.steps.steps[i as usize];
            let old = step.after;
            let believed = old | self.lost[i as usize];
            let mut new = old;
            if !Paging::has_all(believed, a) {
                self.tables.seen(Seen::Accessed { gpa: step.address });
                new |= a;
            }
            if i == leaf && dirty && !Paging::has_all(believed, d) {
                self.tables.seen(Seen::Dirty { gpa: step.address });
                new |= d;
            }
            if new == old {
                continue;
            }
            match self.tables.update(step.address, old, new, size) {
                Ok(Update::Done) => self.steps.steps[i as usize].after = new,
                Ok(Update::Lost(stored)) => {
                    self.steps.steps[i as usize].after = stored;
                    self.lost[i as usize] |= new & !stored;
                }
                Ok(Update::Changed) => return Ok(false),
                Ok(Update::ReadOnly) => {}
                Err(stop) => return Err(Failure::Stopped(stop)),
            }
        }
        Ok(true)
    }
}
