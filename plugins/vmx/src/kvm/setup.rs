//! What KVM writes into the VM-execution controls, and when.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c vmx_vcpu_create(), vmx_update_exception_bitmap(), vmx_vcpu_after_set_cpuid()

use super::msr;
use crate::{
    kvm::{cpus::LoadedVmcs, vmcs::Written},
    silicon::{
        controls::{Controls, cr0_guest_owned, cr4_guest_owned},
        operation::VmcsId,
        vmcs::{CpuBased, ExitControls, PinBased, Secondary, Vmcs, VmcsField as F},
    },
    vm::{Shared, VmxVcpu, apic_access_hpa},
};
use vmtape_abi::{FlushScope, Host};
use vmtape_arch::{
    PAGE_SIZE,
    exception::Vector,
    host::Silicon,
    regs::{Cr0, Cr4, Efer},
    vcpu::VcpuState,
};
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

/// __KERNEL_CS, __KERNEL_DS and GDT_ENTRY_TSS of Linux. See: arch/x86/include/asm/segment.h
const KERNEL_CS: u16 = 0x10;
const KERNEL_DS: u16 = 0x18;
const KERNEL_TSS: u16 = 0x40;
/// See: Documentation/arch/x86/x86_64/mm.rst
const CPU_ENTRY_AREA: u64 = 0xffff_fe00_0000_0000;
const KERNEL_TEXT: u64 = 0xffff_ffff_8100_0000;
/// WB, WP, UC-, UC, WB, WC, UC-, WT. See: Linux arch/x86/mm/pat/memtype.c pat_bp_init()
const HOST_PAT: u64 = 0x0407_0506_0007_0106;

/// IA32_VMX_BASIC[30:0] of our silicon.
const REVISION_ID: u32 = 1;

/// Where a VMCS lies in the host's memory: below the MSR bitmaps of as many vCPUs as there can be.
pub fn region(silicon: &Silicon, vmcs: VmcsId) -> u64 {
    const MOST_VCPUS: u64 = 1024;
    let below = MOST_VCPUS + 2 * u64::from(vmcs.vcpu) + u64::from(vmcs.shadow) + 1;
    apic_access_hpa(silicon) - PAGE_SIZE * below
}

/// `vmx_vcpu_create`.
pub fn create(shared: &Shared, id: u32) -> VmxVcpu {
    let core = Vcpu::new(id, msr::UCODE_REV);
    let mut vcpu = VmxVcpu {
        core,
        vmcs01: Vmcs::new(REVISION_ID),
        controls: Controls::default(),
        msrs: Default::default(),
        debug_registers_owned: false,
        owns_spec_ctrl: false,
        vmcs: LoadedVmcs { has_shadow: shared.kvm.options.on(Switch::SHADOW_VMCS), ..LoadedVmcs::default() },
        written: Written::default(),
    };
    init_vmcs(shared, &mut vcpu.vmcs01, id);
    set_constant_host_state(&mut vcpu.vmcs01);
    after_set_cpuid(shared, &mut vcpu);
    update_apic_mode(shared, &mut vcpu);
    vcpu
}

/// `init_vmcs`, `setup_vmcs_config`.
fn init_vmcs(shared: &Shared, vmcs: &mut Vmcs, id: u32) {
    let options = &shared.kvm.options;
    let (ept, access_page) = (shared.kvm.tdp(), options.on(Switch::FLEXPRIORITY));
    let pin =
        PinBased::new().with_external_interrupt_exiting(true).with_nmi_exiting(true).with_virtual_nmis(true);
    let cpu = CpuBased::new()
        .with_tsc_offsetting(true)
        .with_hlt_exiting(true)
        .with_invlpg_exiting(!ept)
        .with_mwait_exiting(true)
        .with_rdpmc_exiting(true)
        .with_cr3_load_exiting(!ept)
        .with_cr3_store_exiting(!ept)
        .with_tpr_shadow(access_page)
        .with_mov_dr_exiting(true)
        .with_unconditional_io_exiting(true)
        .with_msr_bitmaps(true)
        .with_monitor_exiting(true)
        .with_secondary(true);
    let secondary = Secondary::new()
        .with_ept(ept)
        .with_rdtscp(true)
        .with_vpid(true)
        .with_wbinvd_exiting(true)
        .with_unrestricted_guest(options.on(Switch::UNRESTRICTED_GUEST))
        .with_invpcid(ept)
        .with_pml(ept && shared.kvm.mmu.config.pml);
    vmcs.write(F::PIN_BASED_VM_EXEC_CONTROL, pin.into_bits());
    vmcs.set_cpu_based(cpu);
    vmcs.set_secondary(secondary);
    vmcs.write(F::VIRTUAL_PROCESSOR_ID, id + 1);
    vmcs.write(F::VMCS_LINK_POINTER, u64::MAX);
    vmcs.write(F::CR0_GUEST_HOST_MASK, !cr0_guest_owned(ept));
    // Below the APIC-access page.
    let below = apic_access_hpa(&shared.kvm.silicon) - PAGE_SIZE * (u64::from(id) + 1);
    vmcs.write(F::MSR_BITMAP, below);
    if access_page {
        vmcs.write(F::APIC_ACCESS_ADDR, apic_access_hpa(&shared.kvm.silicon));
    }
}

