//! Out of L2: who gets an exit, and #VMEXIT to L1.
//!
//! See: KVM arch/x86/kvm/svm/nested.c nested_sync_control_from_vmcb02(), nested_svm_exit_handled(), nested_svm_vmexit()

use super::{
    enter::{check_cr3, update_runtime},
    events,
    intercepts::{self, Cr0Write, Exited, Owner},
    lbr, pat,
    patches::L1,
    vmcb12::{self, Mapped, Unmapped},
};
use crate::{
    kvm::{handlers::Cx, setup, vmcb::write_segments},
    silicon::vmcb::EventInfo,
    vm::{Shared, SvmVcpu},
};
use vmtape_arch::{
    exception::{Exception, Vector},
    exit::{NpfInfo, SvmExitCode as C},
    note::{Note, NoteKind},
    regs::{Cr0, DR7_INIT},
    sensitive::SensitiveKind,
    vcpu::{Activity, gpr},
};
use vmtape_kvm_core::{
    events::{clear_general_detect, deliver_payload},
    profile::Switch,
};
use vmtape_kvm_mmu::fault::WalkFault;

/// The part of `svm_vcpu_run` that follows an exit of L2: what silicon has written, in KVM's copy.
pub fn sync(shared: &Shared, vcpu: &mut SvmVcpu) {
    let on = |switch| shared.kvm.options.on(switch);
    let nested = &mut vcpu.nested;
    let (from, to) = (&nested.vmcb02.vmcb.control, &mut nested.vmcb12.control);
    (to.event_inj, to.event_inj_err) = (from.event_inj, from.event_inj_err);
    if on(Switch::NESTED_SHADOW_SYNCED) {
        to.int_state = from.int_state;
    }
    // V_IRQ is not L1's while L0 waits with it for an interrupt window.
    let window = from.intercepts.has(C::VINTR);
    let usurped = match on(Switch::NESTED_WINDOW_KEPT) {
        true => window && !to.intercepts.has(C::VINTR),
        false => window && !to.int_ctl.v_intr_masking(),
    };
    if !usurped {
        to.int_ctl.set_v_irq(from.int_ctl.v_irq());
    }
    if to.int_ctl.v_gif_enable() && L1::new(shared, &vcpu.core.cpuid).vgif() {
        to.int_ctl.set_v_gif(from.int_ctl.v_gif());
    }
    if L1::new(shared, &vcpu.core.cpuid).vnmi() {
        let (pending, blocking) = (from.int_ctl.v_nmi_pending(), from.int_ctl.v_nmi_blocking());
        to.int_ctl = to.int_ctl.with_v_nmi_pending(pending).with_v_nmi_blocking(blocking);
    }
    to.int_ctl.set_v_tpr(to.int_ctl.v_tpr() & !0xf | from.int_ctl.v_tpr() & 0xf);
    nested.run_pending = false;
}

/// `svm_handle_exit`, what comes before the handlers while L2 runs. True: L1 has got the exit.
pub fn reflect(cx: &mut Cx<'_>) -> bool {
    if cx.on(Switch::NESTED_NEXT_RIP_SYNCED) {
        cx.vcpu.nested.vmcb12.control.next_rip = cx.control().next_rip;
    }
    note_exit(cx);
    to_owner(cx)
}

/// `nested_svm_exit_handled`: the exit in `vmcb02` goes to L1 if it wants it. True: it has got it.
pub fn to_owner(cx: &mut Cx<'_>) -> bool {
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    let exited = Exited {
        vmcb01: &cx.vcpu.vmcb01.vmcb,
        vmcb02: &cx.vcpu.nested.vmcb02.vmcb.control,
        vmcb12: &cx.vcpu.nested.vmcb12,
        rcx: cx.state.gpr[gpr::RCX],
        slots: &cx.shared.kvm.mmu.slots,
    };
    let reflected = intercepts::owner(&l1, &exited, cx.host) == Owner::L1;
    if reflected {
        vmexit(cx);
    }
    reflected
}

/// `kvm_nested_vmexit`.
fn note_exit(cx: &mut Cx<'_>) {
    if cx.host.wants(NoteKind::NESTED_VMEXIT) {
        let (rip, control) = (cx.state.rip, cx.control());
        let note = Note::NestedVmexit {
            rip,
            reason: control.exit_code().0,
            info1: control.exit_info_1,
            info2: control.exit_info_2,
            intr_info: control.exit_int_info.into_bits(),
            error_code: control.exit_int_info_err,
        };
        cx.note(note);
    }
}

/// An exit to L1 that KVM makes (`nested_svm_simple_vmexit`).
pub fn simple_vmexit(cx: &mut Cx<'_>, code: C) {
    synthesize(cx, code);
    let control = &mut cx.vcpu.nested.vmcb02.vmcb.control;
    (control.exit_info_1, control.exit_info_2) = (0, 0);
    vmexit(cx);
}

