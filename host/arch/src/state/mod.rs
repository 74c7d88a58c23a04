//! The state of a VM in the words of KVM's ioctls: the list of its kinds, and the kernel's structures, byte for byte.
//!
//! The bytes are those that a VMM gets and sets, so they mean the same under every build and every backend.
//!
//! See: Linux 6.12 arch/x86/include/uapi/asm/kvm.h, include/uapi/linux/kvm.h

mod clock;
mod debugregs;
mod events;
mod kind;
mod lapic;
mod mp_state;
mod msrs;
mod nested;
mod registers;
mod regs;
mod sregs;
mod xcrs;
mod xsave;

pub use clock::{ClockData, clock_flags};
pub use debugregs::DebugRegs;
pub use events::{VcpuEvents, VcpuEventsFlags, interrupt_shadow};
pub use kind::{BackendState, Compared, MachineState, Owner, STATE, StateKind, StateRow};
pub use lapic::LapicState;
pub use mp_state::MpState;
pub use msrs::{MAX_IO_MSRS, MsrEntry, msrs_from_bytes, msrs_to_bytes};
pub use nested::{NestedFlags, NestedFormat, NestedState, VmxNestedHeader};
pub use registers::RegisterName;
pub use regs::Regs;
pub use sregs::{KernelSegment, KernelTable, Sregs2};
pub use xcrs::{Xcr, Xcrs};
pub use xsave::{Xsave, xfeature};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A structure of the kernel's and its bytes.
pub trait Layout: Sized {
    /// `None`: these are not as many bytes as the structure has.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;

    fn to_bytes(&self) -> Vec<u8>;
}

impl<T: FromBytes + IntoBytes + Immutable> Layout for T {
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
}
