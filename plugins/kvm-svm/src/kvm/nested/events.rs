//! Events of L1 and of L2: what leaves L2, what is injected into it, and what waits.
//!
//! See: KVM arch/x86/kvm/svm/nested.c svm_check_nested_events(), svm.c svm_set_gif(), svm_interrupt_blocked(),
//! svm_nmi_blocked()

use super::{exit, patches::L1};
use crate::{
    kvm::{
        handlers::Cx,
        vmcb::{set_intercept, set_vintr},
    },
    silicon::vmcb::Vmcb,
    vm::{Shared, SvmVcpu},
};
use vmtape_abi::Host;
use vmtape_arch::{
    event::Event,
    exit::SvmExitCode as C,
    note::Note,
    regs::Rflags,
    vcpu::{Activity, Interruptibility, VcpuState, gpr},
};
use vmtape_kvm_core::{events::Windows, profile::Switch, smm::SmiAllowed};

/// Its index as an MSR. See: APM vol. 2 16.11 Accessing x2APIC Register
const X2APIC_EOI: u32 = 0x80b;

/// `svm_set_gif`. A window that was asked for under the old value is asked for again at the entry, if it is needed.
pub fn set_gif(cx: &mut Cx<'_>, on: bool) {
    let vgif = cx.shared.vgif();
    if on && vgif {
        // It was there for the window of an NMI.
        set_intercept(cx.shared, cx.vcpu, C::STGI, false);
    }
    if on || !vgif {
        set_vintr(cx.shared, cx.vcpu, false);
    }
    cx.vcpu.nested.gif = on;
    let looks = cx.on(Switch::NESTED_GIF_TAKES_INIT);
    cx.vcpu.nested.init_overlooked = on && !looks && overlooks(cx.vcpu, cx.host);
}

/// An INIT is pending, and nothing else that KVM looks for when GIF is set.
fn overlooks(vcpu: &SvmVcpu, host: &mut dyn Host) -> bool {
    host.init(vcpu.core.id) && !has_event(vcpu, host)
}

fn has_event(vcpu: &SvmVcpu, host: &mut dyn Host) -> bool {
    let id = vcpu.core.id;
    host.smi(id, false) || vcpu.core.events.has_nmi(id, host) || host.interrupt(id, false).is_some()
}

/// KVM_REQ_EVENT, of which `kvm_apic_accept_events` is a part. Not told here: an EOI that the guest writes to memory.
pub fn look_for_init(vcpu: &mut SvmVcpu, state: &VcpuState, exited: Option<C>, host: &mut dyn Host) {
    if !vcpu.nested.init_overlooked {
        return;
    }
    let eoi = exited == Some(C::MSR) && state.gpr[gpr::RCX] as u32 == X2APIC_EOI;
    let window = matches!(exited, Some(C::VINTR | C::IRET));
    let halted = state.activity == Activity::HLT;
    let looks = eoi || window || halted || vcpu.core.events.any() || has_event(vcpu, host);
    vcpu.nested.init_overlooked = !looks;
}

/// STGI or CLGI, as silicon executes it, which KVM does not hear of. See: APM 15.33.2 Virtual GIF
pub fn toggle_gif(shared: &Shared, vcpu: &mut SvmVcpu, state: &mut VcpuState, on: bool, host: &mut dyn Host) {
    if vcpu.has_nested_vgif(shared) {
        vcpu.nested.vmcb02.vmcb.control.int_ctl.set_v_gif(on);
    } else {
        vcpu.nested.gif = on;
        vcpu.nested.init_overlooked = on && overlooks(vcpu, host);
    }
    state.interruptibility = vcpu.held(shared, state);
}

/// What silicon has made of V_GIF since the entry.
pub fn sync_gif(shared: &Shared, vcpu: &mut SvmVcpu, state: &VcpuState) {
    let on = state.interruptibility.virtual_gif();
    if !shared.vgif() {
        return;
    }
    if vcpu.has_nested_vgif(shared) {
        vcpu.nested.vmcb02.vmcb.control.int_ctl.set_v_gif(on);
    } else {
        vcpu.nested.gif = on;
    }
}

