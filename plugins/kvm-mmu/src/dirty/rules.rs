//! What of dirty logging changed between releases.

use serde::{Deserialize, Serialize};

/// What of dirty logging changed between releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirtyRules {
    /// KVM drains the log of page modifications oldest entry first.
    pub pml_in_write_order: bool,
    /// kvm.eager_page_split: large pages are split when logging begins, not by the first write to each.
    pub eager_page_split: bool,
    /// ... and what KVM_CLEAR_DIRTY_LOG names is split to its last page.
    pub splits_last: bool,
    /// When logging ends small pages become large ones at once; otherwise they go, and the next fault maps a large one.
    pub recovers_in_place: bool,
    /// A locked instruction that KVM emulates writes without marking the page.
    pub atomics_unmarked: bool,
    /// KVM_CLEAR_DIRTY_LOG may end with a slot whose size is no multiple of 64 pages.
    pub clears_to_end: bool,
    /// A large page that may not be written gives way to small ones.
    pub drops_large: bool,
    /// The rights that CR0.WP=0 adds are those of the direct shadow page too.
    pub wp_before_page: bool,
    /// What maps memory for L2 tells of writes by a fault, not by the log of page modifications.
    pub protects_for_l2: bool,
    /// Silicon logs no page modifications while L2 runs.
    pub pml_off_for_l2: bool,
}

impl DirtyRules {
    /// As in 6.12.
    pub const V6_12: Self = Self {
        pml_in_write_order: false,
        eager_page_split: true,
        splits_last: true,
        recovers_in_place: false,
        atomics_unmarked: false,
        clears_to_end: true,
        drops_large: true,
        wp_before_page: true,
        protects_for_l2: true,
        pml_off_for_l2: true,
    };
}
