//! Exits for exceptions and memory: #UD, #PF, #DB, EPT, the APIC page, TLB invalidations.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c

use super::handlers::Cx;
use crate::silicon::apic::reg;
use vmtape_abi::{BusOp, BusSpace};
use vmtape_arch::{
    event::EventKind,
    exception::{Exception, PageFaultError, Vector},
    exit::{EptQualification, Resume, ResumeKind},
    note::Note,
    qualification::ApicQualification,
};
use vmtape_kvm_core::{forced, profile::Switch, vmware};
use vmtape_kvm_mmu::fault::FaultCode;

/// KVM_INTERNAL_ERROR_SIMUL_EX.
const SUBERROR_SIMUL_EX: u64 = 2;

/// `handle_exception_nmi`.
pub fn exception_nmi(cx: &mut Cx<'_>) -> Resume {
    let exception = cx.exit.exception;
    let page_fault = exception.vector == Vector::PF;
    let error = PageFaultError::from_bits(cx.exit.error_code);
    // The host has had both. See: vmx.c handle_exception_irqoff()
    if matches!(exception.vector, Vector::MC | Vector::NMI) {
        return Resume::GUEST;
    }
    if exception.vector == Vector::UD {
        return forced::handle_ud(cx.shared, cx.vcpu, cx.state, cx.host);
    }
    if exception.vector == Vector::GP && cx.shared.kvm.options.on(Switch::ENABLE_VMWARE_BACKDOOR) {
        return vmware::handle_gp(cx.shared, cx.vcpu, cx.state, cx.exit.error_code, cx.host);
    }
    if cx.exit.access.delivering.valid.is_set() && (!page_fault || error.rsvd()) {
        cx.userspace(ResumeKind::INTERNAL_ERROR);
        let mut resume = Resume::new(ResumeKind::INTERNAL_ERROR);
        let (vectoring, info) = (cx.exit.info2, u64::from(cx.exit.intr_info));
        resume.data = [SUBERROR_SIMUL_EX, 4, vectoring, info, cx.exit.error_code.into(), 0];
        return resume;
    }
    match exception.vector {
        Vector::PF if cx.shared.kvm.tdp() => cx.intercepted_page_fault(error),
        Vector::PF => shadow_page_fault(cx, error),
        Vector::DB => debug(cx),
        // `vmx_guest_inject_ac`: the host detects no split locks.
        _ => cx.inject(Exception { payload: 0, insn_len: 0, ..exception }),
    }
}

fn debug(cx: &mut Cx<'_>) -> Resume {
    let icebp = cx.exit.intr_info >> 8 & 7 == u32::from(EventKind::PRIVILEGED_SOFTWARE_EXCEPTION.0);
    if icebp {
        // The exit is on the ICEBP itself, whose #DB is a trap.
        cx.state.rip = cx.state.rip.wrapping_add(cx.exit.exception.insn_len.into());
        vmtape_kvm_core::vcpu::clear_shadow(cx.state);
    }
    // Under TF and STI or MOV SS blocking KVM sets BS in the pending debug exceptions, for VM entry's consistency check
    // alone: the injected #DB discards them. See: SDM vol. 3C 27.7.3 Delivery of Pending Debug Exceptions after VM Entry
    cx.inject(Exception { payload: cx.exit.info1, ..Exception::new(Vector::DB) })
}

/// `kvm_handle_page_fault`, without EPT.
fn shadow_page_fault(cx: &mut Cx<'_>, error: PageFaultError) -> Resume {
    let gva = cx.exit.info1;
    cx.note(Note::PageFault { address: gva, code: error.into_bits().into() });
    // A write that allows the gfn's page to be unprotected: the event in delivery may be the reason.
    let code = FaultCode::from_bits(error.into_bits().into());
    cx.shared.kvm.mmu_page_fault(&mut cx.vcpu.core, cx.state, gva, code, cx.host)
}

