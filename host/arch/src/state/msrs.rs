//! What KVM_GET_MSRS and KVM_SET_MSRS carry.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Entries with which the two ioctls fail (MAX_IO_MSRS); one less is the most. See: KVM x86.c msr_io()
pub const MAX_IO_MSRS: usize = 256;

/// `struct kvm_msr_entry`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct MsrEntry {
    pub index: u32,
    pub reserved: u32,
    pub data: u64,
}

crate::layout!(MsrEntry: 16, data: 8);

impl MsrEntry {
    pub const fn new(index: u32, data: u64) -> Self {
        Self { index, reserved: 0, data }
    }
}

/// `struct kvm_msrs`: the count, padding, and the entries.
pub fn msrs_to_bytes(entries: &[MsrEntry]) -> Vec<u8> {
    let head = [entries.len() as u32, 0];
    [head.as_bytes(), entries.as_bytes()].concat()
}

/// The entries of a `struct kvm_msrs`. `None`: these are not as many bytes as it says.
pub fn msrs_from_bytes(bytes: &[u8]) -> Option<Vec<MsrEntry>> {
    let ([count, _], entries) = <[u32; 2]>::read_from_prefix(bytes).ok()?;
    let size = (count as usize).checked_mul(size_of::<MsrEntry>())?;
    if entries.len() != size {
        return None;
    }
    entries.chunks_exact(size_of::<MsrEntry>()).map(|entry| MsrEntry::read_from_bytes(entry).ok()).collect()
}