/// `vmx_set_constant_host_state`, `vmx_prepare_switch_to_guest`, `vmx_vcpu_load_vmcs`: the registers of a 64-bit Linux as far as VM
/// entry checks them. Which values they have among the legal ones nobody sees.
fn set_constant_host_state(vmcs: &mut Vmcs) {
    let exit = ExitControls::new()
        .with_save_debug_controls(true)
        .with_host_address_space_size(true)
        .with_acknowledge_interrupt(true)
        .with_load_pat(true)
        .with_load_efer(true);
    vmcs.write(F::VM_EXIT_CONTROLS, exit.into_bits());
    let cr0 = Cr0::new().with_pe(true).with_mp(true).with_et(true).with_ne(true).with_wp(true).with_am(true);
    vmcs.write(F::HOST_CR0, cr0.with_pg(true).into_bits());
    let cr4 = Cr4::new().with_pse(true).with_pae(true).with_mce(true).with_pge(true).with_vmxe(true);
    vmcs.write(F::HOST_CR4, cr4.with_osfxsr(true).with_osxsave(true).into_bits());
    vmcs.write(F::HOST_IA32_PAT, HOST_PAT);
    let efer = Efer::new().with_sce(true).with_lme(true).with_lma(true).with_nxe(true);
    vmcs.write(F::HOST_IA32_EFER, efer.into_bits());
    vmcs.write(F::HOST_CS_SELECTOR, KERNEL_CS);
    vmcs.write(F::HOST_SS_SELECTOR, KERNEL_DS);
    vmcs.write(F::HOST_TR_SELECTOR, KERNEL_TSS);
    for field in [F::HOST_GDTR_BASE, F::HOST_IDTR_BASE, F::HOST_TR_BASE, F::HOST_IA32_SYSENTER_ESP] {
        vmcs.write(field, CPU_ENTRY_AREA);
    }
    vmcs.write(F::HOST_IA32_SYSENTER_EIP, KERNEL_TEXT);
    vmcs.write(F::HOST_RIP, KERNEL_TEXT);
}

/// `vmx_vcpu_after_set_cpuid` and what else follows the guest's CPUID.
pub fn after_set_cpuid(shared: &Shared, vcpu: &mut VmxVcpu) {
    let cpuid = &vcpu.core.cpuid;
    let vmcs = &mut vcpu.vmcs01;
    let owned = cr4_guest_owned(shared.kvm.tdp(), cr::cr4_reserved(cpuid));
    vmcs.write(F::CR4_GUEST_HOST_MASK, !owned);
    let secondary = vmcs.secondary();
    vmcs.set_secondary(
        secondary.with_rdrand_exiting(!cpuid.has(RDRAND)).with_rdseed_exiting(!cpuid.has(RDSEED)),
    );
    update_exception_bitmap(shared, cpuid, vmcs);
}

/// `vmx_update_exception_bitmap`.
fn update_exception_bitmap(shared: &Shared, cpuid: &GuestCpuid, vmcs: &mut Vmcs) {
    let bit = |vector: Vector| 1u32 << vector.0;
    let mut exceptions = bit(Vector::UD) | bit(Vector::MC) | bit(Vector::DB) | bit(Vector::AC);
    if shared.kvm.options.on(Switch::ENABLE_VMWARE_BACKDOOR) {
        exceptions |= bit(Vector::GP);
    }
    let page_faults = shared.needs_pf_intercept(cpuid);
    if page_faults {
        exceptions |= bit(Vector::PF);
    }
    let (mask, code) = shared.pf_mask_and_match(page_faults);
    vmcs.write(F::EXCEPTION_BITMAP, exceptions);
    vmcs.write(F::PAGE_FAULT_ERROR_CODE_MASK, mask);
    vmcs.write(F::PAGE_FAULT_ERROR_CODE_MATCH, code);
}

/// `vmx_set_virtual_apic_mode`. APIC-register virtualization and virtual-interrupt delivery come and go with it.
pub fn update_apic_mode(shared: &Shared, vcpu: &mut VmxVcpu) {
    let base = vcpu.core.apic_base;
    let access_page = shared.kvm.options.on(Switch::FLEXPRIORITY);
    let (enabled, x2apic) = (base & ENABLE != 0, base & X2APIC != 0);
    let apicv = shared.kvm.options.on(Switch::ENABLE_APICV);
    let vmcs = &mut vcpu.vmcs01;
    let cpu = vmcs.cpu_based();
    let x2apic_mode = enabled && x2apic;
    vmcs.set_cpu_based(cpu.with_tpr_shadow(access_page || x2apic_mode));
    let secondary = vmcs.secondary();
    vmcs.set_secondary(
        secondary
            .with_x2apic_mode(x2apic_mode)
            .with_apic_accesses(enabled && !x2apic && access_page)
            .with_apic_register(apicv)
            .with_interrupt_delivery(apicv),
    );
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
        mmu.flush_tlb(id, FlushScope::ALL, 0, host);
    }
}
