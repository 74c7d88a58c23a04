//! `struct kvm_xcrs`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `struct kvm_xcr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Xcr {
    pub xcr: u32,
    pub reserved: u32,
    pub value: u64,
}

/// `struct kvm_xcrs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Xcrs {
    pub nr_xcrs: u32,
    pub flags: u32,
    /// KVM_MAX_XCRS of them.
    pub xcrs: [Xcr; 16],
    pub padding: [u64; 16],
}

const _: () = assert!(size_of::<Xcrs>() == 392);

impl Xcrs {
    /// XCR0 alone, the only one that KVM knows.
    pub fn of_xcr0(value: u64) -> Self {
        let mut xcrs = [Xcr::default(); 16];
        xcrs[0].value = value;
        Self { nr_xcrs: 1, xcrs, ..Self::default() }
    }
}
