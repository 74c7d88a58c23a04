//! `struct kvm_clock_data`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `ClockData::flags`.
pub mod clock_flags {
    /// KVM_CLOCK_TSC_STABLE: all vCPUs see one clock.
    pub const TSC_STABLE: u32 = 2;
    /// KVM_CLOCK_REALTIME: `realtime` is valid.
    pub const REALTIME: u32 = 4;
    /// KVM_CLOCK_HOST_TSC: `host_tsc` is valid.
    pub const HOST_TSC: u32 = 8;
    /// KVM_CLOCK_VALID_FLAGS.
    pub const ALL: u32 = TSC_STABLE | REALTIME | HOST_TSC;
}

/// `struct kvm_clock_data`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct ClockData {
    /// Nanoseconds.
    pub clock: u64,
    pub flags: u32,
    pub pad0: u32,
    pub realtime: u64,
    pub host_tsc: u64,
    pub pad: [u32; 4],
}

const _: () = assert!(size_of::<ClockData>() == 48);
