//! SMM and L2: an SMI that L1 does not intercept takes L2 out, and RSM enters it again. What the state-save area and L1's host save area
//! say is L1's to change meanwhile.
//!
//! See: KVM arch/x86/kvm/svm/svm.c svm_enter_smm(), svm_leave_smm(); 5.10: svm_pre_enter_smm(), svm_pre_leave_smm()

use super::{
    checks,
    enter::{self, note_failure},
    exit,
    patches::L1,
    state::copy_vmrun_state,
    vmcb12::{self, Mapped},
};
use crate::{
    kvm::{
        handlers::Cx,
        vmcb::{silicon_cr0, silicon_cr4, silicon_efer},
    },
    silicon::vmcb::SaveArea,
};
use vmtape_arch::{
    PAGE_SHIFT,
    exit::SvmExitCode as C,
    regs::{Cr0, Cr4, Efer},
};
use vmtape_kvm_core::{
    cpuid::feature,
    profile::Switch,
    smm::{Failed, save_state::SaveState},
};

/// Out of L2.
pub fn enter(cx: &mut Cx<'_>, area: &mut SaveState) -> Result<(), Failed> {
    if !cx.vcpu.is_guest_mode() {
        return Ok(());
    }
    match area {
        SaveState::Long(area) => {
            (area.svm_guest, area.svm_guest_vmcb) = (1, cx.vcpu.nested.vmcb12_gpa);
        }
        // It has no room for L2.
        SaveState::Legacy(_) if cx.on(Switch::SMM_FAILURE_CHECKED) => return Err(Failed),
        SaveState::Legacy(_) => {}
    }
    // 5.10 leaves the code of the last exit in the VMCB.
    if cx.on(Switch::NESTED_VMCB02) {
        exit::simple_vmexit(cx, C::SW);
    } else {
        exit::vmexit(cx);
    }
    if cx.vcpu.is_guest_mode() {
        return Err(Failed);
    }
    keep_l1(cx)
}

/// SMM runs with `vmcb01`.
fn keep_l1(cx: &mut Cx<'_>) -> Result<(), Failed> {
    let of_l1 = silicons(cx);
    if !cx.on(Switch::NESTED_VMCB02) {
        cx.vcpu.nested.hsave = Some(Box::new(cx.vcpu.vmcb01.vmcb.clone()));
        return Ok(());
    }
    if !cx.on(Switch::SMM_SAVES_L1) {
        return Ok(());
    }
    let mut mapped = host_save(cx)?;
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    copy_vmrun_state(&l1, &mut mapped.vmcb.save, &of_l1);
    mapped.write_back(cx.host);
    dirtied(cx, cx.vcpu.msrs.hsave_pa);
    Ok(())
}

/// L1's registers as silicon has them: what `svm_set_cr0` and its like write when #VMEXIT loads them.
fn silicons(cx: &Cx<'_>) -> SaveArea {
    let (mut save, npt) = (cx.vcpu.vmcb01.vmcb.save.clone(), cx.shared.kvm.tdp());
    let cr0 = Cr0::from_bits(save.cr0);
    save.efer = silicon_efer(Efer::from_bits(save.efer), npt).into_bits();
    save.cr4 = silicon_cr4(Cr4::from_bits(save.cr4), cr0.pg(), npt).into_bits();
    save.cr0 = silicon_cr0(cr0, npt).into_bits();
    save
}

/// Into L2, where the state-save area says that it ran.
pub fn leave(cx: &mut Cx<'_>, area: &SaveState) -> Result<(), Failed> {
    let SaveState::Long(area) = area else { return Ok(()) };
    if area.svm_guest == 0 {
        return Ok(());
    }
    if !cx.vcpu.core.cpuid.has(feature::SVM) || !Efer::from_bits(area.efer).svme() {
        return Err(Failed);
    }
    let gpa = area.svm_guest_vmcb;
    let slots = &cx.shared.kvm.mmu.slots;
    let mapped = Mapped::read(slots, gpa, vmcb12::VMRUN, cx.host).map_err(|_| Failed)?;
    restore_l1(cx)?;
    cx.vcpu.vmcb01.vmcb.control.clean = Default::default();
    let entered = enter_l2(cx, gpa, &mapped);
    dirtied(cx, gpa);
    entered
}

/// What [`keep_l1`] has kept.
fn restore_l1(cx: &mut Cx<'_>) -> Result<(), Failed> {
    if !cx.on(Switch::NESTED_VMCB02) {
        if let Some(hsave) = cx.vcpu.nested.hsave.take() {
            cx.vcpu.vmcb01.vmcb.save = hsave.save;
        }
        return Ok(());
    }
    if cx.on(Switch::SMM_SAVES_L1) {
        let mapped = host_save(cx)?;
        let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
        copy_vmrun_state(&l1, &mut cx.vcpu.vmcb01.vmcb.save, &mapped.vmcb.save);
        dirtied(cx, cx.vcpu.msrs.hsave_pa);
    }
    Ok(())
}

fn enter_l2(cx: &mut Cx<'_>, gpa: u64, mapped: &Mapped) -> Result<(), Failed> {
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    if cx.on(Switch::NESTED_VMCB02) {
        cx.vcpu.nested.vmcb12 = vmcb12::cache(&l1, &mapped.vmcb);
    } else {
        // The copy of the controls is that of VMRUN, but for nCR3, which #VMEXIT has cleared.
        cx.vcpu.nested.vmcb12.save = mapped.vmcb.save.clone();
    }
    if cx.on(Switch::RSM_CHECKS_VMCB12)
        && let Err(why) = checks::check(&l1, cx.shared.kvm.tdp(), &cx.vcpu.nested.vmcb12)
    {
        note_failure(cx, why);
        return Err(Failed);
    }
    if !enter::enter_guest_mode(cx, gpa, &mapped.vmcb, false) {
        return Err(Failed);
    }
    cx.vcpu.nested.run_pending = cx.on(Switch::RSM_RUN_PENDING);
    Ok(())
}

/// The page of VM_HSAVE_PA, as far as KVM uses it.
fn host_save(cx: &mut Cx<'_>) -> Result<Mapped, Failed> {
    let (slots, page) = (&cx.shared.kvm.mmu.slots, cx.vcpu.msrs.hsave_pa);
    Mapped::read(slots, page, vmcb12::HOST_SAVE, cx.host).map_err(|_| Failed)
}

/// `kvm_vcpu_unmap` of a page that was mapped for writing.
fn dirtied(cx: &mut Cx<'_>, gpa: u64) {
    cx.shared.kvm.mmu.mark_dirty(cx.vcpu.core.id, gpa >> PAGE_SHIFT, cx.host);
}
