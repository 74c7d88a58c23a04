//! What KVM_GET_MSRS and KVM_SET_MSRS carry.

/// Entries with which the two ioctls fail (MAX_IO_MSRS); one less is the most. See: KVM x86.c msr_io()
pub const MAX_IO_MSRS: usize = 256;

/// `struct kvm_msr_entry`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
