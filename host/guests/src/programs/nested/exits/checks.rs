//! What VMRUN refuses: a VMCB with one thing wrong, and an instruction that faults.
//!
//! See: APM vol. 2 (24593, revision 3.42) 15.5.1 Basic Operation, Canonicalization and Consistency Checks

use super::{Emit, Step, events, nothing, step};
use crate::{
    kernel::{Kernel, vars},
    programs::{
        nested::{
            hypervisor::{self, Hypervisor, at, layout, set},
            report,
            vmcb::{self, exit},
        },
        smp,
    },
};
use iced_x86::{IcedError, code_asm::*};

/// Beyond every width.
const NO_ADDRESS: u64 = 1 << 55;
/// Within every width, and neither memory nor a device.
const NO_MEMORY: u64 = 0x4000_0000;
const EFER: u32 = 0xc000_0080;
const VM_HSAVE_PA: u32 = 0xc001_0117;

const NCR3: &str = "ncr3 beyond the width";

const STEPS: &[Step] = &[
    step("nothing wrong", nothing, nothing),
    step("vmrun not intercepted", |k| flip(k, vmcb::intercept(exit::VMRUN).0, 0), nothing),
    step("asid 0", |k| set(k, vmcb::GUEST_ASID, 0), nothing),
    step("msrpm beyond the width", |k| set(k, vmcb::MSRPM_BASE_PA, NO_ADDRESS), nothing),
    step("iopm beyond the width", |k| set(k, vmcb::IOPM_BASE_PA, NO_ADDRESS), nothing),
    step(NCR3, |k| set(k, vmcb::N_CR3, NO_ADDRESS), nothing),
    step("efer without svme", |k| flip(k, vmcb::EFER, 12), nothing),
    step("efer, reserved bit", |k| flip(k, vmcb::EFER, 16), nothing),
    step("cr0, nw without cd", |k| flip(k, vmcb::CR0, 29), nothing),
    step("cr0, high bit", |k| flip(k, vmcb::CR0, 32), nothing),
    step("cr0, long mode without pe", |k| flip(k, vmcb::CR0, 0), nothing),
    step("cr4, reserved bit", |k| flip(k, vmcb::CR4, 15), nothing),
    step("cr4, long mode without pae", |k| flip(k, vmcb::CR4, 5), nothing),
    step("cr3 beyond the width", |k| flip(k, vmcb::CR3, 55), nothing),
    step("dr6, high bit", |k| flip(k, vmcb::DR6, 32), nothing),
    step("dr7, high bit", |k| flip(k, vmcb::DR7, 32), nothing),
    step("cs, l and d", |k| set(k, vmcb::CS_ATTRIB, 0xe9b), nothing),
];

/// Events that no processor takes.
const INJECTIONS: &[Step] = &[
    step("event of type 1", |k| event(k, 1 << 8 | 13), nothing),
    step("event, exception 2", |k| event(k, vmcb::EVENT_EXCEPTION | 2), nothing),
];

pub fn injections(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    INJECTIONS.iter().try_for_each(|step| super::run(k, hypervisor, step))
}

/// What a VMRUN that fails leaves: the event that it was to inject, and GIF, by an interrupt that is pending.
pub fn failures(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    let entry = hypervisor::guest(k, nothing)?;
    hypervisor.reset(k, entry)?;
    set(k, vmcb::GUEST_ASID, 0)?;
    event(k, vmcb::EVENT_EXCEPTION | 6)?;
    k.print("event of a vmrun that fails:")?;
    hypervisor.run(k)?;
    report::print_exit(k)?;
    report::print_field(k, " left 0x", vmcb::EVENTINJ)?;
    k.print("\n")?;
    smp::enable_apic(k)?;
    events::interrupt_self(k)?;
    with_rax(k, layout::VMCB, |k| k.a.vmrun())?;
    k.print("interrupts after a vmrun that fails:")?;
    for text in [" taken ", ", after stgi "] {
        k.a.sti()?;
        k.a.nop()?;
        k.a.cli()?;
        k.print(text)?;
        k.print_variable(vars::INTERRUPTS)?;
        k.a.stgi()?;
    }
    k.print("\n")
}

/// A VMCB where there is no memory, which may be the end of the machine.
pub fn no_memory(k: &mut Kernel, _: &Hypervisor) -> Result<(), IcedError> {
    faults(k, "vmrun, no memory", |k| with_rax(k, NO_MEMORY, |k| k.a.vmrun()))
}

