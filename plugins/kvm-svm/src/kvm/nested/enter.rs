//! Into L2: VMRUN as L1 executes it, and what `vmcb02` is made of.
//!
//! See: KVM arch/x86/kvm/svm/nested.c nested_svm_vmrun(), enter_svm_guest_mode(), nested_vmcb02_prepare_control(),
//! nested_vmcb02_prepare_save()

use super::{
    TSC_RATIO_DEFAULT, checks, emulated, events, exit,
    instructions::{self, VmcbAddress},
    intercepts, lbr, msrpm, pat,
    patches::L1,
    vmcb12,
};
use crate::{
    kvm::{
        handlers::Cx,
        setup::{msrpm_pa, update_cr0_intercept},
    },
    silicon::vmcb::{Clean, ControlArea, IntCtl, Vmcb},
};
use vmtape_arch::{
    exception::Exception,
    exit::Resume,
    note::{Note, NoteKind},
    regs::{Cr0, Cr4, DR6_INIT, DR7_INIT, Efer, Rflags},
    vcpu::{VcpuState, gpr},
};
use vmtape_kvm_core::{cr, profile::Switch, vcpu::clear_shadow};

/// `nested_svm_vmrun`, once the permissions have been checked.
pub fn vmrun(cx: &mut Cx<'_>) -> Resume {
    if cx.on(Switch::HSAVE_PA_REQUIRED) && cx.vcpu.msrs.hsave_pa == 0 {
        return cx.gp();
    }
    if cx.vcpu.core.smm.active {
        return cx.inject(Exception::ud());
    }
    let VmcbAddress { gpa, mut mapped } = match instructions::vmcb(cx, vmcb12::VMRUN) {
        Ok(found) => found,
        Err(resume) => return resume,
    };
    // Up to 6.12 the instruction is skipped first, which ends it with a #DB if L1 steps through it.
    let checks_first = cx.on(Switch::VMRUN_CHECKS_FIRST);
    let resume = if checks_first { Resume::GUEST } else { cx.skip() };
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    cx.vcpu.nested.vmcb12 = vmcb12::cache(&l1, &mapped.vmcb);
    let checked = checks::check(&l1, cx.shared.kvm.tdp(), &cx.vcpu.nested.vmcb12);
    if checked.is_err() {
        vmcb12::store_invalid(&l1, &mut mapped.vmcb);
    }
    // Up to 6.12 the page stays mapped for writing until VMRUN is done.
    if checked.is_err() || !cx.on(Switch::NESTED_EXIT_UNMAPPED_SHUTDOWN) {
        cx.shared.kvm.mmu.mark_dirty(cx.vcpu.core.id, gpa >> 12, cx.host);
    }
    if checks_first {
        cx.state.rip = cx.state.rip.wrapping_add(cx.exit.insn.len.into());
        clear_shadow(cx.state);
    }
    if let Err(why) = checked {
        note_failure(cx, why);
        mapped.write_back(cx.host);
        if cx.on(Switch::NESTED_INVALID_CLEARS_GIF) {
            events::set_gif(cx, false);
        }
        return resume;
    }
    if !cx.on(Switch::NESTED_VMCB02) {
        // "Clear internal status" of 5.10. Later releases lose the #DB by the exit of the first entry.
        cx.vcpu.core.events.clear_exceptions();
    }
    save_l1(cx);
    cx.vcpu.nested.run_pending = true;
    if !enter_guest_mode(cx, gpa, &mapped.vmcb, true) || !merge_msrpm(cx) {
        fail(cx);
    }
    resume
}

/// `kvm_nested_vmenter_failed`.
pub fn note_failure(cx: &mut Cx<'_>, why: checks::Check) {
    if cx.on(Switch::NESTED_ENTRIES_TRACED) {
        let check = checks::worded(why, &L1::new(cx.shared, &cx.vcpu.core.cpuid));
        cx.note(Note::NestedVmenterFailed { check: check.0, error: 0 });
    }
}

