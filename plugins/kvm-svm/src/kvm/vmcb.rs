//! What KVM writes into a VMCB before VMRUN, and which clean bits that costs.
//!
//! See: KVM arch/x86/kvm/svm/svm.c svm_vcpu_run(), svm_set_cr0(), svm_set_cr4(), svm_set_efer(); svm.h vmcb_mark_dirty()

use super::nested::intercepts;
use crate::{
    silicon::{
        vmcb::{Clean, IntCtl, Vmcb},
        vmrun::int_state,
    },
    vm::{Shared, SvmVcpu, VmcbInfo},
};
use vmtape_arch::{
    exit::SvmExitCode,
    regs::{Cr0, Cr4, Efer},
    vcpu::{VcpuState, gpr},
};
use vmtape_kvm_core::profile::Switch;

/// V_INTR_PRIO of the interrupt that only opens a window.
const WINDOW_PRIORITY: u8 = 0xf;

impl Vmcb {
    /// `vmcb_mark_all_clean`: all but VMCB_ALWAYS_DIRTY_MASK.
    pub fn mark_all_clean(&mut self) {
        self.control.clean = Clean::ALL.with_tpr(false).with_cr2(false);
    }

    /// Intercepts, or no longer. Whether that is a change.
    pub fn set_intercept(&mut self, code: SvmExitCode, on: bool) -> bool {
        let changed = self.control.intercepts.set(code, on);
        if changed {
            self.control.clean.set_intercepts(false);
        }
        changed
    }
}

/// `svm_set_intercept`, `svm_clr_intercept`: it is L0's own intercepts that change.
pub fn set_intercept(shared: &Shared, vcpu: &mut SvmVcpu, code: SvmExitCode, on: bool) {
    if vcpu.vmcb01.vmcb.set_intercept(code, on) && vcpu.is_guest_mode() {
        intercepts::recalc(shared, vcpu);
    }
}

/// `svm_set_vintr`, `svm_clear_vintr`. In L2 the virtual interrupt that only opens a window takes the place of one of L1's. Asking again
/// is not idle: with virtual GIF the intercept outlives #VMEXIT, and the virtual interrupt does not.
pub fn set_vintr(shared: &Shared, vcpu: &mut SvmVcpu, on: bool) {
    if !on && !vcpu.vmcb01.vmcb.control.intercepts.has(SvmExitCode::VINTR) {
        return;
    }
    set_intercept(shared, vcpu, SvmExitCode::VINTR, on);
    if !on && vcpu.is_guest_mode() {
        let without = virtual_interrupt(vcpu.vmcb01.vmcb.control.int_ctl, IntCtl::new());
        vcpu.vmcb01.vmcb.control.int_ctl = without;
    }
    // With V_INTR_MASKING and L1's RFLAGS.IF clear no window would ever open.
    let pointless = on && !vcpu.vmcb().control.intercepts.has(SvmExitCode::VINTR);
    if pointless && shared.kvm.options.on(Switch::NESTED_WINDOW_KEPT) {
        return;
    }
    let (wanted, vector) = match on {
        true => (IntCtl::new().with_v_irq(true).with_v_intr_prio(WINDOW_PRIORITY), 0),
        false if vcpu.is_guest_mode() => {
            let l1 = &vcpu.nested.vmcb12.control;
            (l1.int_ctl, l1.int_vector)
        }
        false => (IntCtl::new(), 0),
    };
    let control = &mut vcpu.vmcb_mut().control;
    control.int_ctl = virtual_interrupt(control.int_ctl, wanted);
    control.int_vector = vector;
    control.clean.set_tpr(false);
}

/// With V_IRQ_INJECTION_BITS of another value.
fn virtual_interrupt(of: IntCtl, wanted: IntCtl) -> IntCtl {
    of.with_v_irq(wanted.v_irq()).with_v_intr_prio(wanted.v_intr_prio()).with_v_ign_tpr(wanted.v_ign_tpr())
}