/// The code of an exit that silicon did not make.
pub fn synthesize(cx: &mut Cx<'_>, code: C) {
    let clears = cx.on(Switch::NESTED_SYNTHETIC_CODE_HIGH);
    let control = &mut cx.vcpu.nested.vmcb02.vmcb.control;
    let high = if clears { 0 } else { control.exit_code & !u64::from(u32::MAX) };
    control.exit_code = high | u64::from(code.0);
}

/// A CR0 write of L2 that is L0's exit, and that L1 wants too by its selective intercept (`check_selective_cr0_intercepted`,
/// and the emulator's `svm_check_intercept`). True: L1 has got it.
pub fn cr0_vmexit(cx: &mut Cx<'_>) -> bool {
    let insn = &cx.exit.insn;
    let write = match insn.kind {
        SensitiveKind::CLTS => Cr0Write::Clts,
        SensitiveKind::LMSW => Cr0Write::Lmsw,
        _ => Cr0Write::Mov,
    };
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    let code = intercepts::cr0_write(&l1, &cx.vcpu.nested.vmcb12, write, cx.state.cr0, insn.value);
    let Some(code) = code.filter(|_| cx.vcpu.is_guest_mode()) else { return false };
    synthesize(cx, code);
    vmexit(cx);
    true
}

/// `nested_svm_inject_exception_vmexit`. What is not said of an exception keeps the value of the last exit.
pub fn exception_vmexit(cx: &mut Cx<'_>, exception: &Exception) {
    synthesize(cx, C(C::EXCP_DE.0 + u32::from(exception.vector.0)));
    let control = &mut cx.vcpu.nested.vmcb02.vmcb.control;
    if exception.has_error_code.is_set() {
        control.exit_info_1 = exception.error_code.into();
    }
    match exception.vector {
        Vector::PF => control.exit_info_2 = exception.payload,
        Vector::DB => {
            deliver_payload(cx.state, exception);
            clear_general_detect(cx.state);
        }
        _ => {}
    }
    vmexit(cx);
}

/// `nested_svm_inject_npf_exit`: L1's nested tables do not translate an address of L2's.
pub fn npf_vmexit(cx: &mut Cx<'_>, fault: &WalkFault) {
    let by_walk = cx.on(Switch::NPF_STAGE_OF_WALK);
    let control = &mut cx.vcpu.nested.vmcb02.vmcb.control;
    let silicons = (NpfInfo::from_bits(control.exit_info_1), control.exit_info_2);
    let is_npf = control.exit_code() == C::NPF;
    let (info, address) = fault.npf_exit_info(is_npf.then_some(silicons), by_walk);
    (control.exit_info_1, control.exit_info_2) = (info.into_bits(), address);
    synthesize(cx, C::NPF);
    vmexit(cx);
}

/// `nested_svm_vmexit`: #VMEXIT to L1 with what `vmcb02` says.
pub fn vmexit(cx: &mut Cx<'_>) {
    let gpa = cx.vcpu.nested.vmcb12_gpa;
    let mapped = Mapped::read(&cx.shared.kvm.mmu.slots, gpa, vmcb12::VMRUN, cx.host);
    cx.vcpu.core.killed |= mapped == Err(Unmapped::Killed);
    if mapped.is_err() && !cx.on(Switch::NESTED_EXIT_UNMAPPED_SHUTDOWN) {
        // L2 goes on, whatever made it exit.
        cx.gp();
        return;
    }
    cx.state.activity = Activity::ACTIVE;
    // Whatever KVM did to L2's segments since the exit is in the VMCB by now.
    write_segments(&mut cx.vcpu.nested.vmcb02, cx.state);
    cx.vcpu.nested.vmcb02.vmcb.save.dr7 = cx.state.dr7;
    let stored = mapped.ok().map(|mapped| store(cx, mapped));
    let state = (cx.state.cr3, cx.state.cr4());
    cx.vcpu.core.guest_mode = false;
    (cx.vcpu.nested.vmcb12_gpa, cx.vcpu.nested.pages_wanted) = (0, false);
    restore_l1(cx);
    lbr::leave(cx);
    leave_vnmi(cx);
    if let Some(mapped) = stored {
        note_injected(cx, &mapped);
        mapped.write_back(cx.host);
        cx.shared.kvm.mmu.mark_dirty(cx.vcpu.core.id, gpa >> 12, cx.host);
    } else {
        cx.vcpu.core.events.request_triple_fault();
    }
    load_l1_cr3(cx, state.0);
    update_runtime(cx, state.1);
    cx.vcpu.core.events.leave_l2();
    let stepped = cx.state.rflags().tf() && cx.on(Switch::NESTED_EXIT_SINGLE_STEPS);
    if stepped {
        cx.inject(Exception::new(Vector::DB));
    }
}

