//! Instructions that exit, and a few that do not.

use super::{Emit, Step, nothing, step};
use crate::{
    kernel::Kernel,
    programs::nested::{
        hypervisor::{self, Hypervisor, intercept, layout},
        vmcb::exit,
    },
};
use iced_x86::{IcedError, code_asm::*};

pub const STAR: u32 = 0xc000_0081;
pub const LSTAR: u32 = 0xc000_0082;
/// In none of the ranges of the permission map.
const OUTSIDE: u32 = 0x4000_0000;
/// A port that no device claims, whose bit is set, beside one whose bit is clear.
pub const PORT: u16 = 0x80;
pub const OTHER_PORT: i32 = 0x84;

/// A step whose intercept is a code.
macro_rules! intercepted {
    ($name:literal, $code:expr, $guest:expr) => {
        step($name, |k| intercept(k, $code), $guest)
    };
}

const STEPS: &[Step] = &[
    step("vmmcall", nothing, nothing),
    intercepted!("cpuid", exit::CPUID, |k| k.a.cpuid()),
    step("cpuid not intercepted", nothing, |k| k.a.cpuid()),
    intercepted!("hlt", exit::HLT, |k| k.a.hlt()),
    intercepted!("pause", exit::PAUSE, |k| k.a.pause()),
    intercepted!("rdtsc", exit::RDTSC, |k| k.a.rdtsc()),
    intercepted!("pushf", exit::PUSHF, |k| k.a.pushfq()),
    intercepted!("popf", exit::POPF, |k| k.a.popfq()),
    intercepted!("int 0x21", exit::SWINT, |k| k.a.int(0x21)),
    intercepted!("iret", exit::IRET, |k| k.a.iretq()),
    intercepted!("invd", exit::INVD, |k| k.a.invd()),
    intercepted!("wbinvd", exit::WBINVD, |k| k.a.wbinvd()),
    intercepted!("sidt", exit::IDTR_READ, |k| k.a.sidt(tbyte_ptr(layout::STACK_TOP))),
    intercepted!("invlpg", exit::INVLPG, |k| k.a.invlpg(byte_ptr(layout::STACK_TOP))),
    intercepted!("vmrun", exit::VMRUN, |k| with_vmcb(k, |k| k.a.vmrun())),
    intercepted!("vmload", exit::VMLOAD, |k| with_vmcb(k, |k| k.a.vmload())),
    intercepted!("vmsave", exit::VMSAVE, |k| with_vmcb(k, |k| k.a.vmsave())),
    intercepted!("stgi", exit::STGI, |k| k.a.stgi()),
    intercepted!("clgi", exit::CLGI, |k| k.a.clgi()),
    intercepted!("skinit", exit::SKINIT, |k| k.a.skinit()),
    intercepted!("invlpga", exit::INVLPGA, invlpga),
    intercepted!("mov from cr0", exit::CR0_READ, |k| k.a.mov(rax, cr0)),
    intercepted!("mov to cr0", exit::CR0_WRITE, |k| k.a.mov(cr0, rax)),
    intercepted!("mov to cr0, the same", exit::CR0_SEL_WRITE, same_cr0),
    intercepted!("mov to cr0, cache disabled", exit::CR0_SEL_WRITE, cache_disabled),
    intercepted!("mov from cr4", exit::CR4_READ, |k| k.a.mov(rax, cr4)),
    intercepted!("mov to cr4", exit::CR4_WRITE, |k| k.a.mov(cr4, rax)),
    intercepted!("mov from dr0", exit::DR0_READ, |k| k.a.mov(rax, dr0)),
    intercepted!("mov to dr7", exit::DR7_WRITE, |k| k.a.mov(dr7, rax)),
    intercepted!("outb", exit::IOIO, |k| port(k, |k| k.a.out(dx, al))).informs(),
    intercepted!("outw", exit::IOIO, |k| port(k, |k| k.a.out(dx, ax))).informs(),
    intercepted!("outl", exit::IOIO, |k| port(k, |k| k.a.out(dx, eax))).informs(),
    intercepted!("inb", exit::IOIO, |k| port(k, |k| k.a.in_(al, dx))).informs(),
    intercepted!("inw one below", exit::IOIO, |k| {
        k.a.mov(edx, u32::from(PORT) - 1)?;
        k.a.in_(ax, dx)
    })
    .informs(),
    intercepted!("inb elsewhere", exit::IOIO, |k| {
        k.a.mov(edx, OTHER_PORT)?;
        k.a.in_(al, dx)
    }),
    intercepted!("rep outsb", exit::IOIO, |k| {
        k.a.mov(esi, layout::STACK_TOP as u32)?;
        k.a.mov(ecx, 3)?;
        port(k, |k| k.a.rep().outsb())
    })
    .informs(),
    intercepted!("rdmsr", exit::MSR, |k| msr(k, STAR, |k| k.a.rdmsr())).informs(),
    intercepted!("wrmsr", exit::MSR, |k| msr(k, STAR, |k| k.a.wrmsr())).informs(),
    intercepted!("rdmsr elsewhere", exit::MSR, |k| msr(k, LSTAR, |k| k.a.rdmsr())),
    intercepted!("rdmsr outside the map", exit::MSR, |k| msr(k, OUTSIDE, |k| k.a.rdmsr())).informs(),
    intercepted!("ud2", exit::EXCEPTION + 6, |k| k.a.ud2()),
    intercepted!("division by zero", exit::EXCEPTION, |k| {
        k.a.xor(ecx, ecx)?;
        k.a.div(ecx)
    }),
    intercepted!("wrmsr that faults", exit::EXCEPTION + 13, |k| msr(k, OUTSIDE, |k| k.a.wrmsr())),
    intercepted!("page fault", exit::EXCEPTION + 14, page_fault).informs(),
    step("page fault not intercepted", nothing, |k| k.attempt(page_fault)),
    step("ud2 without an idt", |k| hypervisor::set(k, super::super::vmcb::IDTR_LIMIT, 0), |k| k.a.ud2()),
];

