//! Events: what the hypervisor injects, what interrupts its guest, and what a fault meanwhile leaves.

use super::{Step, nothing, step};
use crate::{
    apic::ICR_LOW,
    boot::selector,
    kernel::{IPI_VECTOR, Kernel, NO_VECTOR, vars},
    programs::{
        nested::{
            hypervisor::{self, Hypervisor, intercept, set},
            report,
            vmcb::{self, exit},
        },
        smp,
    },
};
use iced_x86::{IcedError, code_asm::*};

const VECTOR: u32 = 0x21;
pub const GP_WITH_CODE: u32 = vmcb::EVENT_VALID | vmcb::EVENT_ERROR_CODE | vmcb::EVENT_EXCEPTION | 13;
const INT: u32 = vmcb::EVENT_VALID | vmcb::EVENT_SOFTWARE_INTERRUPT | VECTOR;
/// An address without an entry of level 4.
pub const NOWHERE: u64 = crate::programs::paging::GVA + (1 << 39);
// RFLAGS with bit 1, which is always set. See: APM vol. 2 3.1.6 RFLAGS Register
const RFLAGS_IF: u64 = 0x202;
const RFLAGS_TF: u64 = 0x102;
// Self, fixed; self, NMI. See: APM vol. 2 16.5 Interprocessor Interrupts
const SELF: u32 = 0x4_4000 | IPI_VECTOR as u32;
const SELF_NMI: u32 = 0x4_4400;

const STEPS: &[Step] = &[
    step("#GP injected", |k| inject(k, GP_WITH_CODE), says_vector).delivers(),
    step("INT injected", |k| inject(k, INT), says_vector).delivers(),
    step("#GP injected, no idt", |k| inject_without_idt(k, true), says_vector).informs().delivers(),
    step("#GP injected, no idt, no intercept", |k| inject_without_idt(k, false), says_vector).delivers(),
    step("virtual interrupt", |k| virtual_interrupt(k, RFLAGS_IF, 15, 0), says_vector).delivers(),
    step("virtual interrupt, masked", |k| virtual_interrupt(k, 2, 15, 0), says_vector).delivers(),
    step("virtual interrupt below V_TPR", |k| virtual_interrupt(k, RFLAGS_IF, 8, 10), says_vector).delivers(),
    step("virtual interrupt intercepted", vintr, says_vector).delivers(),
    step("single step", single_step, |k| {
        k.a.nop()?;
        k.a.nop()
    }),
];

/// A step with an interrupt of the hypervisor's own pending, which is taken at last.
struct Interrupt {
    step: Step,
    /// RFLAGS.IF of the hypervisor at VMRUN.
    taken: bool,
}

const INTERRUPTS: &[Interrupt] = &[
    Interrupt { step: step("interrupt intercepted", |k| intr(k, true, 2), nothing), taken: true },
    Interrupt {
        step: step("interrupt masked by the hypervisor", |k| intr(k, true, RFLAGS_IF), nothing),
        taken: false,
    },
    Interrupt { step: step("interrupt unmasked by the guest", |k| intr(k, false, 2), unmask), taken: false },
    Interrupt { step: step("interrupt taken by the guest", own_interrupt, nothing), taken: false },
];

pub fn list(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    STEPS.iter().try_for_each(|step| super::run(k, hypervisor, step))?;
    smp::enable_apic(k)?;
    for Interrupt { step, taken } in INTERRUPTS {
        interrupt_self(k)?;
        k.a.mov(dword_ptr(hypervisor::var::TAKES_INTERRUPTS), u32::from(*taken))?;
        super::run(k, hypervisor, step)?;
        k.a.sti()?;
        k.a.nop()?;
        k.a.cli()?;
        k.print(" taken so far ")?;
        k.print_variable(vars::INTERRUPTS)?;
        k.print("\n")?;
    }
    k.a.mov(dword_ptr(hypervisor::var::TAKES_INTERRUPTS), 0)?;
    nmi(k, hypervisor)
}

