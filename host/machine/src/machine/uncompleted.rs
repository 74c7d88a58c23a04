//! An exit that went to userspace, as the guest was before userspace had done its part.
//!
//! KVM completes such an instruction within the next KVM_RUN: state that is saved before has it still to do, though its device has seen
//! it. Here a guest comes to rest where it has entered again and executed one more instruction, which it then does again, too.
//!
//! See: KVM x86.c complete_fast_pio_in(), complete_fast_pio_out(), complete_emulated_io()

use vmtape_arch::{state::Regs, vcpu::VcpuState};

/// The last exit, if it was one.
pub(super) struct Uncompleted {
    pub vcpu: u32,
    /// Of the machine, when it was completed.
    pub icount: u64,
    pub gpr: [u64; 16],
    pub rip: u64,
}

impl Uncompleted {
    /// The general registers before it was completed. What they do not hold is as it is now.
    pub(super) fn registers(&self, state: &VcpuState) -> Regs {
        Regs::of(&VcpuState { gpr: self.gpr, rip: self.rip, ..*state })
    }
}
