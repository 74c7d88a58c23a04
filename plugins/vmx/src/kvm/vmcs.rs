//! What KVM writes into the VMCS before VM entry.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c vmx_set_cr0(), vmx_set_cr4(), vmx_set_efer(), vmx_vcpu_run(), vmx_inject_exception()

use crate::{
    silicon::{
        capabilities::Eptp,
        entry,
        vmcs::{EntryControls, VmcsField as F},
    },
    vm::{Shared, VmxVcpu},
};
use vmtape_arch::{
    regs::{Cr0, Cr4, Efer},
    vcpu::VcpuState,
};
use vmtape_kvm_core::profile::Switch;

/// Brings the VMCS up to date with the registers.
pub fn write_state(shared: &Shared, vcpu: &mut VmxVcpu, state: &VcpuState) {
    let ept = shared.kvm.tdp();
    let unrestricted = shared.kvm.options.on(Switch::UNRESTRICTED_GUEST);
    let mmu = shared.kvm.mmu.context(vcpu.core.id);
    let root = mmu.root.map_or(0, |root| root.hpa);
    let vmcs = &mut vcpu.vmcs01;
    entry::store(vmcs, state);
    let (cr0, cr4) = (silicon_cr0(state.cr0(), ept, unrestricted), silicon_cr4(state, ept, unrestricted));
    let cr3 = match (ept, unrestricted || state.cr0().pg()) {
        (true, true) => state.cr3,
        // KVM's own identity map, for real mode without unrestricted guests.
        (true, false) => 0,
        (false, _) => root,
    };
    vmcs.write(F::GUEST_CR0, cr0.into_bits());
    vmcs.write(F::CR0_READ_SHADOW, state.cr0);
    vmcs.write(F::GUEST_CR3, cr3);
    vmcs.write(F::GUEST_CR4, cr4.into_bits());
    vmcs.write(F::CR4_READ_SHADOW, state.cr4);
    vmcs.write(F::GUEST_IA32_PAT, state.pat);
    vmcs.write(F::GUEST_IA32_EFER, silicon_efer(state.efer()).into_bits());
    vmcs.write(F::TSC_OFFSET, state.tsc_offset);
    let controls = EntryControls::new()
        .with_load_debug_controls(true)
        .with_ia32e_mode_guest(state.efer().lma())
        .with_load_pat(true)
        .with_load_efer(ept);
    vmcs.write(F::VM_ENTRY_CONTROLS, controls.into_bits());
    if ept {
        let eptp = Eptp::of(root, mmu.root_role.level(), &shared.kvm.mmu.config);
        vmcs.write(F::EPT_POINTER, eptp.into_bits());
    }
    // Without unrestricted guests KVM emulates the delivery in real mode (`kvm_inject_realmode_interrupt`).
    let emulated = !unrestricted && !state.cr0().pe();
    let info = if emulated { 0 } else { state.inject.vmx_info() };
    vmcs.write(F::VM_ENTRY_INTR_INFO_FIELD, info);
    vmcs.write(F::VM_ENTRY_EXCEPTION_ERROR_CODE, state.inject.error_code);
    vmcs.write(F::VM_ENTRY_INSTRUCTION_LEN, state.inject.insn_len);
}

/// CR0 that silicon runs with.
fn silicon_cr0(guest: Cr0, ept: bool, unrestricted: bool) -> Cr0 {
    let cr0 = guest.with_cd(false).with_nw(false).with_ne(true);
    if unrestricted {
        return cr0;
    }
    let cr0 = cr0.with_pe(true).with_pg(true);
    if ept { cr0 } else { cr0.with_wp(true) }
}

/// CR4 that silicon runs with.
fn silicon_cr4(state: &VcpuState, ept: bool, unrestricted: bool) -> Cr4 {
    let cr4 = state.cr4().with_vmxe(true).with_mce(true);
    if unrestricted {
        return cr4;
    }
    let paged = state.cr0().pg();
    let cr4 = match (ept, paged) {
        (true, true) => cr4,
        (true, false) => cr4.with_pae(false).with_pse(true),
        (false, _) => cr4.with_pae(true),
    };
    if paged { cr4 } else { cr4.with_smep(false).with_smap(false).with_pke(false) }
}

/// EFER that silicon runs with: what only AMD's has does not reach it.
fn silicon_efer(guest: Efer) -> Efer {
    guest.with_svme(false).with_lmsle(false).with_ffxsr(false).with_tce(false)
}
