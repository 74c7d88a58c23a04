//! Whether silicon's walks would end as they did: the number that the host compares instead of asking.

use crate::memory_type::Caching;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a walk hangs on besides the guest's memory and registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Basis {
    /// Changes of KVM's private tables.
    pub(crate) changes: u64,
    /// Of the slots.
    pub(crate) generation: u64,
    pub(crate) root: (u64, [u64; 4]),
    pub(crate) levels: u8,
    pub(crate) nested: bool,
    pub(crate) guest_mode: bool,
    pub(crate) caching: Option<Caching>,
}

/// A vCPU's number for what its walks hang on now. It is no part of any state: all are equal, and a copy has none yet.
#[derive(Debug, Default)]
pub(crate) struct Epoch {
    basis: Option<Basis>,
    number: u64,
}

impl Clone for Epoch {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Epoch {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Epoch {}

impl Epoch {
    /// The number of what walks hang on now.
    pub(crate) fn of(&mut self, basis: Basis) -> u64 {
        /// Restored states have the counters of others, so the numbers are given out once per process.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if self.basis != Some(basis) {
            *self = Self { basis: Some(basis), number: NEXT.fetch_add(1, Ordering::Relaxed) };
        }
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASIS: Basis = Basis {
        changes: 1,
        generation: 2,
        root: (0xc000_0000, [0; 4]),
        levels: 4,
        nested: false,
        guest_mode: false,
        caching: None,
    };

    #[test]
    fn no_number_comes_back() {
        let mut epoch = Epoch::default();
        let first = epoch.of(BASIS);
        assert_eq!(epoch.of(BASIS), first);
        let second = epoch.of(Basis { changes: 2, ..BASIS });
        let mut copy = epoch.clone();
        let numbers = [second, epoch.of(BASIS), copy.of(BASIS)];
        assert!(numbers.iter().all(|number| *number > first) && numbers.is_sorted());
        assert_ne!(numbers[1], numbers[2], "a copy goes its own way");
    }
}
