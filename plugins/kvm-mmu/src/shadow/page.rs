//! The shadow pages of a VM, and how they are found.

use crate::{
    large::round_gfn,
    pages::Pages,
    role::{CpuidRole, PageRole},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `struct kvm_mmu_page`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShadowPage {
    pub gfn: u64,
    pub role: PageRole,
    /// More of the role, under a patch; otherwise zero.
    pub cpuid: CpuidRole,
    pub root_count: u32,
    pub unsync: bool,
    /// Entries below which something is unsync.
    pub(super) unsync_children: [u64; 8],
    /// Addresses of the entries that point here.
    pub(super) parents: Vec<u64>,
    /// What each leaf maps: frame and rights (`shadowed_translation`); empty on direct pages.
    pub(super) translation: Vec<(u64, u8)>,
    pub write_flooding: u32,
    /// Order of creation, by which pages are recycled.
    pub(super) born: u64,
}

impl ShadowPage {
    pub(super) fn has_unsync_children(&self) -> bool {
        self.unsync_children.iter().any(|word| *word != 0)
    }

    /// `sp_has_gptes`.
    pub fn has_gptes(&self) -> bool {
        !self.role.direct()
    }
}

/// The shadow pages of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// By page number.
    pub(super) pages: Vec<Option<Box<ShadowPage>>>,
    /// Valid pages by frame, oldest first (`mmu_page_hash`).
    pub(super) by_gfn: BTreeMap<u64, Vec<u64>>,
    /// Valid pages by age (`active_mmu_pages`).
    pub(super) active: BTreeMap<u64, u64>,
    /// Leaf entries that map a frame, by level and first frame.
    pub(super) rmap: BTreeMap<(u8, u64), Vec<u64>>,
    /// Frames that must not become writable (`gfn_write_track`).
    pub(super) tracked: BTreeMap<u64, u32>,
    /// `indirect_shadow_pages`.
    pub(super) indirect: u32,
    pub(super) births: u64,
    /// A root was zapped: vCPUs drop it before they run (KVM_REQ_MMU_FREE_OBSOLETE_ROOTS).
    pub(super) obsolete_roots: bool,
    /// Entries changed that silicon may have cached.
    pub(super) flush: bool,
}

impl Shadow {
    pub(crate) fn sp(&self, table: u64) -> &ShadowPage {
        self.pages[Pages::number(table)]
            .as_deref()
            .expect("a shadow page lives as long as an entry points to it")
    }

    pub(crate) fn sp_mut(&mut self, table: u64) -> &mut ShadowPage {
        self.pages[Pages::number(table)]
            .as_deref_mut()
            .expect("a shadow page lives as long as an entry points to it")
    }

    pub(crate) fn get(&self, table: u64) -> Option<&ShadowPage> {
        self.pages.get(Pages::number(table))?.as_deref()
    }

    pub(super) fn get_mut(&mut self, table: u64) -> Option<&mut ShadowPage> {
        self.pages.get_mut(Pages::number(table))?.as_deref_mut()
    }

    /// The page of a level at an address, which may come of a bent entry and lead anywhere.
    pub(super) fn at_level(&self, table: u64, level: u8) -> Option<u64> {
        self.get(table).is_some_and(|sp| sp.role.level() == level).then_some(table)
    }

    /// `for_each_gfn_valid_sp_with_gptes`: newest first.
    pub(super) fn with_gptes(&self, gfn: u64) -> Vec<u64> {
        if self.indirect == 0 {
            return Vec::new();
        }
        let pages = self.by_gfn.get(&gfn).map_or(&[][..], Vec::as_slice);
        pages.iter().rev().copied().filter(|table| self.sp(*table).has_gptes()).collect()
    }

    /// Whether an entry is in a shadow page for L2.
    pub(crate) fn is_guest_mode(&self, sptep: u64) -> bool {
        self.get(table_of(sptep).0).is_some_and(|sp| sp.role.guest_mode())
    }

    /// Addresses of the leaves at a level that map frames up to `end`.
    pub(crate) fn leaves_within(&self, level: u8, first_gfn: u64, end: u64) -> Vec<u64> {
        self.rmap.range((level, first_gfn)..(level, end)).flat_map(|(_, sptes)| sptes).copied().collect()
    }

    /// The leaf entries at a level that map a frame.
    pub(crate) fn leaves(&self, level: u8, gfn: u64) -> &[u64] {
        self.rmap.get(&(level, round_gfn(gfn, level))).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn is_tracked(&self, gfn: u64) -> bool {
        self.tracked.contains_key(&gfn)
    }
}

/// The table that holds an entry, and the entry's index.
pub(crate) const fn table_of(sptep: u64) -> (u64, usize) {
    (sptep & !0xfff, (sptep >> 3 & 0x1ff) as usize)
}
