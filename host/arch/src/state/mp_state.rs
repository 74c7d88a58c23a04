//! `struct kvm_mp_state`.

use crate::vcpu::Activity;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `struct kvm_mp_state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct MpState {
    pub mp_state: u32,
}

const _: () = assert!(size_of::<MpState>() == 4);

impl MpState {
    pub const RUNNABLE: Self = Self { mp_state: 0 };
    pub const UNINITIALIZED: Self = Self { mp_state: 1 };
    pub const INIT_RECEIVED: Self = Self { mp_state: 2 };
    pub const HALTED: Self = Self { mp_state: 3 };
    pub const SIPI_RECEIVED: Self = Self { mp_state: 4 };

    /// A vCPU that has shut down is runnable: it is the VMM that runs it no more.
    pub fn of(activity: Activity) -> Self {
        match activity {
            Activity::HLT => Self::HALTED,
            Activity::WAIT_FOR_SIPI => Self::INIT_RECEIVED,
            _ => Self::RUNNABLE,
        }
    }

    /// `None`: not a state of x86.
    pub fn activity(self) -> Option<Activity> {
        match self {
            Self::RUNNABLE => Some(Activity::ACTIVE),
            Self::HALTED => Some(Activity::HLT),
            Self::UNINITIALIZED | Self::INIT_RECEIVED | Self::SIPI_RECEIVED => Some(Activity::WAIT_FOR_SIPI),
            _ => None,
        }
    }
}
