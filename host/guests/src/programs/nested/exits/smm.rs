//! SMIs that a guest's guest sends itself: into SMM and back where L1 lets them through, an exit where it does not.

use super::{Step, step};
use crate::{
    kernel::Kernel,
    programs::{
        nested::{
            hypervisor::{Hypervisor, intercept},
            vmcb::exit,
        },
        smm::handler::{self, ICR_SMI, SMBASE, mailbox, task},
        smp,
    },
};
use iced_x86::{IcedError, code_asm::*};

/// How often the guest's guest looks before it believes that no SMI comes.
const PATIENCE: i32 = 1000;

const THROUGH: Step = step("smi", super::nothing, sends);
const INTERCEPTED: Step = step("smi intercepted", |k| intercept(k, exit::SMI), sends);

pub fn list(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    start(k)?;
    for step in [THROUGH, INTERCEPTED, THROUGH] {
        super::run(k, hypervisor, &step)?;
        said(k)?;
    }
    Ok(())
}

/// RSM finds no VMCB where the state-save area says, which is the end of the machine.
pub fn lost(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    spoiled(k, hypervisor, task::SPOIL_VMCB)
}

/// RSM finds one that VMRUN refuses.
pub fn without_asid(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    spoiled(k, hypervisor, task::CLEAR_ASID)
}

fn spoiled(k: &mut Kernel, hypervisor: &Hypervisor, task: i32) -> Result<(), IcedError> {
    start(k)?;
    k.a.mov(dword_ptr(mailbox::TASKS), task)?;
    super::run(k, hypervisor, &THROUGH)?;
    said(k)
}

fn start(k: &mut Kernel) -> Result<(), IcedError> {
    smp::mask_pics(k)?;
    smp::enable_apic(k)?;
    handler::place(k, SMBASE)
}

fn sends(k: &mut Kernel) -> Result<(), IcedError> {
    let (mut again, mut done) = (k.a.create_label(), k.a.create_label());
    k.a.mov(edx, dword_ptr(mailbox::COUNT))?;
    k.a.mov(ecx, PATIENCE)?;
    handler::send(k, ICR_SMI)?;
    k.here(&mut again)?;
    k.a.cmp(dword_ptr(mailbox::COUNT), edx)?;
    k.a.jne(done)?;
    k.a.dec(ecx)?;
    k.a.jnz(again)?;
    k.here(&mut done)
}

/// What the handler has found.
fn said(k: &mut Kernel) -> Result<(), IcedError> {
    for (text, variable) in [
        (" smis 0x", mailbox::COUNT),
        (", in a guest's guest 0x", mailbox::SVM_GUEST),
        (" of the vmcb at 0x", mailbox::SVM_GUEST_VMCB),
    ] {
        k.print(text)?;
        k.a.mov(eax, dword_ptr(variable))?;
        k.print_hex()?;
    }
    k.print("\n")
}
