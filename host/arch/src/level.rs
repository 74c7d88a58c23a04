//! Whose doing an event is, and which tables a step of a walk read.

use crate::layout;
use crate::open_enum;
use serde::{Deserialize, Serialize};

open_enum! {
    /// The level of virtualization that was running: a guest, or a guest's own guest.
    pub struct Level(u8) {
        L1 = 0 => "L1",
        L2 = 1 => "L2",
    }
}

open_enum! {
    /// The dimension of a page walk.
    pub struct Dimension(u8) {
        /// The tables of whoever runs: from linear to guest physical addresses.
        GUEST = 0 => "guest",
        /// L1's nested tables: from L2's guest physical addresses to L1's.
        NESTED = 1 => "nested",
        /// The backend's own tables: from guest physical to host physical addresses.
        HOST = 2 => "host",
    }
}

open_enum! {
    /// The stage of a two-dimensional walk in which a fault arose.
    /// See: APM vol. 2 15.25.6 Nested versus Guest Page Faults, Fault Ordering; SDM vol. 3C Table 28-7
    pub struct Stage(u8) {
        /// The tables of whoever runs: an ordinary page fault.
        GUEST = 0 => "guest table",
        /// The nested walk of the final address.
        NESTED_FINAL = 1 => "final nested",
        /// The nested walk of a guest table's address.
        NESTED_TABLE = 2 => "nested table walk",
    }
}

/// Where a note belongs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub level: Level,
    /// Of a step of a walk; otherwise `GUEST`.
    pub dimension: Dimension,
}

layout!(Place: 2, dimension: 1);

impl Place {
    /// L1's, and no step of a nested walk: nearly everything.
    pub const L1: Self = Self { level: Level::L1, dimension: Dimension::GUEST };

    /// One word: the level in the low byte, the dimension in the next.
    pub const fn packed(self) -> u32 {
        self.level.0 as u32 | (self.dimension.0 as u32) << 8
    }

    /// The inverse of `packed`.
    pub const fn unpacked(value: u32) -> Self {
        Self { level: Level(value as u8), dimension: Dimension((value >> 8) as u8) }
    }
}
