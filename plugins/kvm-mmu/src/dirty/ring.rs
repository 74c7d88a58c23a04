//! The dirty ring of a vCPU: entries that KVM pushes, userspace harvests and KVM resets.
//!
//! See: KVM virt/kvm/dirty_ring.c, as of 6.12

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use vmtape_abi::Errno;

/// Bytes of `struct kvm_dirty_gfn`, and KVM_DIRTY_RING_MAX_ENTRIES.
const ENTRY_SIZE: u64 = 16;
const MAX_ENTRIES: u64 = 65_536;
/// Bytes of the largest ring.
pub const MOST_RING_BYTES: u64 = ENTRY_SIZE * MAX_ENTRIES;
/// KVM_DIRTY_RING_RSVD_ENTRIES, and what one flush of the buffer of page-modification logging pushes.
const RESERVED: u32 = 64;
const PML_RESERVED: u32 = 512;

/// A page of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub slot: u32,
    pub offset: u64,
    /// Userspace has taken it.
    pub harvested: bool,
}

/// A ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    soft_limit: u32,
    /// The entries in use, oldest first.
    used: VecDeque<Entry>,
}

impl Ring {
    /// `kvm_dirty_ring_get_rsvd_entries`.
    pub(super) fn reserved(pml: bool) -> u32 {
        RESERVED + if pml { PML_RESERVED } else { 0 }
    }

    /// `kvm_vm_ioctl_enable_dirty_log_ring`: entries in so many bytes.
    pub(super) fn entries_of(bytes: u64, pml: bool) -> Result<u32, Errno> {
        let least = (u64::from(Self::reserved(pml)) * ENTRY_SIZE).max(0x1000);
        if !bytes.is_power_of_two() || bytes < least {
            return Err(Errno::EINVAL);
        }
        if bytes > MOST_RING_BYTES {
            return Err(Errno::E2BIG);
        }
        Ok((bytes / ENTRY_SIZE) as u32)
    }

    pub(super) fn new(entries: u32, reserved: u32) -> Self {
        Self { soft_limit: entries.saturating_sub(reserved), used: VecDeque::new() }
    }

    /// `kvm_dirty_ring_push`.
    pub(super) fn push(&mut self, slot: u32, offset: u64) {
        self.used.push_back(Entry { slot, offset, harvested: false });
    }

    /// `kvm_dirty_ring_soft_full`.
    pub(super) fn is_soft_full(&self) -> bool {
        self.used.len() >= self.soft_limit as usize
    }

    /// What userspace does with the ring that it has mapped: takes every entry that it has not seen, and marks it.
    pub fn harvest(&mut self) -> Vec<Entry> {
        let fresh = self.used.iter_mut().filter(|entry| !entry.harvested);
        fresh.map(|entry| std::mem::replace(entry, Entry { harvested: true, ..*entry })).collect()
    }

    /// Up to the first entry that is not harvested.
    pub(super) fn reset(&mut self) -> Vec<Entry> {
        let count = self.used.iter().take_while(|entry| entry.harvested).count();
        self.used.drain(..count).collect()
    }
}