/// CR0 that silicon runs with: under shadow paging with PG and WP, and never with CD or NW (KVM_X86_QUIRK_CD_NW_CLEARED).
pub fn silicon_cr0(guest: Cr0, npt: bool) -> Cr0 {
    let cr0 = guest.with_cd(false).with_nw(false);
    if npt { cr0 } else { cr0.with_pg(true).with_wp(true) }
}

/// CR4 that silicon runs with; the host has MCE.
pub fn silicon_cr4(guest: Cr4, paging: bool, npt: bool) -> Cr4 {
    let cr4 = guest.with_mce(true);
    match (npt, paging) {
        (true, _) => cr4,
        (false, true) => cr4.with_pae(true),
        (false, false) => cr4.with_pae(true).with_smep(false).with_smap(false).with_pke(false),
    }
}

/// EFER that silicon runs with.
pub fn silicon_efer(guest: Efer, npt: bool) -> Efer {
    let efer = guest.with_svme(true);
    if npt { efer } else { efer.with_nxe(true).with_lme(guest.lme() && guest.lma()) }
}

/// Whether the field had another value.
fn put<T: PartialEq>(field: &mut T, value: T) -> bool {
    let changed = *field != value;
    *field = value;
    changed
}

/// Brings the VMCB up to date with the registers, and marks dirty what differs.
pub fn write_state(shared: &Shared, vcpu: &mut SvmVcpu, state: &VcpuState) {
    let npt = shared.kvm.tdp();
    let root = shared.kvm.mmu.context(vcpu.core.id).root.map_or(0, |root| root.hpa);
    // L2's is gPAT, or was written with L1's.
    let own_pat = npt && !vcpu.core.guest_mode;
    let virtual_tpr = vcpu.virtualizes_tpr();
    let info = vcpu.current_mut().0;
    let Vmcb { control, save } = &mut info.vmcb;
    // No clean bit covers these.
    (save.rax, save.rsp, save.rip, save.rflags) =
        (state.gpr[gpr::RAX], state.gpr[gpr::RSP], state.rip, state.rflags);
    (control.event_inj, control.event_inj_err) = ((&state.inject).into(), state.inject.error_code);
    control.int_state = int_state(state);
    if !virtual_tpr {
        control.int_ctl.set_v_tpr(state.cr8 as u8 & 0xf);
    }
    if control.int_ctl.v_nmi_enable() {
        control.int_ctl.set_v_nmi_blocking(state.interruptibility.nmi());
    }
    let clean = &mut control.clean;
    save.cr2 = state.cr2;
    let tsc_offset = state.guest_tsc(0);
    if put(&mut control.tsc_offset, tsc_offset) {
        clean.set_intercepts(false);
    }
    let nested = if npt { root } else { 0 };
    if put(&mut control.nested_cr3, nested) | (own_pat && put(&mut save.g_pat, state.pat)) {
        clean.set_np(false);
    }
    let guest = state.cr0();
    let cr3 = if npt { state.cr3 } else { root };
    if put(&mut save.cr0, silicon_cr0(guest, npt).into_bits())
        | put(&mut save.cr3, cr3)
        | put(&mut save.cr4, silicon_cr4(state.cr4(), guest.pg(), npt).into_bits())
        | put(&mut save.efer, silicon_efer(state.efer(), npt).into_bits())
    {
        clean.set_crx(false);
    }
    if put(&mut save.dr6, state.dr6) | put(&mut save.dr7, state.dr7) {
        clean.set_drx(false);
    }
    write_segments(info, state);
}

/// Brings segments, GDTR and IDTR of a VMCB up to date, and marks dirty what differs.
pub fn write_segments(info: &mut VmcbInfo, state: &VcpuState) {
    let VmcbInfo { vmcb: Vmcb { control, save }, mirror } = info;
    let (segments, tables) = mirror.update(state);
    if tables {
        save.store_tables(mirror);
        control.clean.set_dt(false);
    }
    if segments {
        save.store_segments(mirror);
        control.clean.set_seg(false);
    }
}