/// An NMI that comes while GIF is 0: an exit first, and the hypervisor's own at STGI.
fn nmi(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    let entry = hypervisor::guest(k, nothing)?;
    hypervisor.reset(k, entry)?;
    intercept(k, exit::NMI)?;
    k.print("nmi:")?;
    k.a.clgi()?;
    send(k, SELF_NMI)?;
    k.attempt(|k| hypervisor.run(k))?;
    report::print_exit(k)?;
    k.print(" hypervisor")?;
    report::print_vector(k)?;
    k.print("\n")?;
    // The handler did not return: IRET unmasks NMIs.
    let mut after = k.a.create_label();
    k.a.mov(rcx, rsp)?;
    k.a.lea(rax, ptr(after))?;
    k.a.push(i32::from(selector::DATA))?;
    k.a.push(rcx)?;
    k.a.push(2)?;
    k.a.push(i32::from(selector::CODE64))?;
    k.a.push(rax)?;
    k.a.iretq()?;
    k.here(&mut after)
}

/// An interrupt of the processor by itself, once its APIC is enabled.
pub fn interrupt_self(k: &mut Kernel) -> Result<(), IcedError> {
    send(k, SELF)
}

fn send(k: &mut Kernel, command: u32) -> Result<(), IcedError> {
    k.a.mov(ebx, ICR_LOW)?;
    k.a.mov(dword_ptr(rbx), command)
}

/// An event before the first instruction; its handler leads to that instruction.
pub fn inject(k: &mut Kernel, event: u32) -> Result<(), IcedError> {
    fixup(k)?;
    set(k, vmcb::EVENTINJ, event.into())?;
    set(k, vmcb::EVENTINJ_ERROR, 0x18)
}

fn inject_without_idt(k: &mut Kernel, intercepted: bool) -> Result<(), IcedError> {
    if intercepted {
        intercept(k, exit::EXCEPTION + 14)?;
    }
    set(k, vmcb::IDTR_BASE, NOWHERE)?;
    inject(k, GP_WITH_CODE)
}

fn virtual_interrupt(k: &mut Kernel, rflags: u64, priority: u32, tpr: u32) -> Result<(), IcedError> {
    fixup(k)?;
    set(k, vmcb::RFLAGS, rflags)?;
    set(k, vmcb::INT_VECTOR, VECTOR.into())?;
    let control = vmcb::V_IRQ | priority << vmcb::V_INTR_PRIO_SHIFT | vmcb::V_INTR_MASKING | tpr;
    set(k, vmcb::INT_CTL, control.into())
}

fn vintr(k: &mut Kernel) -> Result<(), IcedError> {
    intercept(k, exit::VINTR)?;
    virtual_interrupt(k, RFLAGS_IF, 15, 0)
}

fn single_step(k: &mut Kernel) -> Result<(), IcedError> {
    intercept(k, exit::EXCEPTION + 1)?;
    set(k, vmcb::RFLAGS, RFLAGS_TF)
}

fn intr(k: &mut Kernel, masking: bool, rflags: u64) -> Result<(), IcedError> {
    intercept(k, exit::INTR)?;
    set(k, vmcb::INT_CTL, if masking { vmcb::V_INTR_MASKING.into() } else { 0 })?;
    set(k, vmcb::RFLAGS, rflags)
}

fn own_interrupt(k: &mut Kernel) -> Result<(), IcedError> {
    set(k, vmcb::RFLAGS, RFLAGS_IF)
}

fn unmask(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.sti()?;
    k.a.nop()?;
    k.a.nop()
}

/// Where the handler of what is injected goes on: at the first instruction, as if nothing had been.
fn fixup(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(qword_ptr(vars::VECTOR), NO_VECTOR as i32)?;
    k.a.mov(rax, qword_ptr(hypervisor::var::START))?;
    k.a.mov(qword_ptr(vars::FIXUP_RIP), rax)?;
    k.a.mov(rax, qword_ptr(hypervisor::at(vmcb::RSP)))?;
    k.a.mov(qword_ptr(vars::FIXUP_RSP), rax)
}

/// The guest's guest says which vector reached it; 0xff is none.
fn says_vector(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(qword_ptr(vars::FIXUP_RIP), 0)?;
    k.print(" guest")?;
    report::print_vector(k)
}
