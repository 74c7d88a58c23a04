//! What VMRUN refuses: a VMCB with one thing wrong, and an instruction that faults.
//!
//! See: APM vol. 2 (24593, revision 3.42) 15.5.1 Basic Operation, Canonicalization and Consistency Checks

use super::{Emit, Step, nothing, step};
use crate::{
    kernel::Kernel,
    programs::nested::{
        hypervisor::{self, Hypervisor, at, layout, set},
        report,
        vmcb::{self, exit},
    },
};
use iced_x86::{IcedError, code_asm::*};

/// Beyond every width.
const NO_ADDRESS: u64 = 1 << 55;
const EFER: u32 = 0xc000_0080;
const VM_HSAVE_PA: u32 = 0xc001_0117;

const STEPS: &[Step] = &[
    step("nothing wrong", nothing, nothing),
    step("vmrun not intercepted", |k| flip(k, vmcb::intercept(exit::VMRUN).0, 0), nothing),
    step("asid 0", |k| set(k, vmcb::GUEST_ASID, 0), nothing),
    step("msrpm beyond the width", |k| set(k, vmcb::MSRPM_BASE_PA, NO_ADDRESS), nothing),
    step("iopm beyond the width", |k| set(k, vmcb::IOPM_BASE_PA, NO_ADDRESS), nothing),
    step("ncr3 beyond the width", |k| set(k, vmcb::N_CR3, NO_ADDRESS), nothing),
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

pub fn list(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    STEPS.iter().try_for_each(|step| super::run(k, hypervisor, step))?;
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
fn flip(k: &mut Kernel, field: vmcb::Field, bit: i32) -> Result<(), IcedError> {
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