/// A failure after L2 was entered: L1 sees a whole #VMEXIT.
fn fail(cx: &mut Cx<'_>) {
    let code = vmcb12::invalid_code(&L1::new(cx.shared, &cx.vcpu.core.cpuid));
    cx.vcpu.nested.run_pending = false;
    let control = &mut cx.vcpu.nested.vmcb02.vmcb.control;
    control.exit_code = code;
    (control.exit_info_1, control.exit_info_2) = (0, 0);
    exit::vmexit(cx);
}

/// `vmcb01` is not in use while L2 runs: L1's registers, as L1 sees them, are kept there. Segments and RSP are there already.
fn save_l1(cx: &mut Cx<'_>) {
    let (state, npt) = (&*cx.state, cx.shared.kvm.tdp());
    let save = &mut cx.vcpu.vmcb01.vmcb.save;
    (save.efer, save.cr0, save.cr4) = (state.efer, state.cr0, state.cr4);
    (save.rflags, save.rip) = (state.rflags, state.rip);
    (save.rax, save.rsp) = (state.gpr[gpr::RAX], state.gpr[gpr::RSP]);
    if !npt {
        save.cr3 = state.cr3;
    }
    // Where they differ from what silicon stored, KVM has written the VMCB by now.
    crate::kvm::vmcb::write_segments(&mut cx.vcpu.vmcb01, cx.state);
}

/// `enter_svm_guest_mode`, by VMRUN or by RSM. False: L2 has an illegal CR3, and guest mode is on.
pub fn enter_guest_mode(cx: &mut Cx<'_>, gpa: u64, vmcb12: &Vmcb, from_vmrun: bool) -> bool {
    // 5.10 tells it of VMRUN only.
    if from_vmrun || cx.on(Switch::NESTED_ENTRIES_TRACED) {
        note_entry(cx, gpa);
    }
    let save = &cx.vcpu.vmcb01.vmcb.save;
    let l1 = VcpuState { cr0: save.cr0, cr4: save.cr4, efer: save.efer, ..*cx.state };
    cx.vcpu.nested.vmcb12_gpa = gpa;
    let spec_ctrl = cx.vcpu.vmcb01.vmcb.save.spec_ctrl;
    cx.vcpu.nested.vmcb02.vmcb.save.spec_ctrl = spec_ctrl;
    cx.vcpu.core.guest_mode = true;
    watch_l2(cx);
    prepare_control(cx);
    prepare_save(cx, vmcb12);
    let cr3 = cx.vcpu.nested.vmcb12.save.cr3;
    let legal = load_cr3(cx, cr3, &l1, from_vmrun);
    if legal {
        cx.vcpu.nested.pages_wanted |= !from_vmrun;
        events::set_gif(cx, true);
    }
    legal
}

/// From 6.1 on exceptions that L1 intercepts are told apart when KVM queues them; instructions are when it emulates them.
fn watch_l2(cx: &mut Cx<'_>) {
    let wanted = cx.vcpu.nested.vmcb12.control.intercepts.exceptions();
    let apart = cx.on(Switch::NESTED_EXCEPTIONS_APART);
    cx.vcpu.core.events.wanted_by_l1 = if apart { wanted } else { 0 };
    cx.vcpu.core.l1_intercepts = emulated::wanted(&cx.vcpu.nested.vmcb12, &cx.shared.kvm.silicon);
}

