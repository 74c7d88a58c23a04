//! Events of L1 and of L2: what leaves L2, what is injected into it, and what waits.
//!
//! See: KVM arch/x86/kvm/svm/nested.c svm_check_nested_events(), svm.c svm_set_gif(), svm_interrupt_blocked(),
//! svm_nmi_blocked()

use super::exit;
use crate::{
    kvm::{handlers::Cx, vmcb::set_vintr},
    silicon::vmcb::Vmcb,
    vm::SvmVcpu,
};
use vmtape_arch::{
    event::Event,
    exit::SvmExitCode as C,
    note::Note,
    regs::Rflags,
    vcpu::{Interruptibility, VcpuState},
};
use vmtape_kvm_core::{events::Windows, profile::Switch};

/// `svm_set_gif`. A window that was asked for under the old value is asked for again at the entry, if it is needed.
pub fn set_gif(cx: &mut Cx<'_>, on: bool) {
    set_vintr(cx.shared, cx.vcpu, false);
    cx.vcpu.nested.gif = on;
}

impl SvmVcpu {
    /// Whether L1 intercepts this, and L2 runs.
    fn exits_for(&self, code: C) -> bool {
        self.is_guest_mode() && self.nested.vmcb12.control.intercepts.has(code)
    }

    /// `nested_svm_virtualize_tpr`: CR8 of L2 is not the local APIC's.
    pub fn virtualizes_tpr(&self) -> bool {
        self.is_guest_mode() && self.nested.vmcb12.control.int_ctl.v_intr_masking()
    }

    /// RFLAGS.IF that counts for L1's interrupts.
    fn interrupt_flag(&self, state: &VcpuState) -> bool {
        let of_l1 = Rflags::from_bits(self.vmcb01.vmcb.save.rflags);
        if self.virtualizes_tpr() { of_l1.intr() } else { state.rflags().intr() }
    }

    /// `svm_interrupt_blocked`.
    fn interrupt_blocked(&self, state: &VcpuState) -> bool {
        let masked = !self.nested.gif || !self.interrupt_flag(state);
        masked || !self.exits_for(C::INTR) && shadowed(state)
    }

    /// `svm_nmi_blocked`.
    fn nmi_blocked(&self, state: &VcpuState) -> bool {
        let masked = state.interruptibility.nmi() || shadowed(state);
        !self.nested.gif || !self.exits_for(C::NMI) && masked
    }

    /// `svm_interrupt_allowed` and `svm_nmi_allowed`, for injection.
    pub fn windows(&self, state: &VcpuState) -> Windows {
        Windows {
            interrupt: !self.interrupt_blocked(state),
            nmi: !self.nmi_blocked(state),
            busy: self.is_guest_mode() && self.nested.run_pending,
            ..Default::default()
        }
    }

    /// What GIF, and V_INTR_MASKING of L1, mean for whoever sends interrupts.
    pub fn held(&self, state: &VcpuState) -> Interruptibility {
        let own = !self.virtualizes_tpr();
        let open = !own && self.interrupt_flag(state);
        let held = !self.nested.gif || !own && !open;
        state.interruptibility.with_init(!self.nested.gif).with_interrupts(held).with_ignores_if(open)
    }
}

/// The interrupt shadow, which AMD's silicon has for NMIs too.
fn shadowed(state: &VcpuState) -> bool {
    state.interruptibility.sti() || state.interruptibility.mov_ss()
}

/// `svm_check_nested_events`: an event that L1 wants takes L2 out. True (-EBUSY): there is one, but L2 must get in first, or
/// what is on its way into it. Not modelled: INIT and SMI, which the machine knows of.
pub fn check(cx: &mut Cx<'_>) -> bool {
    let pending = cx.vcpu.nested.run_pending;
    if let Some(exception) = cx.vcpu.core.events.exception_vmexit {
        if !pending {
            exit::exception_vmexit(cx, &exception);
        }
        return pending;
    }
    let busy = pending || cx.vcpu.core.events.needs_reinjection();
    if let Some(exception) = cx.vcpu.core.events.pending_exception(cx.state) {
        if cx.on(Switch::NESTED_EXCEPTIONS_APART) {
            return pending;
        }
        // 5.10 decides here, when exceptions have become #DF as they do in L1.
        let code = C(C::EXCP_DE.0 + u32::from(exception.vector.0));
        if !busy && cx.vcpu.exits_for(code) {
            exit::exception_vmexit(cx, &exception);
        }
        return busy;
    }
    let id = cx.vcpu.core.id;
    if cx.host.nmi(id, false) && !cx.vcpu.nmi_blocked(cx.state) {
        if !busy && cx.vcpu.exits_for(C::NMI) {
            exit::simple_vmexit(cx, C::NMI);
        }
        return busy;
    }
    if cx.host.interrupt(id, false).is_some() && !cx.vcpu.interrupt_blocked(cx.state) {
        if !busy && cx.vcpu.exits_for(C::INTR) {
            cx.note(Note::NestedIntrVmexit { rip: cx.state.rip });
            exit::simple_vmexit(cx, C::INTR);
        }
        return busy;
    }
    false
}

/// The event that L1 injects with VMRUN, for silicon.
pub fn of_l1(vcpu: &SvmVcpu) -> Event {
    let Vmcb { control, save } = &vcpu.nested.vmcb02.vmcb;
    let behind = control.next_rip.wrapping_sub(save.rip);
    control.event_inj.event(control.event_inj_err, behind)
}
