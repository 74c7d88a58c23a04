//! Dirty logging: which pages KVM knows to be written. It may tell of a page that was not; it must tell of each that was.
//!
//! See: KVM virt/kvm/kvm_main.c mark_page_dirty_in_slot(), kvm_vm_ioctl_enable_cap_generic(), as of 6.12

mod bitmap;
mod faults;
mod huge;
mod ioctls;
mod log;
mod protect;
mod ring;
mod rules;
#[cfg(test)]
mod tests;

pub(crate) use log::Source;
pub use log::{DirtyLog, INITIALLY_SET, MANUAL_ENABLE};
pub use ring::MOST_RING_BYTES;
pub use rules::DirtyRules;

use ring::Ring;

use crate::{fault_points::FaultPoint, mmu::Mmu, tdp::pml::Pml};
use vmtape_abi::Host;

impl Mmu {
    /// `kvm_vcpu_mark_page_dirty`.
    pub(crate) fn mark(&mut self, vcpu: u32, gfn: u64, source: Source, host: &mut dyn Host) {
        self.dirty.mark(&self.slots, vcpu, gfn, source, host);
    }

    /// `kvm_vcpu_unmap` of a page that KVM has written: a VMCB or VMCS of L1's.
    pub fn mark_dirty(&mut self, vcpu: u32, gfn: u64, host: &mut dyn Host) {
        self.mark(vcpu, gfn, Source::Unmapped, host);
    }

    /// `vmx_flush_pml_buffer`: what silicon logged since the last exit, newest first where KVM reads the log backwards.
    pub fn flush_pml(&mut self, vcpu: u32, host: &mut dyn Host) {
        if self.dirty.pml_of(vcpu).is_none() {
            return;
        }
        let fault = self.fault(vcpu, FaultPoint::PML_NOT_DRAINED, 0, 0, host);
        if fault == Some(0) {
            return;
        }
        let mut logged = self.dirty.pml_of(vcpu).map(Pml::take).unwrap_or_default();
        if fault.is_some() {
            return;
        }
        if !self.config.dirty.pml_in_write_order {
            logged.reverse();
        }
        for gpa in logged {
            self.mark(vcpu, gpa >> 12, Source::Pml, host);
        }
    }

    /// Whether the vCPU may not enter before userspace has reset its ring (`kvm_dirty_ring_check_request`).
    pub fn ring_is_full(&self, vcpu: u32) -> bool {
        self.dirty.ring_entries != 0 && self.dirty.rings.get(vcpu as usize).is_some_and(Ring::is_soft_full)
    }
}
