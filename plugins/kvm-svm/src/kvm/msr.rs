//! MSRs of `kvm_amd`; what is not here is [`msr::get_common`]'s.
//!
//! See: KVM arch/x86/kvm/svm/svm.c svm_get_msr(), svm_set_msr()

use super::nested::{
    TSC_RATIO_DEFAULT, lbr,
    pat::{self, Pat},
    patches::L1,
    state::leave,
};
use super::setup::recalc_svm_intercepts;
use crate::{
    rules::Rule,
    vm::{Shared, SvmVcpu, VmCr},
};
use bitfield_struct::bitfield;
use std::ops::RangeInclusive;
use vmtape_abi::Host;
use vmtape_arch::{PAGE_SIZE, msr::Msr, note::NoteKind, regs::Efer, vcpu::VcpuState};
use vmtape_kvm_core::{
    cpuid::{GuestCpuid, feature},
    msr::{self, Refused, Written},
    profile::Switch,
};

/// `microcode_version` of a new vCPU.
pub const UCODE_REV: u64 = 0x0100_0065;

const VIRT_SPEC_CTRL: Msr = Msr(0xc001_011f);
const IC_CFG: Msr = Msr(0xc001_1021);
const DE_CFG: Msr = Msr(0xc001_1029);
/// MSR_IA32_LASTBRANCHFROMIP to MSR_IA32_LASTINTTOIP.
const LAST_BRANCH: RangeInclusive<u32> = 0x1db..=0x1de;
/// SVM_TSC_RATIO_RSVD.
const TSC_RATIO_RESERVED: u64 = 0xffff_ff00_0000_0000;
/// The host's log level of a warning.
const WARN: u32 = 2;
/// SPEC_CTRL_SSBD.
const SSBD: u64 = 1 << 2;

/// `svm_get_msr`.
pub fn get(
    shared: &Shared,
    vcpu: &mut SvmVcpu,
    state: &VcpuState,
    index: u32,
    host_initiated: bool,
    host: &mut dyn Host,
) -> Result<u64, Refused> {
    let cpuid = &vcpu.core.cpuid;
    let l1 = L1::new(shared, cpuid);
    Ok(match Msr(index) {
        Msr::TSC_RATIO if l1.on(Switch::NESTED_TSC_SCALING) && (host_initiated || l1.tsc_ratio()) => {
            vcpu.nested.tsc_ratio
        }
        Msr::IA32_PAT => {
            let access = pat::Access { l1, npt: shared.kvm.tdp(), host_initiated };
            note_pat(vcpu, &access, host);
            pat::get(&access, vcpu.core.guest_mode, &vcpu.nested, state.pat)
        }
        // Without LBR virtualization nothing records branches.
        Msr(index) if LAST_BRANCH.contains(&index) => {
            last_branches(state)[(index - LAST_BRANCH.start()) as usize]
        }
        Msr::IA32_DEBUGCTL => state.debugctl,
        Msr::VM_CR => vcpu.msrs.vm_cr.into_bits(),
        Msr::VM_HSAVE_PA => vcpu.msrs.hsave_pa,
        VIRT_SPEC_CTRL if host_initiated || cpuid.has(feature::VIRT_SSBD) => vcpu.msrs.virt_spec_ctrl,
        VIRT_SPEC_CTRL => return Err(Refused),
        IC_CFG => ic_cfg(cpuid).ok_or(Refused)?,
        DE_CFG => vcpu.msrs.de_cfg,
        _ => msr::get_common(&mut vcpu.core, state, index, host_initiated, host)?,
    })
}

