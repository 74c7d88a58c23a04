//! Instructions whose emulation a prefix asks for, where KVM's parameter `force_emulation_prefix` allows it; elsewhere each is an
//! invalid opcode.
//!
//! See: KVM arch/x86/kvm/x86.c handle_ud(), svm/svm.c svm_check_intercept()

use super::{
    Emit, Step,
    instructions::{LSTAR, OTHER_PORT, PORT, STAR, maps, msr, with_vmcb},
    nothing, step,
};
use crate::{
    kernel::Kernel,
    programs::nested::{
        hypervisor::{Hypervisor, intercept, layout},
        vmcb::exit,
    },
};
use iced_x86::{IcedError, code_asm::*};

/// __KVM_EMULATE_PREFIX: `ud2; .ascii "kvm"`.
const PREFIX: &[u8] = b"\x0f\x0bkvm";

/// A step whose intercept is a code, and whose instruction has the prefix.
macro_rules! forced {
    ($name:literal, $code:expr, $guest:expr) => {
        step($name, |k| intercept(k, $code), |k| force(k, $guest))
    };
}

/// A step whose instruction comes after others.
macro_rules! after {
    ($name:literal, $code:expr, $before:expr, $guest:expr) => {
        step($name, |k| intercept(k, $code), |k| $before(k, |k| force(k, $guest)))
    };
}

const STEPS: &[Step] = &[
    step("nop", nothing, |k| force(k, |k| k.a.nop())),
    step("cpuid not intercepted", nothing, |k| force(k, |k| k.a.cpuid())),
    step("mov to cr0 not intercepted", nothing, |k| {
        k.a.mov(rax, cr0)?;
        force(k, |k| k.a.mov(cr0, rax))
    }),
    step("smsw not intercepted", nothing, |k| force(k, |k| k.a.smsw(rax))),
    step("int 0x21 not intercepted", nothing, |k| k.attempt(|k| force(k, |k| k.a.int(0x21)))),
    forced!("cpuid", exit::CPUID, |k| k.a.cpuid()),
    forced!("pause", exit::PAUSE, |k| k.a.pause()),
    forced!("pushf", exit::PUSHF, |k| k.a.pushfq()),
    forced!("popf", exit::POPF, |k| k.a.popfq()),
    forced!("int 0x21", exit::SWINT, |k| k.a.int(0x21)),
    forced!("iret", exit::IRET, |k| k.a.iretq()),
    forced!("hlt", exit::HLT, |k| k.a.hlt()),
    forced!("rdtsc", exit::RDTSC, |k| k.a.rdtsc()),
    forced!("invd", exit::INVD, |k| k.a.invd()),
    forced!("wbinvd", exit::WBINVD, |k| k.a.wbinvd()),
    forced!("sidt", exit::IDTR_READ, |k| k.a.sidt(tbyte_ptr(layout::STACK_TOP))),
    forced!("lgdt", exit::GDTR_WRITE, |k| k.a.lgdt(tbyte_ptr(layout::STACK_TOP))),
    forced!("str", exit::TR_READ, |k| k.a.str(ax)),
    forced!("invlpg", exit::INVLPG, |k| k.a.invlpg(byte_ptr(layout::STACK_TOP))),
    forced!("stgi", exit::STGI, |k| k.a.stgi()),
    after!("vmload", exit::VMLOAD, with_vmcb, |k| k.a.vmload()),
    forced!("mov from cr3", exit::CR3_READ, |k| k.a.mov(rax, cr3)),
    forced!("mov to cr0", exit::CR0_WRITE, |k| k.a.mov(cr0, rax)),
    after!("mov to cr0, the same", exit::CR0_SEL_WRITE, old_cr0, |k| k.a.mov(cr0, rax)),
    after!("mov to cr0, cache disabled", exit::CR0_SEL_WRITE, new_cr0, |k| k.a.mov(cr0, rax)),
    step("mov to cr0, cache disabled, both", both_cr0_writes, |k| {
        new_cr0(k, |k| force(k, |k| k.a.mov(cr0, rax)))
    }),
    after!("lmsw, the same", exit::CR0_SEL_WRITE, old_cr0, |k| k.a.lmsw(ax)),
    forced!("clts", exit::CR0_SEL_WRITE, |k| k.a.clts()),
    forced!("clts, plain", exit::CR0_WRITE, |k| k.a.clts()),
    forced!("smsw", exit::CR0_READ, |k| k.a.smsw(rax)),
    forced!("mov to cr4", exit::CR4_WRITE, |k| k.a.mov(cr4, rax)),
    forced!("mov from dr0", exit::DR0_READ, |k| k.a.mov(rax, dr0)),
    forced!("mov to dr7", exit::DR7_WRITE, |k| k.a.mov(dr7, rax)),
    after!("outb", exit::IOIO, at_port, |k| k.a.out(dx, al)).informs(),
    after!("inl", exit::IOIO, at_port, |k| k.a.in_(eax, dx)).informs(),
    after!("inb elsewhere", exit::IOIO, elsewhere, |k| k.a.in_(al, dx)),
    after!("rdmsr", exit::MSR, with_star, |k| k.a.rdmsr()).informs(),
    after!("wrmsr", exit::MSR, with_star, |k| k.a.wrmsr()).informs(),
    after!("rdmsr elsewhere", exit::MSR, with_lstar, |k| k.a.rdmsr()),
];

pub fn list(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    maps(k)?;
    STEPS.iter().try_for_each(|step| super::run(k, hypervisor, step))
}

fn force(k: &mut Kernel, body: Emit) -> Result<(), IcedError> {
    k.a.db(PREFIX)?;
    body(k)
}

fn both_cr0_writes(k: &mut Kernel) -> Result<(), IcedError> {
    intercept(k, exit::CR0_WRITE)?;
    intercept(k, exit::CR0_SEL_WRITE)
}

fn old_cr0(k: &mut Kernel, body: Emit) -> Result<(), IcedError> {
    k.a.mov(rax, cr0)?;
    body(k)
}

fn new_cr0(k: &mut Kernel, body: Emit) -> Result<(), IcedError> {
    k.a.mov(rax, cr0)?;
    k.a.bts(rax, 30)?;
    body(k)
}

fn at_port(k: &mut Kernel, body: Emit) -> Result<(), IcedError> {
    k.a.mov(edx, u32::from(PORT))?;
    body(k)
}

fn elsewhere(k: &mut Kernel, body: Emit) -> Result<(), IcedError> {
    k.a.mov(edx, OTHER_PORT)?;
    body(k)
}

fn with_star(k: &mut Kernel, body: Emit) -> Result<(), IcedError> {
    msr(k, STAR, body)
}

fn with_lstar(k: &mut Kernel, body: Emit) -> Result<(), IcedError> {
    msr(k, LSTAR, body)
}
