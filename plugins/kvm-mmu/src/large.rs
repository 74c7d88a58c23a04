//! Large pages: how much they map, and where they are not allowed.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c kvm_mmu_gfn_disallow_lpage(), x86.c kvm_alloc_memslot_metadata()

use crate::slots::Slot;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where large pages are not allowed (`kvm_lpage_info`), beside what the slots' edges forbid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargePages(BTreeMap<(u8, u64), u32>);

/// log2 of the frames that an entry at `level` maps.
pub const fn frames_shift(level: u8) -> u32 {
    9 * (level as u32 - 1)
}

/// `gfn_round_for_level`.
pub const fn round_gfn(gfn: u64, level: u8) -> u64 {
    gfn >> frames_shift(level) << frames_shift(level)
}

impl LargePages {
    /// `kvm_mmu_gfn_disallow_lpage`.
    pub fn disallow(&mut self, gfn: u64) {
        for level in 2..=3 {
            *self.0.entry((level, gfn >> frames_shift(level))).or_default() += 1;
        }
    }

    /// `kvm_mmu_gfn_allow_lpage`.
    pub fn allow(&mut self, gfn: u64) {
        for level in 2..=3 {
            let key = (level, gfn >> frames_shift(level));
            if let Some(count) = self.0.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&key);
                }
            }
        }
    }

    /// Whether a large page at `level` may map the frame. See: KVM x86.c kvm_alloc_memslot_metadata()
    pub(crate) fn allowed(&self, slot: &Slot, gfn: u64, level: u8) -> bool {
        let first = round_gfn(gfn, level) << 12;
        let size = 1u64 << (frames_shift(level) + 12);
        let aligned = (slot.gpa ^ slot.hpa) & (size - 1) == 0;
        let inside = first >= slot.gpa && first + size <= slot.gpa + slot.size;
        aligned && inside && !self.0.contains_key(&(level, gfn >> frames_shift(level)))
    }
}
