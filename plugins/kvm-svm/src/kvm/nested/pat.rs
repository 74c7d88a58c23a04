//! The PAT of L1 (hPAT) and the PAT of L2 (gPAT).
//!
//! Up to v6.12 there is one, `vcpu->arch.pat`, whatever level runs. The series of 2026 gives L2 its own under nested paging, part
//! by part; each part is asked for here. The merged form has them while the quirk is off; what was posted has no quirk. gPAT is
//! `vmcb02.save.g_pat`, hPAT the register of the vCPU.
//!
//! See: KVM arch/x86/kvm/svm/nested.h l2_has_separate_pat(), svm.c svm_get_pat(), svm_set_pat(), as of 7.2; APM 15.25.4 Nested
//! Paging and VMRUN/#VMEXIT

use super::{Nested, patches::L1};
use crate::{
    silicon::vmcb::{Clean, ControlArea, Vmcb},
    vm::SvmVcpu,
};
use vmtape_kvm_core::{
    msr::{Refused, is_valid_pat},
    profile::Switch,
};

/// A part of the change, merged or as posted.
fn has(l1: &L1<'_>, merged: Switch, posted: Switch) -> bool {
    l1.on(merged) && !l1.on(Switch::NESTED_SVM_SHARED_PAT) || l1.on(posted)
}

fn nested_paging(vmcb12: &ControlArea) -> bool {
    vmcb12.nested_ctl.np_enable()
}

/// VMRUN fails if G_PAT of `vmcb12` is not valid.
pub fn is_checked(l1: &L1<'_>, vmcb12: &ControlArea) -> bool {
    nested_paging(vmcb12) && has(l1, Switch::GPAT_CHECKED, Switch::V3_GPAT_CHECKED)
}

/// `vmcb02` has G_PAT of `vmcb12`.
fn is_loaded(l1: &L1<'_>, vmcb12: &ControlArea) -> bool {
    nested_paging(vmcb12) && has(l1, Switch::GPAT_IN_VMCB02, Switch::V3_GPAT_IN_VMCB02)
}

/// IA32_PAT of L2 is gPAT.
fn is_redirected(l1: &L1<'_>, vmcb12: &ControlArea) -> bool {
    nested_paging(vmcb12) && has(l1, Switch::GPAT_MSR, Switch::V3_GPAT_MSR)
}

/// #VMEXIT stores gPAT.
fn is_stored(l1: &L1<'_>, vmcb12: &ControlArea) -> bool {
    nested_paging(vmcb12) && has(l1, Switch::GPAT_STORED, Switch::V3_GPAT_STORED)
}

/// `vmcb_set_gpat`.
fn put(vmcb: &mut Vmcb, pat: u64) {
    vmcb.save.g_pat = pat;
    vmcb.control.clean.set_np(false);
}

/// VMRUN: G_PAT of `vmcb02`. `kept`: what L1 says that `vmcb02` has still; `hpat`: L1's PAT.
pub fn load(l1: &L1<'_>, nested: &mut Nested, hpat: u64, kept: Clean) {
    let dirty = l1.on(Switch::NESTED_VMRUN_MARKS_DIRTY) || !l1.on(Switch::NESTED_VMCB02);
    let vmcb02 = &mut nested.vmcb02.vmcb;
    if !is_loaded(l1, &nested.vmcb12.control) {
        vmcb02.save.g_pat = hpat;
    } else if !kept.np() {
        put(vmcb02, nested.vmcb12.save.g_pat);
    }
    if dirty {
        vmcb02.control.clean.set_np(false);
    }
}

/// #VMEXIT: G_PAT of `vmcb12`.
pub fn store(l1: &L1<'_>, vmcb12: &mut Vmcb, cached: &Vmcb, vmcb02: &Vmcb) {
    if is_stored(l1, &cached.control) {
        vmcb12.save.g_pat = vmcb02.save.g_pat;
    }
}

/// Which PAT an access of IA32_PAT reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pat {
    Host,
    Guest,
}

/// Host-initiated accesses reach hPAT, so that KVM_SET_MSRS and KVM_SET_NESTED_STATE may come in any order.
pub fn reached(l1: &L1<'_>, guest_mode: bool, vmcb12: &ControlArea, host_initiated: bool) -> Pat {
    let own = guest_mode && is_redirected(l1, vmcb12);
    // The first version let the host reach what the guest would.
    if own && (!host_initiated || l1.on(Switch::V1_GPAT_STATE)) { Pat::Guest } else { Pat::Host }
}

/// What an access has to know of.
pub struct Access<'a> {
    pub l1: L1<'a>,
    pub npt: bool,
    pub host_initiated: bool,
}

/// RDMSR of IA32_PAT; `hpat`: the vCPU's register.
pub fn get(access: &Access<'_>, guest_mode: bool, nested: &Nested, hpat: u64) -> u64 {
    match reached(&access.l1, guest_mode, &nested.vmcb12.control, access.host_initiated) {
        Pat::Guest => nested.vmcb02.vmcb.save.g_pat,
        Pat::Host => hpat,
    }
}

/// WRMSR of IA32_PAT.
pub fn set(
    access: &Access<'_>,
    guest_mode: bool,
    (vmcb01, nested): (&mut Vmcb, &mut Nested),
    hpat: &mut u64,
    data: u64,
) -> Result<(), Refused> {
    if !is_valid_pat(data) {
        return Err(Refused);
    }
    let l1 = &access.l1;
    if reached(l1, guest_mode, &nested.vmcb12.control, access.host_initiated) == Pat::Guest {
        put(&mut nested.vmcb02.vmcb, data);
        return Ok(());
    }
    *hpat = data;
    // Without nested paging below L1, silicon has no G_PAT.
    if !access.npt {
        return Ok(());
    }
    vmcb01.save.g_pat = data;
    if !guest_mode || l1.on(Switch::GPAT_CLEAN_BIT) {
        vmcb01.control.clean.set_np(false);
    }
    if guest_mode && (nested.legacy_gpat || !is_loaded(l1, &nested.vmcb12.control)) {
        put(&mut nested.vmcb02.vmcb, data);
    }
    Ok(())
}

/// KVM_RUN ends what a checkpoint without gPAT began (`svm_vcpu_pre_run`): v2 takes IA32_PAT now, v3 has followed it.
pub fn pre_run(vcpu: &mut SvmVcpu, hpat: u64) {
    if std::mem::take(&mut vcpu.nested.restore_gpat) {
        put(&mut vcpu.nested.vmcb02.vmcb, hpat);
    }
    vcpu.nested.legacy_gpat = false;
}