/// The guest's guest turns SVM off under itself.
pub fn svme_cleared(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    let entry = hypervisor::guest(k, |k| {
        toggle_svme(k)?;
        k.print("svme cleared: the guest goes on\n")?;
        k.a.xor(eax, eax)?;
        k.exit()
    })?;
    hypervisor.reset(k, entry)?;
    hypervisor.run(k)
}

/// VMMCALL that the hypervisor does not intercept.
pub fn vmmcall(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    let entry = hypervisor::guest(k, |k| {
        k.attempt(|k| k.a.vmmcall())?;
        k.print("vmmcall not intercepted:")?;
        report::print_vector(k)?;
        k.a.hlt()
    })?;
    hypervisor.reset(k, entry)?;
    let (word, bit) = vmcb::intercept(exit::VMMCALL);
    k.a.and(dword_ptr(at(word)), !bit as i32)?;
    hypervisor::intercept(k, exit::HLT)?;
    hypervisor.run(k)?;
    report::print_exit(k)?;
    k.print("\n")
}

pub fn list(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    steps(k, hypervisor, |_| true)
}

/// A KVM that does not check nCR3 finds no memory for the root of its shadow, and ends the machine.
pub fn list_without_ncr3(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    steps(k, hypervisor, |name| name != NCR3)
}

fn steps(k: &mut Kernel, hypervisor: &Hypervisor, wanted: fn(&str) -> bool) -> Result<(), IcedError> {
    STEPS.iter().filter(|step| wanted(step.name)).try_for_each(|step| super::run(k, hypervisor, step))?;
    faults(k, "vmrun, address not aligned", |k| with_rax(k, layout::VMCB + 8, |k| k.a.vmrun()))?;
    faults(k, "vmload, address not aligned", |k| with_rax(k, layout::VMCB + 8, |k| k.a.vmload()))?;
    faults(k, "vmrun, address too wide", |k| with_rax(k, NO_ADDRESS, |k| k.a.vmrun()))?;
    faults(k, "skinit", |k| k.a.skinit())?;
    hypervisor::write_msr(k, VM_HSAVE_PA, 0)?;
    faults(k, "vmrun, no host save area", |k| with_rax(k, layout::VMCB, |k| k.a.vmrun()))?;
    hypervisor::write_msr(k, VM_HSAVE_PA, layout::HOST_SAVE)?;
    faults(k, "host save area not aligned", |k| hypervisor::write_msr(k, VM_HSAVE_PA, 8))?;
    toggle_svme(k)?;
    for (name, body) in [
        ("vmrun without svme", (|k| with_rax(k, layout::VMCB, |k| k.a.vmrun())) as Emit),
        ("vmload without svme", |k| with_rax(k, layout::VMCB, |k| k.a.vmload())),
        ("vmsave without svme", |k| with_rax(k, layout::VMCB, |k| k.a.vmsave())),
        ("stgi without svme", |k| k.a.stgi()),
        ("clgi without svme", |k| k.a.clgi()),
        ("invlpga without svme", |k| k.a.invlpga()),
    ] {
        faults(k, name, body)?;
    }
    toggle_svme(k)
}

/// Changes one bit of a field.
pub fn flip(k: &mut Kernel, field: vmcb::Field, bit: i32) -> Result<(), IcedError> {
    k.a.btc(dword_ptr(at(field) + 4 * (bit as u64 / 32)), bit % 32)
}

fn event(k: &mut Kernel, event: u32) -> Result<(), IcedError> {
    set(k, vmcb::EVENTINJ, (vmcb::EVENT_VALID | event).into())
}

fn with_rax(k: &mut Kernel, value: u64, body: Emit) -> Result<(), IcedError> {
    k.a.mov(rax, value)?;
    body(k)
}

fn toggle_svme(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(ecx, EFER)?;
    k.a.rdmsr()?;
    k.a.btc(eax, 12)?;
    k.a.wrmsr()
}

/// Which exception an instruction of the hypervisor meets.
fn faults(k: &mut Kernel, name: &str, body: Emit) -> Result<(), IcedError> {
    k.attempt(body)?;
    k.print(name)?;
    k.print(":")?;
    report::print_vector(k)?;
    k.print("\n")
}