/// `kvm_nested_vmenter` or its ancestor, and `kvm_nested_intercepts`.
fn note_entry(cx: &mut Cx<'_>, gpa: u64) {
    if cx.host.wants(NoteKind::NESTED_VMENTER) {
        let Vmcb { control, save } = &cx.vcpu.nested.vmcb12;
        let npt = control.nested_ctl.into_bits() != 0;
        let traced = cx.on(Switch::NESTED_ENTRIES_TRACED);
        let next = cx.vcpu.vmcb01.vmcb.save.rip;
        let note = Note::NestedVmenter {
            // The older event has the address of VMRUN itself.
            rip: if traced { next } else { next.wrapping_sub(cx.exit.insn.len.into()) },
            vmcb: gpa,
            nested_rip: save.rip,
            int_ctl: control.int_ctl.into_bits(),
            event_inj: control.event_inj.into_bits(),
            npt,
            pgd: if npt { control.nested_cr3 } else { save.cr3 },
            old: !traced,
        };
        cx.note(note);
    }
    if cx.host.wants(NoteKind::NESTED_INTERCEPTS) {
        let [cr, _, exceptions, words @ ..] = cx.vcpu.nested.vmcb12.control.intercepts.0;
        cx.note(Note::NestedIntercepts { cr, exceptions, words });
    }
}

/// `nested_vmcb02_prepare_control`.
fn prepare_control(cx: &mut Cx<'_>) {
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    let dirty = l1.on(Switch::NESTED_VMRUN_MARKS_DIRTY) || !l1.on(Switch::NESTED_VMCB02);
    let nested = &mut cx.vcpu.nested;
    let (of_l0, of_l1) = (&cx.vcpu.vmcb01.vmcb.control, &nested.vmcb12.control);
    let control = &mut nested.vmcb02.vmcb.control;
    control.nested_ctl = of_l0.nested_ctl;
    (control.iopm_base_pa, control.msrpm_base_pa) = (of_l0.iopm_base_pa, of_l0.msrpm_base_pa);
    control.asid = of_l0.asid;
    control.tlb_ctl = 0;
    let l2s_tsc = of_l1.tsc_offset;
    // Without a GIF of L2's it is L1's, which VMRUN sets.
    let own_gif = l1.vgif() && of_l1.int_ctl.v_gif_enable();
    let gif = if own_gif { of_l1.int_ctl } else { of_l0.int_ctl };
    let nmi = if l1.vnmi() { of_l1.int_ctl } else { IntCtl::new() };
    control.int_ctl = of_l1
        .int_ctl
        .with_v_intr_masking(true)
        .with_v_gif(own_gif && gif.v_gif())
        .with_v_gif_enable(gif.v_gif_enable())
        .with_v_nmi_pending(nmi.v_nmi_pending())
        .with_v_nmi_blocking(nmi.v_nmi_blocking())
        .with_v_nmi_enable(nmi.v_nmi_enable())
        .with_x2apic(false)
        .with_avic_enable(false);
    let vls = intercepts::has_vls(&l1, of_l1);
    control.virt_ext.set_v_vmload_vmsave(vls);
    control.int_vector = of_l1.int_vector;
    control.clean.set_tpr(false);
    (control.event_inj, control.event_inj_err) = (of_l1.event_inj, of_l1.event_inj_err);
    control.int_state = of_l1.int_state;
    let first_run_rip = nested.vmcb12.save.rip;
    control.next_rip = if l1.nrips() || !nested.run_pending { of_l1.next_rip } else { first_run_rip };
    let shadow = control.int_state.interrupt_shadow();
    if dirty {
        control.clean.set_iopm(false);
    }
    nested.msrpm_merged = false;
    let ratio = if l1.tsc_ratio() { nested.tsc_ratio } else { TSC_RATIO_DEFAULT };
    cx.state.nested_tsc_offset = l2s_tsc;
    cx.state.nested_tsc_ratio = ratio.wrapping_sub(TSC_RATIO_DEFAULT);
    pause_filter(&l1, of_l1, control);
    let kept = cx.state.interruptibility;
    cx.state.interruptibility = kept.with_sti(shadow).with_mov_ss(false);
    intercepts::recalc(cx.shared, cx.vcpu);
    enter_vnmi(cx, nmi);
}

