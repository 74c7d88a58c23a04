//! The second level: every translation that the processor keeps. What it holds decides when a guest's page tables are
//! walked, so its geometry belongs to the interpreter's [revision](crate::revision).

use super::{Context, OFFSET};
use vmtape_arch::{
    PAGE_SHIFT,
    access::{AccessKind, Mapping},
};

/// How many translations there are, and which one goes for a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Geometry {
    /// A table of 1024 pages for each of the three contexts. Code that was fetched lately is not fetched again before a flush, though
    /// its page has gone.
    DirectMapped,
    /// 1024 sets of eight pages for all contexts together, the set chosen by a hash, so that no stride of addresses falls into
    /// one. In a full set they go by turns. Code is fetched at the beginning of each block.
    #[default]
    SetAssociative,
}

const SETS: usize = 1024;
const CONTEXTS: usize = 3;

impl Geometry {
    const fn sets(self) -> usize {
        match self {
            Self::DirectMapped => CONTEXTS * SETS,
            Self::SetAssociative => SETS,
        }
    }

    const fn ways(self) -> usize {
        match self {
            Self::DirectMapped => 1,
            Self::SetAssociative => 8,
        }
    }

    fn set(self, context: Context, gva: u64) -> usize {
        let page = gva >> PAGE_SHIFT;
        match self {
            Self::DirectMapped => context as usize * SETS + page as usize % SETS,
            Self::SetAssociative => {
                // 2^64 divided by the golden ratio: neighbours fall far apart.
                let mixed = (page << 2 | context as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (mixed >> (u64::BITS - SETS.ilog2())) as usize
            }
        }
    }
}

/// What may be done with a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) fetch: bool,
}

impl Rights {
    pub(super) fn allow(self, kind: AccessKind) -> bool {
        match kind {
            AccessKind::READ => self.read,
            AccessKind::WRITE => self.write,
            _ => self.fetch,
        }
    }
}

/// One page, whose tag stands beside it.
#[derive(Clone, Copy, Default)]
pub(super) struct Translation {
    page: u64,
    /// What to add to a linear address for the host physical one.
    pub(super) addend: u64,
    context: Context,
    pub(super) rights: Rights,
    /// Code was fetched from it.
    fetched: bool,
}

impl Translation {
    /// What the first level may allow: not fetches, before one came here and is remembered.
    pub(super) fn used_for(&mut self, kind: AccessKind) -> Rights {
        self.fetched |= kind == AccessKind::FETCH;
        Rights { fetch: self.rights.fetch && self.fetched, ..self.rights }
    }
}

/// What an insertion has displaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Displaced {
    /// The page that went, and whose it was.
    pub(super) page: Option<(Context, u64)>,
    /// Code that was fetched may have to be fetched again.
    pub(super) code: bool,
}

pub(super) struct SecondLevel {
    geometry: Geometry,
    /// The tags of the translations, so that those of a set are looked at together.
    tags: Vec<u64>,
    translations: Vec<Translation>,
    /// For each set, the way whose turn it is.
    turns: Vec<u8>,
}

/// The page's linear address, with the epoch in its low bits; zero never matches. The context stands in bits that are equal in all
/// linear addresses' upper halves, so that no two pages have one tag.
fn tag(context: Context, page: u64, epoch: u64) -> u64 {
    /// Below bit 63, and above the widest address.
    const CONTEXT: u32 = 60;
    (page & !OFFSET | epoch) ^ (context as u64) << CONTEXT
}

/// The first of a set's ways of which something is true. All are looked at, which is faster than to stop.
#[inline(always)]
fn first(tags: &[u64], is: impl Fn(u64) -> bool) -> Option<usize> {
    let found = (0..).zip(tags).fold(0u32, |found, (way, tag)| found | u32::from(is(*tag)) << way);
    (found != 0).then(|| found.trailing_zeros() as usize)
}

impl SecondLevel {
    pub(super) fn new(geometry: Geometry) -> Self {
        let count = geometry.sets() * geometry.ways();
        let (tags, translations) = (vec![0; count], vec![Translation::default(); count]);
        Self { geometry, tags, translations, turns: vec![0; geometry.sets()] }
    }

    /// In each set it is the first way's turn.
    pub(super) fn forget_turns(&mut self) {
        self.turns.fill(0);
    }

    /// Where a page's set is.
    #[inline(always)]
    fn set(&self, context: Context, gva: u64) -> std::ops::Range<usize> {
        let ways = self.geometry.ways();
        let start = self.geometry.set(context, gva) * ways;
        start..start + ways
    }

    /// The translation of a page, if it is of this epoch.
    pub(super) fn find(&mut self, context: Context, gva: u64, epoch: u64) -> Option<&mut Translation> {
        let (set, tag) = (self.set(context, gva), tag(context, gva, epoch));
        let way = first(&self.tags[set.clone()], |known| known == tag)?;
        Some(&mut self.translations[set.start + way])
    }

    /// Enters a mapping. Rights that are known of the same page stay.
    pub(super) fn insert(&mut self, context: Context, gva: u64, mapping: &Mapping, epoch: u64) -> Displaced {
        let page = gva & !OFFSET;
        let (set, tag) = (self.set(context, gva), tag(context, gva, epoch));
        let number = set.start / set.len();
        let (turn, hashed) = (self.turns[number], self.geometry == Geometry::SetAssociative);
        let tags = &self.tags[set.clone()];
        let known = first(tags, |known| known == tag);
        let way = known.or_else(|| first(tags, |known| known & OFFSET != epoch));
        let at = set.start + way.unwrap_or(usize::from(turn));
        let slot = &mut self.translations[at];
        let new = Translation {
            page,
            addend: mapping.hpa.wrapping_sub(page),
            context,
            fetched: false,
            rights: Rights {
                read: mapping.read.is_set(),
                write: mapping.write.is_set(),
                fetch: mapping.fetch.is_set(),
            },
        };
        let old = *slot;
        if known.is_some() && old.addend == new.addend {
            let rights = &mut slot.rights;
            rights.read |= new.rights.read;
            rights.write |= new.rights.write;
            rights.fetch |= new.rights.fetch;
            return Displaced::default();
        }
        *slot = new;
        self.tags[at] = tag;
        if way.is_none() {
            self.turns[number] = (turn + 1) % set.len() as u8;
        }
        let went = known.is_some() || way.is_none();
        Displaced { page: went.then_some((old.context, old.page)), code: went && hashed && old.fetched }
    }

    /// Drops a page, and where a set has one page only, the one that is there.
    pub(super) fn remove(&mut self, context: Context, gva: u64) {
        let (set, page) = (self.set(context, gva), tag(context, gva, 0) & !OFFSET);
        let any = self.geometry == Geometry::DirectMapped;
        for known in &mut self.tags[set] {
            if any || *known & !OFFSET == page {
                *known = 0;
            }
        }
    }

    /// Epochs begin anew.
    pub(super) fn clear(&mut self) {
        self.tags.fill(0);
    }
}
