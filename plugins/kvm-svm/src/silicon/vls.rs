//! VMLOAD and VMSAVE as silicon executes them for a guest: RAX goes through the nested page table.
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
use vmtape_kvm_mmu::{
    tdp::silicon::{Caching, GuestAccess},
    walk::WalkAccess,
};

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
    let kind = if saves { AccessKind::WRITE } else { AccessKind::READ };
    let access = Access { gva: gpa, kind, size: 8, delivering: state.delivering, ..Default::default() };
    // Guest physical addresses are what a guest without paging has.
    let flat = VcpuState { cr0: Cr0::from_bits(state.cr0).with_pg(false).into_bits(), ..*state };
    let (caching, wanted) = (Caching::of(v.running.vmcb.save.g_pat), WalkAccess::from(&access));
    let (answer, _) = shared.kvm.mmu.tdp_access(v.core.id, &flat, gpa, &wanted, caching, host);
    let mapping = match answer {
        GuestAccess::Mapped(mapping) => mapping,
        GuestAccess::Fault(_) => return Verdict::NATIVE,
        GuestAccess::Nested(stop) => {
            *exit = exits::nested(&stop, state, &access);
            (exit.stimulus, exit.insn) = (StimulusKind::SENSITIVE, *insn);
            return Verdict::EXIT;
        }
    };
    if let Ok(mut mapped) = Mapped::at(mapping.hpa, vmcb12::VMLOAD, host) {
        if saves {
            mapped.vmcb.save.vmsave(state);
            mapped.write_back(host);
        } else {
            mapped.vmcb.save.vmload(state);
        }
    }
    Verdict::NATIVE
}
