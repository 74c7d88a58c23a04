//! All digests of a vCPU in one.

use serde::{Deserialize, Serialize};

/// Digests between two tellings.
const EVERY: u32 = 128;

/// An odd number whose multiples are spread well.
/// See: Knuth, The Art of Computer Programming vol. 3, 6.4
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Two chains that differ do so for as long as they go on alike.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Chain {
    value: u64,
    /// Digests since it was told last.
    untold: u32,
}

impl Chain {
    pub(super) fn add(&mut self, digest: u64) {
        self.value = (self.value ^ digest).wrapping_mul(SPREAD).rotate_left(29);
        self.untold += 1;
    }

    /// The value, if it is time to tell it.
    pub(super) fn take(&mut self, at_end: bool) -> Option<u64> {
        let due = self.untold >= if at_end { 1 } else { EVERY };
        due.then(|| {
            self.untold = 0;
            self.value
        })
    }

    /// Goes on from another value. True: it was this one's.
    pub(super) fn replace(&mut self, value: u64) -> bool {
        self.untold = 0;
        std::mem::replace(&mut self.value, value) == value
    }
}
