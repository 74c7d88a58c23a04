//! What KVM writes into the VM-execution controls, and when.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c vmx_vcpu_create(), vmx_update_exception_bitmap(), vmx_vcpu_after_set_cpuid()

use super::msr;
use crate::{
    silicon::controls::{ApicMode, Controls, cr0_guest_owned, cr4_guest_owned},
    vm::{Shared, VmxVcpu},
};
use vmtape_abi::{FlushScope, Host};
use vmtape_arch::{exception::Vector, vcpu::VcpuState};
use vmtape_kvm_core::{
    Vcpu,
    cpuid::{Feature, GuestCpuid},
    cr::{self, MmuEffect},
    profile::Switch,
};

/// RDRAND and RDSEED in the guest's CPUID: without them the instructions exit.
const RDRAND: Feature = Feature(1, 0, vmtape_kvm_core::cpuid::Reg::Ecx, 30);
const RDSEED: Feature = Feature(7, 0, vmtape_kvm_core::cpuid::Reg::Ebx, 18);
/// IA32_APIC_BASE bits.
const X2APIC: u64 = 1 << 10;
const ENABLE: u64 = 1 << 11;

/// `vmx_vcpu_create`.
pub fn create(shared: &Shared, id: u32) -> VmxVcpu {
    let core = Vcpu::new(id, msr::UCODE_REV);
    let mut vcpu = VmxVcpu {
        core,
        controls: Controls::default(),
        msrs: Default::default(),
        debug_registers_owned: false,
    };
    let ept = shared.kvm.tdp();
    vcpu.controls.cr0_mask = !cr0_guest_owned(ept);
    vcpu.controls.cr3_exiting = !ept;
    vcpu.controls.mov_dr_exiting = true;
    after_set_cpuid(shared, &mut vcpu);
    update_apic_mode(shared, &mut vcpu);
    vcpu
}

/// `vmx_vcpu_after_set_cpuid` and what else follows the guest's CPUID.
pub fn after_set_cpuid(shared: &Shared, vcpu: &mut VmxVcpu) {
    let cpuid = &vcpu.core.cpuid;
    let controls = &mut vcpu.controls;
    controls.cr4_mask = !cr4_guest_owned(shared.kvm.tdp(), cr::cr4_reserved(cpuid));
    controls.rdrand_exiting = !cpuid.has(RDRAND);
    controls.rdseed_exiting = !cpuid.has(RDSEED);
    update_exception_bitmap(shared, cpuid, controls);
}

/// `vmx_update_exception_bitmap`.
fn update_exception_bitmap(shared: &Shared, cpuid: &GuestCpuid, controls: &mut Controls) {
    let bit = |vector: Vector| 1u32 << vector.0;
    controls.exceptions = bit(Vector::UD) | bit(Vector::MC) | bit(Vector::DB) | bit(Vector::AC);
    let page_faults = shared.needs_pf_intercept(cpuid);
    if page_faults {
        controls.exceptions |= bit(Vector::PF);
    }
    (controls.pfec_mask, controls.pfec_match) = shared.pf_mask_and_match(page_faults);
}

/// `vmx_set_virtual_apic_mode`.
pub fn update_apic_mode(shared: &Shared, vcpu: &mut VmxVcpu) {
    let base = vcpu.core.apic_base;
    let apicv = shared.kvm.options.on(Switch::ENABLE_APICV);
    let access_page = shared.kvm.options.on(Switch::FLEXPRIORITY);
    vcpu.controls.apic = match (base & ENABLE != 0, base & X2APIC != 0) {
        (true, true) => ApicMode::X2Apic,
        (true, false) if access_page => ApicMode::Access,
        _ => ApicMode::None,
    };
    vcpu.controls.apicv = apicv;
}

/// Does to MMU and TLB what a control-register write asks for.
pub fn apply(shared: &mut Shared, id: u32, state: &VcpuState, effect: MmuEffect, host: &mut dyn Host) {
    let mmu = &mut shared.kvm.mmu;
    if effect.new_pgd {
        mmu.new_pgd(id, state, host);
    }
    if effect.reset {
        mmu.reset_context(id, state, host);
    }
    if effect.unload {
        mmu.unload(id, host);
    }
    if effect.flush_guest {
        mmu.flush_guest(id, host);
    } else if effect.flush_current {
        mmu.flush_current(id, host);
    }
    // What silicon cached under the old paging mode is of no use; a changed CR3 alone keeps global entries.
    if effect.reset || effect.unload {
        host.flush_tlb(id, FlushScope::ALL, 0);
    }
}