pub fn list(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    maps(k)?;
    STEPS.iter().try_for_each(|step| super::run(k, hypervisor, step))
}

/// What the permission maps hold of the two MSRs and the two ports.
pub fn maps(k: &mut Kernel) -> Result<(), IcedError> {
    // Both bits of an MSR whose write does no harm, and one port.
    // See: APM vol. 2 15.11 MSR Intercepts, 15.10.1 I/O Permissions Map
    let bit = 0x4000 + (STAR & 0x1fff) * 2;
    k.a.or(byte_ptr(layout::MSRPM + u64::from(bit / 8)), 3 << (bit % 8))?;
    k.a.or(byte_ptr(layout::IOPM + u64::from(PORT / 8)), 1 << (PORT % 8))
}

pub fn with_vmcb(k: &mut Kernel, body: Emit) -> Result<(), IcedError> {
    k.a.mov(eax, layout::VMCB as u32)?;
    body(k)
}

fn invlpga(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(eax, layout::STACK_TOP as u32)?;
    k.a.mov(ecx, 1)?;
    k.a.invlpga()
}

fn same_cr0(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(rax, cr0)?;
    k.a.mov(cr0, rax)
}

fn cache_disabled(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(rax, cr0)?;
    k.a.bts(rax, 30)?;
    k.a.mov(cr0, rax)
}

fn port(k: &mut Kernel, body: Emit) -> Result<(), IcedError> {
    k.a.mov(edx, u32::from(PORT))?;
    body(k)
}

pub fn msr(k: &mut Kernel, number: u32, body: Emit) -> Result<(), IcedError> {
    k.a.xor(eax, eax)?;
    k.a.xor(edx, edx)?;
    k.a.mov(ecx, number)?;
    body(k)
}

/// Reads an address that has no entry of level 4.
fn page_fault(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(rbx, crate::programs::paging::GVA + (1 << 39))?;
    k.a.mov(rax, qword_ptr(rbx))
}
