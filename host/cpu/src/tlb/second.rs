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

/// One page.
#[derive(Clone, Copy, Default)]
pub(super) struct Translation {
    /// The page's linear address, with the epoch in its low bits; zero never matches.
    tag: u64,
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
    translations: Vec<Translation>,
    /// For each set, the way whose turn it is.
    turns: Vec<u8>,
}

impl SecondLevel {
    pub(super) fn new(geometry: Geometry) -> Self {
        let translations = vec![Translation::default(); geometry.sets() * geometry.ways()];
        Self { geometry, translations, turns: vec![0; geometry.sets()] }
    }

    /// In each set it is the first way's turn.
    pub(super) fn forget_turns(&mut self) {
        self.turns.fill(0);
    }

    fn ways(&mut self, set: usize) -> &mut [Translation] {
        let ways = self.geometry.ways();
        &mut self.translations[set * ways..][..ways]
    }

    /// The translation of a page, if it is of this epoch.
    pub(super) fn find(&mut self, context: Context, gva: u64, epoch: u64) -> Option<&mut Translation> {
        let ways = self.geometry.ways();
        let start = self.geometry.set(context, gva) * ways;
        let tag = gva & !OFFSET | epoch;
        let is_it = |known: &&mut Translation| known.tag == tag && known.context == context;
        self.translations[start..start + ways].iter_mut().find(is_it)
    }

    /// Enters a mapping. Rights that are known of the same page stay.
    pub(super) fn insert(&mut self, context: Context, gva: u64, mapping: &Mapping, epoch: u64) -> Displaced {
        let page = gva & !OFFSET;
        let tag = page | epoch;
        let set = self.geometry.set(context, gva);
        let (turn, hashed) = (self.turns[set], self.geometry == Geometry::SetAssociative);
        let ways = self.ways(set);
        let count = ways.len();
        let known = ways.iter().position(|old| old.tag == tag && old.context == context);
        let free = || ways.iter().position(|old| old.tag & OFFSET != epoch);
        let way = known.or_else(free);
        let slot = &mut ways[way.unwrap_or(usize::from(turn))];
        let new = Translation {
            tag,
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
        if way.is_none() {
            self.turns[set] = (turn + 1) % count as u8;
        }
        let went = known.is_some() || way.is_none();
        Displaced {
            page: went.then_some((old.context, old.tag & !OFFSET)),
            code: went && hashed && old.fetched,
        }
    }

    /// Drops a page, and where a set has one page only, the one that is there.
    pub(super) fn remove(&mut self, context: Context, gva: u64) {
        let set = self.geometry.set(context, gva);
        let page = gva & !OFFSET;
        let any = self.geometry == Geometry::DirectMapped;
        for known in self.ways(set) {
            if any || known.tag & !OFFSET == page && known.context == context {
                *known = Translation::default();
            }
        }
    }

    /// Epochs begin anew.
    pub(super) fn clear(&mut self) {
        self.translations.fill(Translation::default());
    }
}
