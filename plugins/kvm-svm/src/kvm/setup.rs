//! What KVM writes into the VMCB, and when.
//!
//! See: KVM arch/x86/kvm/svm/svm.c init_vmcb(), svm_set_cr0(), svm_vcpu_after_set_cpuid()

use super::msr;
use crate::{
    silicon::vmcb::{MsrMap, Vmcb},
    vm::{Shared, SvmVcpu},
};
use vmtape_abi::Host;
use vmtape_arch::{exception::Vector, regs::Cr0, vcpu::VcpuState};
use vmtape_kvm_core::{Vcpu, cpuid::feature, cr::MmuEffect, profile::Switch};

/// `svm_vcpu_create`, `init_vmcb`.
pub fn create(shared: &Shared, id: u32) -> SvmVcpu {
    let core = Vcpu::new(id, msr::UCODE_REV);
    let exceptions = bit(Vector::UD) | bit(Vector::MC) | bit(Vector::AC) | bit(Vector::DB);
    let vmcb =
        Vmcb { npt: shared.kvm.tdp(), cr0: true, exceptions, debug_registers: true, ..Default::default() };
    let mut vcpu = SvmVcpu { core, vmcb, msrs: Default::default(), debug_registers_owned: false };
    after_set_cpuid(shared, &mut vcpu);
    vcpu
}

const fn bit(vector: Vector) -> u32 {
    1 << vector.0
}

/// Without nested paging every page fault is KVM's. The second posting of 2020 wanted those of a guest narrower than its host
/// too (`svm_need_pf_intercept`).
fn needs_page_faults(shared: &Shared, vcpu: &SvmVcpu) -> bool {
    let narrow = vcpu.core.cpuid.maxphyaddr() < shared.kvm.silicon.phys_bits;
    !shared.kvm.tdp() || narrow && shared.kvm.options.on(Switch::V2_SVM_NEED_PF_INTERCEPT)
}

/// `svm_vcpu_after_set_cpuid`, `init_vmcb_after_set_cpuid`, `svm_recalc_instruction_intercepts`.
pub fn after_set_cpuid(shared: &Shared, vcpu: &mut SvmVcpu) {
    let page_faults = needs_page_faults(shared, vcpu);
    let cpuid = &vcpu.core.cpuid;
    let vmcb = &mut vcpu.vmcb;
    vmcb.exceptions = vmcb.exceptions & !bit(Vector::PF) | if page_faults { bit(Vector::PF) } else { 0 };
    vmcb.invpcid = !shared.kvm.tdp() || !cpuid.has(feature::INVPCID);
    vmcb.rdtscp = !cpuid.has(feature::RDTSCP);
    vmcb.msr = MsrMap {
        spec_ctrl: false,
        pred_cmd: cpuid.has(feature::AMD_IBPB),
        flush_cmd: cpuid.has(feature::FLUSH_L1D),
        sysenter: !cpuid.intel_compatible(),
    };
}

/// `svm_set_cr0`, the part that decides about CR0's intercepts: silicon runs with PG and WP under shadow paging, and
/// never with CD or NW (KVM_X86_QUIRK_CD_NW_CLEARED).
pub fn update_cr0_intercept(vcpu: &mut SvmVcpu, state: &VcpuState) {
    let guest = Cr0::from_bits(state.cr0);
    let mut silicon = guest.with_cd(false).with_nw(false);
    if !vcpu.vmcb.npt {
        silicon = silicon.with_pg(true).with_wp(true);
    }
    vcpu.vmcb.cr0 = silicon != guest;
}

/// Does to MMU and TLB what a control-register write asks for.
pub fn apply(
    shared: &mut Shared,
    vcpu: &mut SvmVcpu,
    state: &VcpuState,
    effect: MmuEffect,
    host: &mut dyn Host,
) {
    let id = vcpu.core.id;
    update_cr0_intercept(vcpu, state);
    if effect.new_pgd {
        shared.kvm.mmu.new_pgd(id, state, host);
    }
    if effect.reset {
        shared.kvm.mmu.reset_context(id, state, host);
    } else {
        shared.kvm.mmu.init(id, state);
    }
    if effect.unload {
        shared.kvm.mmu.unload(id, host);
    }
    if effect.flush_guest || effect.unload || effect.reset {
        shared.kvm.mmu.flush_guest(id, host);
    } else if effect.flush_current {
        shared.kvm.mmu.flush_current(id, host);
        if !shared.kvm.tdp() && state.cr4().pcide() {
            shared.kvm.mmu.free_roots_of_pcid(id, state.cr3 & 0xfff, host);
        }
    }
}
