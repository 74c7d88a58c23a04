//! `struct kvm_regs`.

use crate::{
    regs::Rflags,
    vcpu::{VcpuState, gpr},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// General registers by their encoding number, in the kernel's order.
const ORDER: [usize; 16] = [
    gpr::RAX,
    gpr::RBX,
    gpr::RCX,
    gpr::RDX,
    gpr::RSI,
    gpr::RDI,
    gpr::RSP,
    gpr::RBP,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
];

/// `struct kvm_regs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Regs {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 to R15.
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
}

const _: () = assert!(size_of::<Regs>() == 144);

impl Regs {
    pub fn of(state: &VcpuState) -> Self {
        Self { gpr: ORDER.map(|number| state.gpr[number]), rip: state.rip, rflags: state.rflags }
    }

    pub fn apply(&self, state: &mut VcpuState) {
        for (number, value) in ORDER.into_iter().zip(self.gpr) {
            state.gpr[number] = value;
        }
        state.rip = self.rip;
        state.rflags = Rflags::from_bits(self.rflags).with_always_one(true).into_bits();
    }
}