impl SvmVcpu {
    /// `nested_vgif_enabled`: L2 has a GIF of its own.
    pub fn has_nested_vgif(&self, shared: &Shared) -> bool {
        self.is_guest_mode()
            && self.nested.vmcb12.control.int_ctl.v_gif_enable()
            && L1::new(shared, &self.core.cpuid).vgif()
    }

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

    /// `is_vnmi_enabled`: L1's NMIs are silicon's affair.
    pub fn has_virtual_nmi(&self) -> bool {
        !self.is_guest_mode() && self.vmcb01.vmcb.control.int_ctl.v_nmi_enable()
    }

    /// `svm_nmi_blocked`.
    fn nmi_blocked(&self, state: &VcpuState) -> bool {
        let masked = state.interruptibility.nmi() || shadowed(state);
        !self.nested.gif || !self.exits_for(C::NMI) && masked
    }

    /// `svm_smi_blocked`.
    fn smi_blocked(&self) -> bool {
        !self.nested.gif || self.core.smm.active
    }

    /// `svm_smi_allowed`, for injection.
    pub fn smi_allowed(&self) -> SmiAllowed {
        match () {
            () if self.is_guest_mode() && self.nested.run_pending => SmiAllowed::Busy,
            () if self.smi_blocked() => SmiAllowed::Blocked,
            () if self.exits_for(C::SMI) => SmiAllowed::Busy,
            () => SmiAllowed::Now,
        }
    }

    /// `svm_interrupt_allowed` and `svm_nmi_allowed`, for injection.
    pub fn windows(&self, state: &VcpuState) -> Windows {
        Windows {
            interrupt: !self.interrupt_blocked(state),
            nmi: !self.nmi_blocked(state),
            virtual_nmi: self.has_virtual_nmi() && !self.vmcb01.vmcb.control.int_ctl.v_nmi_pending(),
            busy: self.is_guest_mode() && self.nested.run_pending,
            ..Default::default()
        }
    }

    /// What GIF, and V_INTR_MASKING of L1, mean for whoever sends interrupts.
    pub fn held(&self, shared: &Shared, state: &VcpuState) -> Interruptibility {
        let own = !self.virtualizes_tpr();
        let open = !own && self.interrupt_flag(state);
        let gif = self.nested.gif;
        let held = !gif || !own && !open;
        let silicons = match self.has_nested_vgif(shared) {
            true => self.nested.vmcb02.vmcb.control.int_ctl.v_gif(),
            false => gif && shared.vgif(),
        };
        state
            .interruptibility
            .with_init(!gif || self.nested.init_overlooked || self.exits_for(C::INIT) || self.core.smm.active)
            .with_smi(self.smi_blocked() || !self.core.smm.supported)
            .with_interrupts(held)
            .with_ignores_if(open)
            .with_virtual_gif(silicons)
            .with_virtual_irq(false)
    }
}

/// The interrupt shadow, which AMD's silicon has for NMIs too.
fn shadowed(state: &VcpuState) -> bool {
    state.interruptibility.sti() || state.interruptibility.mov_ss()
}

/// `svm_check_nested_events`: an event that L1 wants takes L2 out. True (-EBUSY): there is one, but L2 must get in first, or
/// what is on its way into it. An INIT that L1 does not want is the machine's.
pub fn check(cx: &mut Cx<'_>) -> bool {
    look_for_init(cx.vcpu, cx.state, None, cx.host);
    let pending = cx.vcpu.nested.run_pending;
    let id = cx.vcpu.core.id;
    // GIF is not looked at: the INIT waits for it after the exit, and then resets the vCPU.
    if cx.vcpu.exits_for(C::INIT) && !cx.vcpu.nested.init_overlooked && cx.host.init(id) {
        let busy = pending || cx.vcpu.core.events.needs_reinjection();
        if !busy {
            exit::simple_vmexit(cx, C::INIT);
        }
        return busy;
    }
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
    let smi = cx.vcpu.core.smm.supported && cx.host.smi(id, false);
    if smi && !cx.vcpu.smi_blocked() {
        if !busy && cx.vcpu.exits_for(C::SMI) {
            exit::simple_vmexit(cx, C::SMI);
        }
        return busy;
    }
    if cx.vcpu.core.events.has_nmi(id, cx.host) && !cx.vcpu.nmi_blocked(cx.state) {
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
