//! Firmware's habit: a 64-bit BAR goes to the top of the address space that CPUID promises.
//!
//! The address is probed twice, as firmware that honours GuestPhysBits and as firmware that only knows MAXPHYADDR. Then
//! RAM is looked at again: a page table with too few levels may have mapped the BAR over it.

use crate::{
    kernel::{Kernel, NO_VECTOR, vars},
    parameters::Values,
    programs::paging::{self, DATA, GVA, P_W_U, PDE, SIGNATURE},
};
use iced_x86::{IcedError, code_asm::*};

/// The BAR's size: it is placed so much below the top.
const BAR_SIZE: i32 = 0x4000_0000;
/// Present, writable, not cached, 2 MiB.
const DEVICE_PAGE: i32 = 0x9b;
const PROBE_VALUE: i32 = 0x1357_9bdf;

pub fn program(k: &mut Kernel, _: &Values) -> Result<(), IcedError> {
    let mut promised = k.a.create_label();
    paging::prepare(k)?;
    paging::address_widths(k)?;
    k.a.mov(r12d, eax)?;
    k.a.mov(r13d, edx)?;
    k.print("MAXPHYADDR ")?;
    k.print_dec()?;
    k.print(" GuestPhysBits ")?;
    k.a.mov(eax, edx)?;
    k.print_dec()?;
    k.print("\n")?;
    k.a.test(r13d, r13d)?;
    k.a.jnz(promised)?;
    k.a.mov(r13d, r12d)?;
    k.here(&mut promised)?;
    probe(k, "GuestPhysBits", r13d)?;
    probe(k, "MAXPHYADDR", r12d)?;
    let mut intact = k.a.create_label();
    k.a.mov(rax, qword_ptr(DATA))?;
    k.a.mov(rbx, SIGNATURE)?;
    k.a.cmp(rax, rbx)?;
    k.a.je(intact)?;
    k.print("FAIL: RAM changed\n")?;
    k.a.mov(eax, 1)?;
    k.exit()?;
    k.here(&mut intact)?;
    k.print("PASS: every probe came back\n")?;
    k.a.xor(eax, eax)?;
    k.exit()
}

/// Writes and reads the BAR at the top of an address space of `width` bits.
fn probe(k: &mut Kernel, what: &str, width: AsmRegister32) -> Result<(), IcedError> {
    let (mut faulted, mut done) = (k.a.create_label(), k.a.create_label());
    k.a.mov(ecx, width)?;
    k.a.mov(eax, 1)?;
    k.a.shl(rax, cl)?;
    k.a.sub(rax, BAR_SIZE)?;
    k.print(&format!("BAR at the top by {what}: "))?;
    k.print_hex()?;
    k.a.or(rax, DEVICE_PAGE)?;
    k.a.mov(qword_ptr(PDE), rax)?;
    k.a.mov(rbx, GVA)?;
    k.a.invlpg(byte_ptr(rbx))?;
    k.attempt(|k| {
        k.a.mov(dword_ptr(rbx), PROBE_VALUE)?;
        k.a.mov(eax, dword_ptr(rbx))?;
        k.a.mov(r14d, eax)
    })?;
    k.a.cmp(qword_ptr(vars::VECTOR), NO_VECTOR as i32)?;
    k.a.jne(faulted)?;
    k.print(" answers\n")?;
    k.a.jmp(done)?;
    k.here(&mut faulted)?;
    k.print(" faults, error ")?;
    k.print_variable(vars::ERROR)?;
    k.print("\n")?;
    k.here(&mut done)?;
    paging::set_entry(k, PDE, paging::PTE | P_W_U)
}