/// An NMI that silicon was to deliver to L1 is KVM's now, and L2 has a mask of its own.
fn enter_vnmi(cx: &mut Cx<'_>, of_l1: IntCtl) {
    if !cx.shared.vnmi() {
        return;
    }
    cx.vcpu.core.events.nmi_pending |= cx.vcpu.vmcb01.vmcb.control.int_ctl.v_nmi_pending();
    cx.state.interruptibility.set_nmi(of_l1.v_nmi_enable() && of_l1.v_nmi_blocking());
}

/// L1's filter, where L1 has one: L0 has none of its own, and lets PAUSE through.
/// See: KVM svm/nested.c nested_vmcb02_prepare_control()
fn pause_filter(l1: &L1<'_>, of_l1: &ControlArea, control: &mut ControlArea) {
    // 5.10 takes whatever is there.
    let old = !l1.on(Switch::NESTED_PAUSE_FILTER);
    control.pause_filter_count = if old || l1.pause_filter() { of_l1.pause_filter_count } else { 0 };
    control.pause_filter_thresh = if old || l1.pause_threshold() { of_l1.pause_filter_thresh } else { 0 };
}

/// `nested_vmcb02_prepare_save`.
fn prepare_save(cx: &mut Cx<'_>, vmcb12: &Vmcb) {
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    let nested = &mut cx.vcpu.nested;
    let new = nested.vmcb12_gpa != nested.last_vmcb12_gpa;
    nested.last_vmcb12_gpa = nested.vmcb12_gpa;
    let kept = vmcb12::kept(&l1, vmcb12, new);
    pat::load(&l1, nested, cx.state.pat, kept);
    if l1.on(Switch::NESTED_LMA_IGNORED) {
        let efer = Efer::from_bits(nested.vmcb12.save.efer);
        nested.vmcb12.save.efer = efer.with_lma(efer.lma() && efer.lme()).into_bits();
    }
    lbr::enter(cx, vmcb12);
    load_l2(cx, kept);
    update_cr0_intercept(cx.shared, cx.vcpu, cx.state);
}

/// L2's registers: those of KVM's copy, and those that `vmcb02` kept.
fn load_l2(cx: &mut Cx<'_>, kept: Clean) {
    let nested = &mut cx.vcpu.nested;
    let (from, vmcb02, state) = (&nested.vmcb12.save, &mut nested.vmcb02.vmcb, &mut *cx.state);
    let old = (state.cr0(), state.cr4());
    let to = &mut vmcb02.save;
    if !kept.seg() {
        (to.es, to.cs, to.ss, to.ds, to.cpl) = (from.es, from.cs, from.ss, from.ds, from.cpl);
        vmcb02.control.clean.set_seg(false);
    }
    if !kept.dt() {
        (to.gdtr, to.idtr) = (from.gdtr, from.idtr);
        vmcb02.control.clean.set_dt(false);
    }
    if !kept.drx() {
        (to.dr7, to.dr6) = (from.dr7 | DR7_INIT, from.dr6 | DR6_INIT);
        vmcb02.control.clean.set_drx(false);
        state.dr6 = to.dr6;
    }
    state.dr7 = to.dr7;
    state.rflags = from.rflags | Rflags::new().with_always_one(true).into_bits();
    let (efer, cr0) = (Efer::from_bits(from.efer), Cr0::from_bits(from.cr0));
    // See: KVM svm/svm.c svm_set_cr0(), which finds L1's paging switched off.
    let leaves_long_mode = efer.lme() && old.0.pg() && !cr0.pg();
    state.efer = efer.with_lma(efer.lma() && !leaves_long_mode).into_bits();
    (state.cr0, state.cr4, state.cr2) = (from.cr0, from.cr4, from.cr2);
    (state.rip, state.gpr[gpr::RAX], state.gpr[gpr::RSP]) = (from.rip, from.rax, from.rsp);
    to.load_segments(state);
    update_runtime(cx, old.1);
}

