//! The second level: every translation that the processor keeps. What it holds decides when a guest's page tables are
//! walked, so its geometry belongs to the interpreter's [revision](crate::revision).

use super::{Context, OFFSET};
use bitfield_struct::bitfield;
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
/// Of a set, unless it has one page only.
const WAYS: usize = 8;
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
            Self::SetAssociative => WAYS,
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

/// One page, whose tag stands beside it: in eight bytes, so that a set is two lines of the host's cache.
#[bitfield(u64)]
pub(super) struct Translation {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) fetch: bool,
    /// Code was fetched from it.
    fetched: bool,
    #[bits(8)]
    __: u8,
    /// The number of the host physical page less that of the linear one.
    #[bits(52)]
    distance: u64,
}

impl Translation {
    fn to(page: u64, mapping: &Mapping) -> Self {
        const BITS: u64 = u64::MAX >> PAGE_SHIFT;
        Self::new()
            .with_read(mapping.read.is_set())
            .with_write(mapping.write.is_set())
            .with_fetch(mapping.fetch.is_set())
            .with_distance((mapping.hpa >> PAGE_SHIFT).wrapping_sub(page >> PAGE_SHIFT) & BITS)
    }

    /// What to add to a linear address for the host physical one.
    pub(super) fn addend(self) -> u64 {
        self.distance() << PAGE_SHIFT
    }

    fn allows(self, kind: AccessKind) -> bool {
        match kind {
            AccessKind::READ => self.read(),
            AccessKind::WRITE => self.write(),
            _ => self.fetch(),
        }
    }

    /// What the first level may have for an access: not fetches, before one came here and is remembered. `None`: it is not allowed.
    pub(super) fn used_for(&mut self, kind: AccessKind) -> Option<Self> {
        if !self.allows(kind) {
            return None;
        }
        self.set_fetched(self.fetched() | (kind == AccessKind::FETCH));
        Some(self.with_fetch(self.fetch() && self.fetched()))
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

/// Below bit 63, and above the widest address.
const CONTEXT: u32 = 60;

/// The page's linear address, with the epoch in its low bits; zero never matches. The context stands in bits that are equal in all
/// linear addresses' upper halves, so that no two pages have one tag.
fn tag(context: Context, page: u64, epoch: u64) -> u64 {
    (page & !OFFSET | epoch) ^ (context as u64) << CONTEXT
}

/// Whose page a tag is, and its linear address.
fn untag(tag: u64) -> (Context, u64) {
    let upper = (tag as i64 >> (u64::BITS - 1)) as u64;
    let context = match (tag ^ upper) >> CONTEXT & 3 {
        0 => Context::User,
        1 => Context::Supervisor,
        2 => Context::SupervisorAc,
        _ => Context::Slow,
    };
    (context, tag & !OFFSET ^ (context as u64) << CONTEXT)
}

/// The first of a set's ways of which something is true. All are looked at, which is faster than to stop.
#[inline(always)]
fn first(tags: &[u64], is: impl Fn(u64) -> bool) -> Option<usize> {
    let found = match <&[u64; WAYS]>::try_from(tags) {
        Ok(tags) => (0..WAYS).fold(0u32, |found, way| found | u32::from(is(tags[way])) << way),
        Err(_) => tags.first().is_some_and(|tag| is(*tag)).into(),
    };
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

    /// Enters a mapping, and gives the translation that it has become. Rights that are known of the same page stay.
    pub(super) fn insert(
        &mut self,
        context: Context,
        gva: u64,
        mapping: &Mapping,
        epoch: u64,
    ) -> (Displaced, &mut Translation) {
        let page = gva & !OFFSET;
        let (set, tag) = (self.set(context, gva), tag(context, gva, epoch));
        let number = set.start / set.len();
        let (turn, hashed) = (self.turns[number], self.geometry == Geometry::SetAssociative);
        let tags = &self.tags[set.clone()];
        let known = first(tags, |known| known == tag);
        let way = known.or_else(|| first(tags, |known| known & OFFSET != epoch));
        let at = set.start + way.unwrap_or(usize::from(turn));
        let slot = &mut self.translations[at];
        let new = Translation::to(page, mapping);
        if known.is_some() && slot.addend() == new.addend() {
            slot.set_read(slot.read() | new.read());
            slot.set_write(slot.write() | new.write());
            slot.set_fetch(slot.fetch() | new.fetch());
            return (Displaced::default(), slot);
        }
        let went = known.is_some() || way.is_none();
        let displaced =
            Displaced { page: went.then(|| untag(self.tags[at])), code: went && hashed && slot.fetched() };
        *slot = new;
        self.tags[at] = tag;
        if way.is_none() {
            self.turns[number] = (turn + 1) % set.len() as u8;
        }
        (displaced, slot)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_tells_whose_page_it_is() {
        for context in [Context::User, Context::Supervisor, Context::SupervisorAc] {
            for page in [0, 0x1000, 0x7fff_ffff_f000, 0xffff_8000_0000_0000, 0xff00_0000_0000_1000] {
                assert_eq!(untag(tag(context, page | 0x123, 7)), (context, page));
            }
        }
    }
}