/// `handle_ept_violation`.
pub fn ept_violation(cx: &mut Cx<'_>) -> Resume {
    let qualification = EptQualification::from_bits(cx.exit.info1);
    let gpa = cx.exit.gpa;
    if !cx.exit.access.delivering.valid && qualification.nmi_unblocking() {
        cx.state.interruptibility = cx.state.interruptibility.with_nmi(true);
    }
    cx.note(Note::PageFault { address: gpa, code: cx.exit.info1 });
    if let Some(resume) = cx.v1_check(Switch::V1_EPT_VIOLATION_CHECK) {
        return resume;
    }
    let present = qualification.perm_r() || qualification.perm_w() || qualification.perm_x();
    // Bit 0 becomes the user flag, which stands for "read" here.
    let code = FaultCode::new()
        .with_u(qualification.read())
        .with_w(qualification.write())
        .with_fetch(qualification.fetch())
        .with_p(present)
        .with_guest_final(qualification.gva_valid() && qualification.gva_translated())
        .with_guest_page(qualification.gva_valid() && !qualification.gva_translated());
    if let Some(rule) = cx.emulates_violation() {
        cx.note(rule.note());
        return cx.emulate(0);
    }
    cx.shared.kvm.mmu_page_fault(&mut cx.vcpu.core, cx.state, gpa, code, cx.host)
}

/// `handle_ept_misconfig`. There are no devices on KVM's fast MMIO bus.
pub fn ept_misconfig(cx: &mut Cx<'_>) -> Resume {
    if let Some(resume) = cx.v1_check(Switch::V1_EPT_MISCONFIG_CHECK) {
        return resume;
    }
    cx.shared.kvm.mmu_page_fault(
        &mut cx.vcpu.core,
        cx.state,
        cx.exit.gpa,
        FaultCode::new().with_rsvd(true),
        cx.host,
    )
}

/// `handle_pml_full`: the log was drained on the way here, as on every exit.
pub fn pml_full(cx: &mut Cx<'_>) -> Resume {
    let qualification = EptQualification::from_bits(cx.exit.info1);
    if !cx.exit.access.delivering.valid && qualification.nmi_unblocking() {
        cx.state.interruptibility = cx.state.interruptibility.with_nmi(true);
    }
    Resume::GUEST
}

/// `handle_apic_access`.
pub fn apic_access(cx: &mut Cx<'_>) -> Resume {
    let qualification = ApicQualification::from_bits(cx.exit.info1);
    let eoi_write = qualification.kind() == 1 && u32::from(qualification.offset()) == reg::EOI;
    if eoi_write && cx.shared.kvm.options.on(Switch::FASTEOI) {
        write_apic(cx, reg::EOI, 0);
        return cx.skip();
    }
    cx.emulate(0)
}

/// `handle_apic_write`: the instruction has completed.
pub fn apic_write(cx: &mut Cx<'_>) -> Resume {
    let register = (cx.exit.info1 & 0xff0) as u32;
    write_apic(cx, register, cx.exit.insn.value);
    Resume::GUEST
}

/// `handle_apic_eoi_induced` and `kvm_apic_set_eoi_accelerated`: only the I/O APIC has yet to hear of it.
pub fn apic_eoi_induced(cx: &mut Cx<'_>) -> Resume {
    let vector = cx.exit.info1 & 0xff;
    let mut op =
        BusOp { space: BusSpace::EOI, write: true.into(), size: 1, data: vector, ..Default::default() };
    cx.host.bus(cx.vcpu.core.id, &mut op);
    Resume::GUEST
}

/// `kvm_apic_write_nodecode` and `kvm_lapic_set_eoi`: the register of the local APIC itself.
fn write_apic(cx: &mut Cx<'_>, register: u32, value: u64) {
    let address = (cx.vcpu.core.apic_base & !0xfff) + u64::from(register);
    let mut op = BusOp {
        space: BusSpace::KERNEL_MMIO,
        write: true.into(),
        size: 4,
        address,
        data: value & 0xffff_ffff,
        pad: 0,
    };
    cx.host.bus(cx.vcpu.core.id, &mut op);
}

/// `handle_invlpg`, without EPT.
pub fn invlpg(cx: &mut Cx<'_>) -> Resume {
    let gva = cx.exit.info1;
    cx.shared.kvm.mmu.invlpg(cx.vcpu.core.id, gva, cx.host);
    cx.skip()
}

/// `handle_invpcid`, without EPT.
pub fn invpcid(cx: &mut Cx<'_>) -> Resume {
    let result = cx.shared.kvm.invpcid(&cx.vcpu.core, cx.state, &cx.exit.insn, cx.host);
    cx.complete(result)
}