/// CPUID shows OSXSAVE and OSPKE as CR4 has them.
pub fn update_runtime(cx: &mut Cx<'_>, old: Cr4) {
    let new = cx.state.cr4();
    if old.osxsave() != new.osxsave() || old.pke() != new.pke() {
        cx.vcpu.core.update_cpuid_runtime(cx.state);
    }
}

/// `nested_svm_load_cr3` on the way in. `l1`: L1's registers at VMRUN. `reload`: PDPTEs are read.
fn load_cr3(cx: &mut Cx<'_>, cr3: u64, l1: &VcpuState, reload: bool) -> bool {
    let control = &cx.vcpu.nested.vmcb12.control;
    let (npt, ncr3, id) = (control.nested_ctl.np_enable(), control.nested_cr3, cx.vcpu.core.id);
    if let Err(why) = check_cr3(cx, cr3, npt, reload) {
        note_failure(cx, why);
        return false;
    }
    cx.state.cr3 = cr3;
    let mmu = &mut cx.shared.kvm.mmu;
    if npt {
        mmu.enter_npt(id, l1, ncr3, cx.state, cx.host);
    } else {
        mmu.enter_shared(id, cx.state, cx.host);
    }
    true
}

/// Into L2 from restored state: the controls of `vmcb02`, and the MMU by L1's saved registers. False: CR3 of L2 is not legal, and
/// guest mode stays on. Neither PDPTEs nor L1's map are read yet.
pub fn restore(cx: &mut Cx<'_>) -> bool {
    watch_l2(cx);
    prepare_control(cx);
    let save = &cx.vcpu.vmcb01.vmcb.save;
    let l1 = VcpuState { cr0: save.cr0, cr4: save.cr4, efer: save.efer, ..*cx.state };
    let control = &cx.vcpu.nested.vmcb12.control;
    let (npt, ncr3, id) = (control.nested_ctl.np_enable(), control.nested_cr3, cx.vcpu.core.id);
    let mmu = &mut cx.shared.kvm.mmu;
    if npt {
        mmu.enter_npt(id, &l1, ncr3, cx.state, cx.host);
    } else {
        mmu.enter_shared(id, cx.state, cx.host);
    }
    let cr3 = cx.state.cr3;
    !cx.on(Switch::NESTED_SET_CHECKS_L1) || check_cr3(cx, cr3, npt, false).is_ok()
}

/// What `nested_svm_load_cr3` checks, in either direction.
pub fn check_cr3(cx: &mut Cx<'_>, cr3: u64, npt: bool, reload: bool) -> Result<(), checks::Check> {
    if cr3 & cx.vcpu.core.cpuid.reserved_gpa_bits() != 0 {
        return Err(checks::Check::CR3_NOT_LEGAL);
    }
    let pae = cx.state.cr0().pg() && cx.state.cr4().pae() && !cx.state.efer().lma();
    if !pae || npt || !reload {
        return Ok(());
    }
    let slots = &cx.shared.kvm.mmu.slots;
    cr::load_pdptrs(&cx.vcpu.core, cx.state, slots, cr3, cx.host)
        .map_err(|_| checks::Check::PDPTES_NOT_LOADED)
}

/// `nested_svm_vmrun_msrpm`: false where L1's map cannot be read.
pub fn merge_msrpm(cx: &mut Cx<'_>) -> bool {
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    let (map, vmcb12) = (&cx.vcpu.msrpm, &cx.vcpu.nested.vmcb12);
    let Ok(merged) = msrpm::merge(&l1, map, vmcb12, &cx.shared.kvm.mmu.slots, cx.host) else {
        return false;
    };
    if let Some(merged) = merged {
        let nested = &mut cx.vcpu.nested;
        (nested.msrpm, nested.msrpm_merged) = (merged, true);
        nested.vmcb02.vmcb.control.msrpm_base_pa = msrpm_pa(cx.shared, cx.vcpu.core.id, true);
    }
    true
}
