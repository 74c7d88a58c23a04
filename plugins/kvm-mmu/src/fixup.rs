//! A page fault that silicon decided with its own width, corrected for a narrower guest.
//!
//! See: KVM arch/x86/kvm/x86.c kvm_fixup_and_inject_pf_error(), commit 897861479c06

use crate::{mmu::Mmu, walk::WalkAccess};
use vmtape_abi::Host;
use vmtape_arch::{
    access::AccessKind,
    exception::{Exception, PageFaultError},
    vcpu::VcpuState,
};

impl Mmu {
    /// `kvm_fixup_and_inject_pf_error`: the fault that a CPU of the guest's width would raise.
    pub fn fixup_page_fault(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        gva: u64,
        error: PageFaultError,
        host: &mut dyn Host,
    ) -> Exception {
        let unchanged = Exception::pf(gva, error);
        if !error.p() {
            return unchanged;
        }
        let kind = match () {
            () if error.w() => AccessKind::WRITE,
            () if error.i() => AccessKind::FETCH,
            () => AccessKind::READ,
        };
        let access = WalkAccess { kind, user: error.u(), implicit: false };
        match self.walk_guest(vcpu, state, gva, &access, access.pferr(), host) {
            Ok(_) => unchanged,
            Err(fault) => fault.exception(),
        }
    }
}