/// `svm_set_msr`.
pub fn set(
    shared: &Shared,
    vcpu: &mut SvmVcpu,
    state: &mut VcpuState,
    index: u32,
    data: u64,
    host_initiated: bool,
    host: &mut dyn Host,
) -> Written {
    let allow = |legal: bool| if legal { Ok(()) } else { Err(Refused) };
    match Msr(index) {
        // Without LBR virtualization the write is ignored.
        Msr::IA32_DEBUGCTL if !shared.lbrv() => {}
        Msr::IA32_DEBUGCTL => {
            state.debugctl = lbr::debugctl(&L1::new(shared, &vcpu.core.cpuid), data)?;
            lbr::recalc_intercepts(&mut vcpu.msrpm, state);
        }
        Msr(index) if LAST_BRANCH.contains(&index) => {
            allow(shared.lbrv() && host_initiated && shared.kvm.options.on(Switch::LBR_MSRS_SAVED))?;
            *last_branch_mut(state, index) = data;
        }
        Msr::IA32_PAT => {
            let access =
                pat::Access { l1: L1::new(shared, &vcpu.core.cpuid), npt: shared.kvm.tdp(), host_initiated };
            note_pat(vcpu, &access, host);
            let vmcbs = (&mut vcpu.vmcb01.vmcb, &mut vcpu.nested);
            pat::set(&access, vcpu.core.guest_mode, vmcbs, &mut state.pat, data)?;
        }
        Msr::TSC_RATIO => {
            set_tsc_ratio(shared, vcpu, data, host_initiated)?;
            if vcpu.is_guest_mode() {
                state.nested_tsc_ratio = vcpu.nested.tsc_ratio.wrapping_sub(TSC_RATIO_DEFAULT);
            }
        }
        Msr::EFER => return set_efer(shared, vcpu, state, data, host_initiated, host),
        Msr::VM_IGNNE => host.log(WARN, "kvm_amd: unimplemented WRMSR of VM_IGNNE"),
        Msr::VM_CR => set_vm_cr(vcpu, state, data)?,
        Msr::VM_HSAVE_PA => {
            // A value that an older KVM let a guest write may still come with the guest.
            let aligned = data.is_multiple_of(PAGE_SIZE);
            let free = host_initiated || !shared.kvm.options.on(Switch::HSAVE_PA_VALIDATED);
            allow(free || aligned && data & vcpu.core.cpuid.reserved_gpa_bits() == 0)?;
            vcpu.msrs.hsave_pa = data & !(PAGE_SIZE - 1);
        }
        VIRT_SPEC_CTRL => {
            allow(host_initiated || vcpu.core.cpuid.has(feature::VIRT_SSBD))?;
            allow(data & !SSBD == 0)?;
            vcpu.msrs.virt_spec_ctrl = data;
        }
        // LFENCE_SERIALIZE is the one bit that KVM could know, and silicon of our hosts does not have it to offer.
        DE_CFG => allow(data == vcpu.msrs.de_cfg)?,
        Msr::IA32_SPEC_CTRL => {
            let written = msr::set_common(&mut vcpu.core, state, index, data, host_initiated, host)?;
            // From the first value that is not zero on, the guest has the register to itself.
            if data != 0 {
                vcpu.msrpm.set_exits(index, false, false);
            }
            return Ok(written);
        }
        _ => return msr::set_common(&mut vcpu.core, state, index, data, host_initiated, host),
    }
    Ok(Default::default())
}

/// In the order of their MSRs.
fn last_branches(state: &VcpuState) -> [u64; 4] {
    let ([from, to], [from_before, to_before]) = (state.last_branch, state.last_exception);
    [from, to, from_before, to_before]
}

fn last_branch_mut(state: &mut VcpuState, index: u32) -> &mut u64 {
    match Msr(index) {
        Msr::LASTBRANCHFROMIP => &mut state.last_branch[0],
        Msr::LASTBRANCHTOIP => &mut state.last_branch[1],
        Msr::LASTINTFROMIP => &mut state.last_exception[0],
        _ => &mut state.last_exception[1],
    }
}

/// MSR_AMD64_TSC_RATIO. Where L1 has no TSC scaling a VMM may write what is there, and zero, which QEMU 6.2 does.
fn set_tsc_ratio(
    shared: &Shared,
    vcpu: &mut SvmVcpu,
    data: u64,
    host_initiated: bool,
) -> Result<(), Refused> {
    let l1 = L1::new(shared, &vcpu.core.cpuid);
    let legal = match l1.tsc_ratio() {
        _ if !l1.on(Switch::NESTED_TSC_SCALING) => false,
        true => data & TSC_RATIO_RESERVED == 0,
        false if host_initiated && (data == 0 || data == vcpu.nested.tsc_ratio) => return Ok(()),
        false => false,
    };
    if !legal {
        return Err(Refused);
    }
    vcpu.nested.tsc_ratio = data;
    Ok(())
}

