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

pub use log::{CAP_MANUAL_PROTECT2, CAP_RING, CAP_RING_ACQ_REL, DirtyLog};
pub use ring::{Entry, Ring};

use crate::mmu::Mmu;
use vmtape_abi::Errno;

impl Mmu {
    /// KVM_ENABLE_CAP, as far as it is about dirty logging.
    pub fn enable_dirty_cap(&mut self, cap: u32, flags: u32, arg: u64) -> Result<(), Errno> {
        let created = !self.vcpus.is_empty();
        self.dirty.enable_cap(cap, flags, arg, created, self.config.pml)
    }

    /// `kvm_vcpu_mark_page_dirty`.
    pub(crate) fn mark_dirty(&mut self, vcpu: u32, gfn: u64) {
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
