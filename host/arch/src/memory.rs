//! Memory of a guest that its host may not have: a page that has not arrived yet, or one that the host does not give.

use crate::open_enum;

open_enum! {
    /// What became of a read or a write of memory.
    pub struct MemoryStatus(u32) {
        /// It is done; of `Host::fault_in`: the pages are there.
        READY = 0 => "ready",
        /// A page has not arrived yet (post-copy), and nothing was done. Whoever may sleep asks `Host::fault_in`, and then
        /// again. From `fault_in` itself: the wait was interrupted, and the page is still not there.
        MISSING = 1 => "missing",
        /// The address is no RAM, or the host does not give the page, and nothing was done: -EFAULT in the kernel.
        REFUSED = 2 => "refused",
        /// Memory holds something else than was compared with.
        CHANGED = 3 => "changed",
    }
}

open_enum! {
    /// What comes of waiting for a page that is not there.
    pub struct Supply(u32) {
        /// It arrives while the one who needs it waits, as a page of a post-copy migration does.
        DEMAND = 0 => "demand",
        /// It does not arrive: the wait ends with a signal.
        NEVER = 1 => "never",
        /// The host refuses it, as it does memory that is unmapped or poisoned.
        REFUSED = 2 => "refused",
    }
}

impl Supply {
    /// What [`MemoryStatus`] a wait ends with.
    pub fn answer(self) -> MemoryStatus {
        match self {
            Self::DEMAND => MemoryStatus::READY,
            Self::NEVER => MemoryStatus::MISSING,
            _ => MemoryStatus::REFUSED,
        }
    }

    /// What there is without a wait.
    pub fn at_once(self) -> MemoryStatus {
        match self {
            Self::DEMAND | Self::NEVER => MemoryStatus::MISSING,
            _ => MemoryStatus::REFUSED,
        }
    }
}
