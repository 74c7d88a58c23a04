//! CPUID leaves and MSRs. An unknown MSR must fault.

use crate::{
    kernel::{Kernel, vars},
    parameters::Values,
};
use iced_x86::{IcedError, code_asm::*};

const LEAVES: [(u32, u32); 8] = [
    (0, 0),
    (1, 0),
    (7, 0),
    (0xd, 0),
    (0x4000_0000, 0),
    (0x8000_0000, 0),
    (0x8000_0001, 0),
    (0x8000_0008, 0),
];

/// EFER, APIC_BASE, PAT, STAR.
const MSRS: [u32; 4] = [0xc000_0080, 0x1b, 0x277, 0xc000_0081];
/// In no manual.
const UNKNOWN_MSR: u32 = 0x1234_5678;

pub fn program(k: &mut Kernel, _: &Values) -> Result<(), IcedError> {
    for (function, index) in LEAVES {
        k.a.mov(eax, function)?;
        k.a.mov(ecx, index)?;
        k.a.cpuid()?;
        for register in [rdx, rcx, rbx, rax] {
            k.a.push(register)?;
        }
        k.print(&format!("cpuid {function:x}.{index:x}:"))?;
        for _ in 0..4 {
            k.print(" ")?;
            k.a.pop(rax)?;
            k.print_hex()?;
        }
        k.print("\n")?;
    }
    for msr in MSRS {
        k.a.mov(ecx, msr)?;
        k.a.rdmsr()?;
        k.a.shl(rdx, 32)?;
        k.a.mov(eax, eax)?;
        k.a.or(rax, rdx)?;
        k.print(&format!("msr {msr:x}: "))?;
        k.print_hex()?;
        k.print("\n")?;
    }
    // STAR is writable with any value.
    k.a.mov(ecx, 0xc000_0081u32)?;
    k.a.mov(eax, 0x1234)?;
    k.a.mov(edx, 0x0018_0008)?;
    k.a.wrmsr()?;
    k.a.xor(eax, eax)?;
    k.a.rdmsr()?;
    k.print("msr c0000081 after a write: ")?;
    k.print_hex()?;
    k.print("\n")?;
    k.attempt(|k| {
        k.a.mov(ecx, UNKNOWN_MSR)?;
        k.a.rdmsr()
    })?;
    k.print(&format!("msr {UNKNOWN_MSR:x}: exception "))?;
    k.a.mov(rax, qword_ptr(vars::VECTOR))?;
    k.print_dec()?;
    k.print("\n")?;
    k.a.xor(ebx, ebx)?;
    k.a.cmp(eax, 13)?;
    k.a.setne(bl)?;
    k.a.mov(eax, ebx)?;
    k.exit()
}
