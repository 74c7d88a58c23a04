//! Dirty logging: which pages KVM knows to be written. It may tell of a page that was not; it must tell of each that was.
//!
//! See: KVM virt/kvm/kvm_main.c mark_page_dirty_in_slot(), kvm_vm_ioctl_enable_cap_generic(), as of 6.12

mod bitmap;
mod ioctls;
mod log;
mod protect;
mod ring;
#[cfg(test)]
mod tests;

pub use log::{DirtyLog, INITIALLY_SET, MANUAL_ENABLE};
pub use ring::MOST_RING_BYTES;

use ring::Ring;

use crate::mmu::Mmu;

impl Mmu {
    /// `kvm_vcpu_mark_page_dirty`.
    pub fn mark_dirty(&mut self, vcpu: u32, gfn: u64) {
        self.dirty.mark(&self.slots, vcpu, gfn);
    }

    /// `vmx_flush_pml_buffer`: what silicon logged since the last exit, newest first where KVM reads the log backwards.
    pub fn flush_pml(&mut self, vcpu: u32) {
        let Some(pml) = self.dirty.pml.get_mut(vcpu as usize) else { return };
        let mut logged = pml.take();
        if !self.config.pml_in_write_order {
            logged.reverse();
        }
        for gpa in logged {
            self.mark_dirty(vcpu, gpa >> 12);
        }
    }

    /// Whether the vCPU may not enter before userspace has reset its ring (`kvm_dirty_ring_check_request`).
    pub fn ring_is_full(&self, vcpu: u32) -> bool {
        self.dirty.ring_entries != 0 && self.dirty.rings.get(vcpu as usize).is_some_and(Ring::is_soft_full)
    }
}