/// `svm_set_efer`: without SVME there is no L2. VM_CR.SVMDIS keeps nobody from setting it.
fn set_efer(
    shared: &Shared,
    vcpu: &mut SvmVcpu,
    state: &mut VcpuState,
    data: u64,
    host_initiated: bool,
    host: &mut dyn Host,
) -> Written {
    let options = &shared.kvm.options;
    if Efer::from_bits(data).svme() && !options.on(Switch::NESTED) {
        return Err(Refused);
    }
    let had = state.efer().svme();
    let written = msr::set_common(&mut vcpu.core, state, Msr::EFER.0, data, host_initiated, host)?;
    if had != state.efer().svme() {
        recalc_svm_intercepts(shared, vcpu, !had);
    }
    if had && !state.efer().svme() {
        let (l2, shutdown) = (vcpu.is_guest_mode(), options.on(Switch::SVME_CLEARED_SHUTDOWN));
        leave(vcpu);
        // RSM may go back to what is kept of L2.
        if !vcpu.core.smm.active {
            vcpu.nested.forget();
        }
        if l2 && shutdown && !host_initiated {
            vcpu.core.events.request_triple_fault();
        }
        vcpu.nested.gif |= l2 || !shutdown;
    }
    Ok(written)
}

/// Which PAT L2 has reached, for the tape.
fn note_pat(vcpu: &SvmVcpu, access: &pat::Access<'_>, host: &mut dyn Host) {
    if !vcpu.core.guest_mode || access.host_initiated || !host.wants(NoteKind::RULE) {
        return;
    }
    let rule = match pat::reached(&access.l1, true, &vcpu.nested.vmcb12.control, false) {
        Pat::Guest => Rule::GUEST_PAT,
        Pat::Host => Rule::SHARED_PAT,
    };
    vcpu.core.note(rule.note(), host);
}

/// `svm_set_vm_cr`: once SVM is disabled, neither SVMDIS nor its lock changes.
fn set_vm_cr(vcpu: &mut SvmVcpu, state: &VcpuState, data: u64) -> Result<(), Refused> {
    if data & !VmCr::VALID.into_bits() != 0 {
        return Err(Refused);
    }
    let (old, mut new) = (vcpu.msrs.vm_cr, VmCr::from_bits(data));
    if old.svmdis() {
        new = new.with_lock(old.lock()).with_svmdis(true);
    }
    // KVM keeps the value even if it then refuses the write.
    vcpu.msrs.vm_cr = new;
    if new.svmdis() && state.efer().svme() { Err(Refused) } else { Ok(()) }
}

/// MSR_F15H_IC_CFG, which KVM makes up from the guest's family and model and which nobody can write. `None`: the guest has
/// no leaf 1. svm_set_msr() and kvm_set_msr_common() do not know the MSR.
fn ic_cfg(cpuid: &GuestCpuid) -> Option<u64> {
    let signature = Signature::from_bits(cpuid.find(1, 0)?.eax);
    let piledriver_or_later = signature.family() == 0x15 && (0x2..0x20).contains(&signature.model());
    Some(if piledriver_or_later { 0x1e } else { 0 })
}

/// CPUID leaf 1, EAX. See: APM vol. 3 E.3.2 Function 1h
#[bitfield(u32)]
struct Signature {
    #[bits(4)]
    stepping: u8,
    #[bits(4)]
    base_model: u8,
    #[bits(4)]
    base_family: u8,
    #[bits(4)]
    __: u8,
    #[bits(4)]
    extended_model: u8,
    extended_family: u8,
    #[bits(4)]
    __: u8,
}

impl Signature {
    /// `x86_family`.
    fn family(self) -> u32 {
        let extended = if self.base_family() == 0xf { self.extended_family() } else { 0 };
        u32::from(self.base_family()) + u32::from(extended)
    }

    /// `x86_model`.
    fn model(self) -> u32 {
        let extended = if self.family() >= 6 { self.extended_model() } else { 0 };
        u32::from(extended) << 4 | u32::from(self.base_model())
    }
}
