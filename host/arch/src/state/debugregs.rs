//! `struct kvm_debugregs`.

use crate::vcpu::VcpuState;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `struct kvm_debugregs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct DebugRegs {
    pub db: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub flags: u64,
    pub reserved: [u64; 9],
}

const _: () = assert!(size_of::<DebugRegs>() == 128);

impl DebugRegs {
    pub fn of(state: &VcpuState) -> Self {
        Self { db: state.dr, dr6: state.dr6, dr7: state.dr7, ..Self::default() }
    }

    pub fn apply(&self, state: &mut VcpuState) {
        (state.dr, state.dr6, state.dr7) = (self.db, self.dr6, self.dr7);
    }
}
