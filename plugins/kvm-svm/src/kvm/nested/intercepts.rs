//! The intercepts of `vmcb02`: L0's and L1's together; and whose an exit of L2 is.
//!
//! See: KVM arch/x86/kvm/svm/nested.c recalc_intercepts() (7.2: nested_vmcb02_recalc_intercepts()), nested_svm_exit_special(),
//! nested_svm_intercept(); svm.c svm_check_intercept()

use super::{msrpm, patches::L1, vmcb12::Vmcb12};
use crate::{
    silicon::vmcb::{ControlArea, InterceptVector, Vmcb},
    vm::{Shared, SvmVcpu},
};
use vmtape_abi::Host;
use vmtape_arch::{
    exit::SvmExitCode as C,
    regs::{Cr0, Rflags},
};
use vmtape_kvm_core::{profile::Switch, slots::Slots};

/// `recalc_intercepts`: to be called whenever an intercept of `vmcb01` changes.
pub fn recalc(shared: &Shared, vcpu: &mut SvmVcpu) {
    vcpu.vmcb01.vmcb.control.clean.set_intercepts(false);
    if !vcpu.is_guest_mode() {
        return;
    }
    let l1 = L1::new(shared, &vcpu.core.cpuid);
    let merged = merge(&l1, &vcpu.vmcb01.vmcb, &vcpu.nested.vmcb12);
    let control = &mut vcpu.nested.vmcb02.vmcb.control;
    control.intercepts = merged;
    control.clean.set_intercepts(false);
}

/// L0's intercepts without what L1's settings make needless, L1's, and what L2 must not do by itself.
pub fn merge(l1: &L1<'_>, vmcb01: &Vmcb, vmcb12: &Vmcb12) -> InterceptVector {
    let wanted = &vmcb12.control;
    let mut merged = vmcb01.control.intercepts;
    if wanted.int_ctl.v_intr_masking() {
        drop_masked(l1, vmcb01, &mut merged);
    }
    if !l1.on(Switch::NESTED_VMMCALL_INTERCEPTED) {
        merged.set(C::VMMCALL, false);
    }
    for (word, of_l1) in merged.0.iter_mut().zip(wanted.intercepts.0) {
        *word |= of_l1;
    }
    if l1.on(Switch::NESTED_PAUSE_OF_L1) {
        merged.set(C::PAUSE, wanted.intercepts.has(C::PAUSE));
    }
    if !l1.on(Switch::INTERCEPT_SMI) {
        merged.set(C::SMI, false);
    }
    if l1.on(Switch::NESTED_VLS_INTERCEPTED) && !has_vls(l1, wanted) {
        merged.set(C::VMLOAD, true);
        merged.set(C::VMSAVE, true);
    }
    merged
}

/// With V_INTR_MASKING neither CR8 nor RFLAGS.IF of L2 is about L1's interrupts.
fn drop_masked(l1: &L1<'_>, vmcb01: &Vmcb, merged: &mut InterceptVector) {
    merged.set(C::WRITE_CR8, false);
    if !l1.on(Switch::NESTED_WINDOW_KEPT) {
        merged.set(C::READ_CR8, false);
        merged.set(C::VINTR, false);
    } else if !Rflags::from_bits(vmcb01.save.rflags).intr() {
        merged.set(C::VINTR, false);
    }
}

/// L2 executes VMLOAD and VMSAVE by itself (`!nested_vmcb_needs_vls_intercept`).
pub fn has_vls(l1: &L1<'_>, vmcb12: &ControlArea) -> bool {
    l1.vls() && vmcb12.nested_ctl.np_enable() && vmcb12.virt_ext.v_vmload_vmsave()
}

/// Who gets an exit of L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    L0,
    L1,
}

/// What an exit of L2 is judged by.
pub struct Exited<'a> {
    pub vmcb01: &'a Vmcb,
    /// As #VMEXIT left it.
    pub vmcb02: &'a ControlArea,
    pub vmcb12: &'a Vmcb12,
    /// RCX of L2.
    pub rcx: u64,
    pub slots: &'a Slots,
}

/// `nested_svm_exit_special`: what L0 sees first, whatever L1 wants.
pub fn is_special(exit: &Exited<'_>) -> bool {
    match exit.vmcb02.exit_code() {
        C::INTR | C::NMI | C::NPF => true,
        code if is_exception(code) => exit.vmcb01.control.intercepts.has(code),
        _ => false,
    }
}

/// `nested_svm_exit_special` and `nested_svm_exit_handled` without the exit itself.
pub fn owner(l1: &L1<'_>, exit: &Exited<'_>, host: &mut dyn Host) -> Owner {
    let code = exit.vmcb02.exit_code();
    let wanted = &exit.vmcb12.control;
    let reflected = match code {
        _ if is_special(exit) => false,
        C::MSR if wanted.intercepts.has(C::MSR) => {
            let write = exit.vmcb02.exit_info_1 & 1 != 0;
            msrpm::msr_exits(l1, wanted, exit.rcx as u32, write, exit.slots, host)
        }
        C::IOIO if wanted.intercepts.has(C::IOIO) => {
            msrpm::io_exits(wanted, exit.vmcb02.exit_info_1, exit.slots, host)
        }
        // L0's own were taken out before.
        C::ERR => true,
        code if is_exception(code) => true,
        code => wanted.intercepts.has(code),
    };
    if reflected { Owner::L1 } else { Owner::L0 }
}

fn is_exception(code: C) -> bool {
    (C::EXCP_DE.0..C::EXCP_DE.0 + 32).contains(&code.0)
}

/// A write of CR0 that KVM emulates for L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cr0Write {
    Mov,
    Lmsw,
    Clts,
}

/// `svm_check_intercept` of a CR0 write: the exit that L1 wants of it. `operand`: what the instruction writes.
pub fn cr0_write(l1: &L1<'_>, vmcb12: &Vmcb12, write: Cr0Write, old: u64, operand: u64) -> Option<C> {
    let intercepts = &vmcb12.control.intercepts;
    let plain = intercepts.has(C::WRITE_CR0);
    if plain && l1.on(Switch::NESTED_CR0_WRITE_FIRST) {
        return Some(C::WRITE_CR0);
    }
    // Neither TS nor MP is selective.
    let mask = Cr0::new().with_ts(true).with_mp(true).into_bits();
    // LMSW writes the low four bits, and does not clear PE.
    let machine_status = |value: u64| value & 0xf | old & Cr0::new().with_pe(true).into_bits();
    let changed = match write {
        Cr0Write::Lmsw => machine_status(old) ^ machine_status(operand),
        _ => old ^ operand,
    };
    let changes = changed & !mask != 0;
    let selective = match write {
        Cr0Write::Clts => false,
        Cr0Write::Lmsw => changes || l1.on(Switch::NESTED_LMSW_SELECTIVE),
        Cr0Write::Mov => changes,
    };
    // What KVM finds selective is then no plain write, whoever wanted that.
    match (selective && intercepts.has(C::CR0_SEL_WRITE), plain) {
        (true, _) => Some(C::CR0_SEL_WRITE),
        (false, true) => Some(C::WRITE_CR0),
        (false, false) => None,
    }
}
