//! What KVM writes into the VMCB, and when.
//!
//! See: KVM arch/x86/kvm/svm/svm.c init_vmcb(), svm_set_cr0(), svm_vcpu_after_set_cpuid()

use super::{
    msr,
    vmcb::{set_intercept, silicon_cr0},
};
use crate::{
    silicon::vmcb::{IOPM_SIZE, IntCtl, MSRPM_SIZE, Msrpm, Vmcb},
    vm::{Shared, SvmVcpu, VmcbInfo},
};
use vmtape_abi::Host;
use vmtape_arch::{
    PAGE_SIZE,
    exit::{SvmExitCode, SvmExitCode as C},
    msr::Msr,
    vcpu::VcpuState,
};
use vmtape_kvm_core::{Vcpu, cpuid::feature, cr::MmuEffect, profile::Switch};

/// KVM_MAX_VCPUS.
const MAX_VCPUS: u32 = 1024;

/// What `init_vmcb` intercepts whatever happens. Not modelled: CR8, since the local APIC hears of its TPR without an exit, and
/// PAUSE-loop exiting.
const ALWAYS: &[C] = &[
    C::WRITE_CR4,
    C::EXCP_UD,
    C::EXCP_MC,
    C::EXCP_AC,
    C::EXCP_DB,
    C::INTR,
    C::NMI,
    C::SMI,
    C::CR0_SEL_WRITE,
    C::RDPMC,
    C::CPUID,
    C::INVD,
    C::INVLPGA,
    C::READ_CR4,
    C::IOIO,
    C::MSR,
    C::TASK_SWITCH,
    C::SHUTDOWN,
    C::VMRUN,
    C::VMMCALL,
    C::VMLOAD,
    C::VMSAVE,
    C::STGI,
    C::CLGI,
    C::SKINIT,
    C::WBINVD,
    C::XSETBV,
    C::RDPRU,
    C::RSM,
    C::MONITOR,
    C::MWAIT,
    C::HLT,
];
/// And without nested paging, where CR3 and translations are KVM's.
const SHADOW: &[C] = &[C::READ_CR3, C::WRITE_CR3, C::INVLPG, C::EXCP_PF];

/// MSRs that a guest always has to itself. See: KVM svm/svm.c direct_access_msrs
const DIRECT: &[Msr] = &[
    Msr::STAR,
    Msr::LSTAR,
    Msr::CSTAR,
    Msr::SYSCALL_MASK,
    Msr::FS_BASE,
    Msr::GS_BASE,
    Msr::KERNEL_GS_BASE,
    Msr::IA32_SYSENTER_CS,
];

/// `svm_vcpu_create`, `init_vmcb`.
pub fn create(shared: &Shared, id: u32) -> SvmVcpu {
    let npt = shared.kvm.tdp();
    let mut vmcb = Vmcb::default();
    let silent = if npt { &[] } else { SHADOW };
    for code in ALWAYS.iter().chain(silent) {
        vmcb.set_intercept(*code, true);
    }
    vmcb.set_intercept(C::EXCP_GP, shared.kvm.options.on(Switch::ENABLE_VMWARE_BACKDOOR));
    let control = &mut vmcb.control;
    (control.iopm_base_pa, control.msrpm_base_pa) = (iopm_pa(shared), msrpm_pa(shared, id, false));
    control.int_ctl = IntCtl::new()
        .with_v_intr_masking(true)
        .with_v_gif_enable(shared.vgif())
        .with_v_nmi_enable(shared.vnmi());
    control.nested_ctl.set_np_enable(npt);
    control.asid = id + 1;
    let mut msrpm = Msrpm::default();
    DIRECT.iter().for_each(|msr| msrpm.set_exits(msr.0, false, false));
    let mut vcpu = SvmVcpu {
        core: Vcpu::new(id, msr::UCODE_REV),
        vmcb01: VmcbInfo { vmcb, ..Default::default() },
        msrpm,
        nested: Default::default(),
        running: Default::default(),
        msrs: Default::default(),
        debug_registers_owned: false,
        nmi_singlestep: false,
    };
    set_dr_intercepts(shared, &mut vcpu, true);
    after_set_cpuid(shared, &mut vcpu);
    vcpu
}