/// What L1 finds in `vmcb12`.
fn store(cx: &mut Cx<'_>, mut mapped: Mapped) -> Mapped {
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    let nested = &cx.vcpu.nested;
    let (vmcb02, cached) = (&nested.vmcb02.vmcb, &nested.vmcb12);
    let exit = vmcb12::Exit { vmcb02, cached, state: cx.state, events: &cx.vcpu.core.events };
    vmcb12::store_exit(&l1, &mut mapped.vmcb, &exit);
    pat::store(&l1, &mut mapped.vmcb, cached, vmcb02);
    lbr::store(&l1, &mut mapped.vmcb, cached, cx.state);
    mapped
}

/// `kvm_nested_vmexit_inject`.
fn note_injected(cx: &mut Cx<'_>, mapped: &Mapped) {
    if cx.host.wants(NoteKind::NESTED_VMEXIT_INJECT) {
        let control = &mapped.vmcb.control;
        cx.note(Note::NestedVmexitInject {
            code: control.exit_code as u32,
            info1: control.exit_info_1,
            info2: control.exit_info_2,
            intr_info: control.exit_int_info.into_bits(),
            error_code: control.exit_int_info_err,
        });
    }
}

/// L1's registers, as `vmcb01` kept them. DR6 and the general registers other than RAX and RSP stay L2's.
fn restore_l1(cx: &mut Cx<'_>) {
    events::set_gif(cx, false);
    let vmcb01 = &mut cx.vcpu.vmcb01.vmcb;
    vmcb01.save.spec_ctrl = cx.vcpu.nested.vmcb02.vmcb.save.spec_ctrl;
    vmcb01.control.exit_int_info = EventInfo::new();
    let (save, state) = (&vmcb01.save, &mut *cx.state);
    (state.nested_tsc_offset, state.nested_tsc_ratio) = (0, 0);
    cx.vcpu.nested.vmcb12.control.nested_cr3 = 0;
    (state.rflags, state.efer) = (save.rflags, save.efer);
    state.cr0 = Cr0::from_bits(save.cr0).with_pe(true).into_bits();
    state.cr4 = save.cr4;
    (state.rip, state.gpr[gpr::RAX], state.gpr[gpr::RSP]) = (save.rip, save.rax, save.rsp);
    state.dr7 = DR7_INIT;
    save.load_segments(state);
    let shadow = state.interruptibility;
    if shadow.virtual_tpr() {
        state.cr8 = (vmcb01.control.int_ctl.v_tpr() & 0xf).into();
    }
    state.interruptibility = shadow.with_sti(false).with_mov_ss(false).with_virtual_tpr(false);
    setup::update_cr0_intercept(cx.shared, cx.vcpu, cx.state);
}

/// L1 goes on with L2's mask of NMIs, where L2 has one. An NMI that waits is silicon's to deliver.
fn leave_vnmi(cx: &mut Cx<'_>) {
    if !cx.shared.vnmi() {
        return;
    }
    let blocked = cx.vcpu.nested.vmcb02.vmcb.control.int_ctl.v_nmi_blocking();
    cx.state.interruptibility.set_nmi(blocked);
    let pending = cx.vcpu.core.events.take_nmi(cx.vcpu.core.id, cx.host);
    let int_ctl = &mut cx.vcpu.vmcb01.vmcb.control.int_ctl;
    *int_ctl = int_ctl.with_v_nmi_pending(pending).with_v_nmi_blocking(blocked);
}

/// `nested_svm_uninit_mmu_context`, and `nested_svm_load_cr3` on the way out.
fn load_l1_cr3(cx: &mut Cx<'_>, l2: u64) {
    let cr3 = cx.vcpu.vmcb01.vmcb.save.cr3;
    let legal = check_cr3(cx, cr3, false, true).is_ok();
    cx.state.cr3 = if legal { cr3 } else { l2 };
    cx.shared.kvm.mmu.leave_guest_mode(cx.vcpu.core.id, cx.state, cx.host);
    if !legal && cx.on(Switch::NESTED_HOST_CR3_SHUTDOWN) {
        cx.vcpu.core.events.request_triple_fault();
    }
}

/// What KVM still has to do about L2 when a handler has returned: a nested fault that it met is L1's.
pub fn after_handler(cx: &mut Cx<'_>) {
    if let Some(fault) = cx.shared.kvm.mmu.take_nested_fault(cx.vcpu.core.id)
        && cx.vcpu.is_guest_mode()
    {
        npf_vmexit(cx, &fault);
    }
}

/// Guest mode was left by force (`svm_leave_nested`): L1's contexts go on, with the registers that are there.
pub fn follow_leave(cx: &mut Cx<'_>) {
    let id = cx.vcpu.core.id;
    if !cx.vcpu.is_guest_mode() && cx.shared.kvm.mmu.vcpu(id).guest_mode {
        (cx.state.nested_tsc_offset, cx.state.nested_tsc_ratio) = (0, 0);
        cx.vcpu.core.events.wanted_by_l1 = 0;
        cx.shared.kvm.mmu.leave_guest_mode(id, cx.state, cx.host);
    }
}
