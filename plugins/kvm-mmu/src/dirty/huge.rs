//! Large pages of a slot that logs: split before a write does it, and made again when logging ends.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c kvm_mmu_slot_try_split_huge_pages(), kvm_mmu_zap_collapsible_sptes(), as of 6.12

use crate::{
    large::{frames_shift, round_gfn},
    mmu::Mmu,
    pages::{ENTRIES, entry_address},
    shadow::table_of,
    slots::Slot,
    spte::NONPRESENT,
};
use vmtape_abi::{ALL_VCPUS, FlushScope, Host};

/// KVM_MAX_HUGEPAGE_LEVEL.
const LARGEST: u8 = 3;

/// The first and the last but one frame of a slot.
pub(super) fn frames(slot: &Slot) -> (u64, u64) {
    (slot.gpa >> 12, (slot.gpa + slot.size) >> 12)
}

/// The frames from `start` up to `end` that begin a page at `level`, and the one that `start` lies in.
fn pages(start: u64, end: u64, level: u8) -> impl Iterator<Item = u64> {
    (round_gfn(start, level)..end).step_by(1 << frames_shift(level))
}

impl Mmu {
    /// `kvm_mmu_try_split_huge_pages`: what the TDP MMU maps from frame `start` up to `end`, down to small pages. No flush is
    /// needed: both sizes translate alike, and whoever protects the small ones flushes.
    pub(super) fn split_huge_pages(&mut self, start: u64, end: u64) {
        if !self.config.dirty.eager_page_split {
            return;
        }
        for level in [3, 2] {
            for gfn in pages(start, end, level) {
                for sptep in self.tdp_leaves(gfn, level) {
                    let table = self.tdp_split(self.pages.read(sptep), level);
                    self.pages.write(sptep, self.config.format.nonleaf(table));
                }
            }
        }
    }

    /// A slot has ceased to log: what larger pages could map is mapped by them, now or by the next fault.
    pub(super) fn collapse(&mut self, slot: &Slot, host: &mut dyn Host) {
        let changed = self.shadow_collapse(slot, host) | self.tdp_collapse(slot, host);
        if changed {
            self.flush_tlb(ALL_VCPUS, FlushScope::ALL, 0, host);
        }
    }

    /// `kvm_rmap_zap_collapsible_sptes`: entries of direct shadow pages.
    fn shadow_collapse(&mut self, slot: &Slot, host: &dyn Host) -> bool {
        let (start, end) = frames(slot);
        let mut changed = false;
        for level in 1..LARGEST {
            for gfn in pages(start, end, level) {
                for sptep in self.shadow.leaves(level, gfn).to_vec() {
                    let Some(page) = self.shadow.get(table_of(sptep).0) else { continue };
                    let (role, first) = (page.role, page.gfn);
                    let collapsible = role.direct()
                        && slot.contains(first << 12)
                        && role.level() < self.max_mapping_level(slot, first, LARGEST, host);
                    if collapsible {
                        self.drop_leaf(sptep);
                        changed = true;
                    }
                }
            }
        }
        changed
    }

    /// `kvm_tdp_mmu_zap_collapsible_sptes`, `recover_huge_pages_range` later: tables that a large page can replace.
    fn tdp_collapse(&mut self, slot: &Slot, host: &dyn Host) -> bool {
        let ((start, end), format) = (frames(slot), self.config.format);
        let mut changed = false;
        for level in (2..=LARGEST).rev() {
            for gfn in pages(start, end, level).filter(|gfn| *gfn >= start) {
                if self.max_mapping_level(slot, gfn, LARGEST, host) < level {
                    continue;
                }
                for sptep in self.tdp_tables(gfn, level) {
                    let child = format.address(self.pages.read(sptep));
                    let in_place = self.config.dirty.recovers_in_place;
                    let new = if in_place { self.huge_spte(child, level) } else { Some(NONPRESENT) };
                    if let Some(new) = new {
                        self.pages.write(sptep, new);
                        self.tdp_release(child, level - 1);
                        changed = true;
                    }
                }
            }
        }
        changed
    }

    /// `tdp_mmu_make_huge_spte`: the large page that a table's first leaf becomes, with that leaf's rights.
    fn huge_spte(&self, table: u64, level: u8) -> Option<u64> {
        let format = self.config.format;
        (0..ENTRIES as u64).find_map(|i| {
            let spte = self.pages.read(entry_address(table, i));
            match () {
                () if !format.is_present(spte) => None,
                () if format.is_last(spte, level - 1) => Some(format.huge_of(spte, level)),
                () => self.huge_spte(format.address(spte), level - 1).map(|spte| format.huge_of(spte, level)),
            }
        })
    }
}
