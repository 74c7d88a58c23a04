//! VMLOAD and VMSAVE as silicon executes them for a guest: RAX goes through the nested page table, or is the host's where a
//! hypervisor left them to its guest without saying that they are virtual.
//!
//! See: APM 15.33.1 Virtual VMSAVE and VMLOAD

use super::exits;
use crate::{
    kvm::nested::vmcb12::{self, Mapped},
    vm::{Shared, SvmVcpu},
};
use vmtape_abi::Host;
use vmtape_arch::{
    access::{Access, AccessKind, Verdict},
    exception::Exception,
    exit::{Exit, StimulusKind},
    regs::Cr0,
    sensitive::{Sensitive, svm},
    vcpu::VcpuState,
};
use vmtape_kvm_mmu::{memory_type::Caching, tdp::silicon::GuestAccess, walk::WalkAccess};

const PAGE_OFFSET: u64 = vmtape_arch::PAGE_SIZE - 1;

/// Executes one. FAULT: the address is no VMCB's. EXIT: the page is not mapped.
pub fn execute(
    shared: &mut Shared,
    v: &SvmVcpu,
    state: &mut VcpuState,
    insn: &Sensitive,
    host: &mut dyn Host,
    exit: &mut Exit,
    fault: &mut Exception,
) -> Verdict {
    let gpa = insn.value;
    if gpa & PAGE_OFFSET != 0 || gpa >> shared.kvm.silicon.phys_bits != 0 {
        *fault = Exception::gp(0);
        return Verdict::FAULT;
    }
    let saves = insn.number == svm::VMSAVE;
    let hpa = if v.running.vmcb.control.virt_ext.v_vmload_vmsave() {
        let kind = if saves { AccessKind::WRITE } else { AccessKind::READ };
        let access = Access { gva: gpa, kind, size: 8, delivering: state.delivering, ..Default::default() };
        match translate(shared, v, state, &access, host) {
            GuestAccess::Mapped(mapping) => mapping.hpa,
            GuestAccess::Fault(_) => return Verdict::NATIVE,
            GuestAccess::Nested(stop) => {
                *exit = exits::nested(&stop, state, &access);
                (exit.stimulus, exit.insn) = (StimulusKind::SENSITIVE, *insn);
                return Verdict::EXIT;
            }
        }
    } else {
        gpa
    };
    if let Ok(mut mapped) = Mapped::at(hpa, vmcb12::VMLOAD, host) {
        if saves {
            mapped.vmcb.save.vmsave(state);
            mapped.write_back(host);
        } else {
            mapped.vmcb.save.vmload(state);
        }
    }
    Verdict::NATIVE
}

/// Guest physical addresses are what a guest without paging has.
fn translate(
    shared: &mut Shared,
    v: &SvmVcpu,
    state: &VcpuState,
    access: &Access,
    host: &mut dyn Host,
) -> GuestAccess {
    let flat = VcpuState { cr0: Cr0::from_bits(state.cr0).with_pg(false).into_bits(), ..*state };
    let (caching, wanted) = (Caching::of(v.running.vmcb.save.g_pat), WalkAccess::from(access));
    shared.kvm.mmu.tdp_access(v.core.id, &flat, access.gva, &wanted, caching, host).0
}
