//! Milestones: instruction counts at which a tape says where the guest is.

use serde::{Deserialize, Serialize};

/// Where the next milestone is, and the hash of the last one.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Milestones {
    next: u64,
    pub hash: u64,
}

impl Milestones {
    pub fn new(every: u64) -> Self {
        Self { next: if every == 0 { u64::MAX } else { every }, hash: 0 }
    }

    /// The instruction count at which the guest must be left for the next one.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Whether there is one to tell at this instruction count; the next one comes `every` instructions later.
    pub fn take_due(&mut self, icount: u64, every: u64) -> bool {
        let due = icount >= self.next;
        if due {
            self.next = icount + every;
        }
        due
    }
}