/// `svm_recalc_instruction_intercepts`, `init_vmcb_after_set_cpuid`: what virtual GIF, and virtual VMLOAD and VMSAVE, make of SVM's
/// instructions. A guest that thinks it is an Intel CPU gets its SYSENTER MSRs from KVM.
pub fn recalc_svm_intercepts(shared: &Shared, vcpu: &mut SvmVcpu, svme: bool) {
    let emulated = !svme && shared.kvm.options.on(Switch::SVM_INTERCEPTED_WITHOUT_SVME);
    let vls = shared.vls() && !vcpu.core.cpuid.intel_compatible();
    vcpu.vmcb01.vmcb.control.virt_ext.set_v_vmload_vmsave(vls);
    for (codes, virtual_) in [([C::STGI, C::CLGI], shared.vgif()), ([C::VMLOAD, C::VMSAVE], vls)] {
        codes.into_iter().for_each(|code| set_intercept(shared, vcpu, code, emulated || !virtual_));
    }
}

/// Where KVM's own pages lie: at the top of the host's physical address space, where no guest memory is.
fn iopm_pa(shared: &Shared) -> u64 {
    (1 << shared.kvm.silicon.phys_bits) - IOPM_SIZE.next_power_of_two()
}

/// The address of a vCPU's MSR permission map: L0's, or the one that is merged for L2.
pub fn msrpm_pa(shared: &Shared, id: u32, merged: bool) -> u64 {
    iopm_pa(shared) - MSRPM_SIZE * (2 * u64::from(id) + 1 + u64::from(merged))
}

/// The address of a vCPU's `vmcb01` or `vmcb02`: below the vCPUs' permission maps.
pub fn vmcb_pa(shared: &Shared, id: u32, guest_mode: bool) -> u64 {
    msrpm_pa(shared, MAX_VCPUS, true) - PAGE_SIZE * (2 * u64::from(id) + 1 + u64::from(guest_mode))
}

/// `set_dr_intercepts`, `clr_dr_intercepts`.
pub fn set_dr_intercepts(shared: &Shared, vcpu: &mut SvmVcpu, on: bool) {
    for code in (C::READ_DR0.0..=C::READ_DR7.0).chain(C::WRITE_DR0.0..=C::WRITE_DR7.0) {
        set_intercept(shared, vcpu, SvmExitCode(code), on);
    }
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
    let invpcid = !shared.kvm.tdp() || !vcpu.core.cpuid.has(feature::INVPCID);
    let rdtscp = !vcpu.core.cpuid.has(feature::RDTSCP);
    set_intercept(shared, vcpu, C::EXCP_PF, page_faults);
    set_intercept(shared, vcpu, C::INVPCID, invpcid);
    set_intercept(shared, vcpu, C::RDTSCP, rdtscp);
    recalc_svm_intercepts(shared, vcpu, false);
    let cpuid = &vcpu.core.cpuid;
    let map = &mut vcpu.msrpm;
    map.set_exits(Msr::IA32_SPEC_CTRL.0, true, true);
    map.set_exits(Msr::IA32_PRED_CMD.0, true, !cpuid.has(feature::AMD_IBPB));
    map.set_exits(Msr::IA32_FLUSH_CMD.0, true, !cpuid.has(feature::FLUSH_L1D));
    // Not while the guest thinks it is an Intel CPU.
    let foreign = cpuid.intel_compatible();
    map.set_exits(Msr::IA32_SYSENTER_EIP.0, foreign, foreign);
    map.set_exits(Msr::IA32_SYSENTER_ESP.0, foreign, foreign);
}

/// `svm_set_cr0`, the part that decides about CR0's intercepts: none while silicon runs with the guest's value.
pub fn update_cr0_intercept(shared: &Shared, vcpu: &mut SvmVcpu, state: &VcpuState) {
    let guest = state.cr0();
    let differs = silicon_cr0(guest, shared.kvm.tdp()) != guest;
    set_intercept(shared, vcpu, C::READ_CR0, differs);
    set_intercept(shared, vcpu, C::WRITE_CR0, differs);
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
    update_cr0_intercept(shared, vcpu, state);
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
