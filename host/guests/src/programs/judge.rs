//! A touch that the guest judges itself, by what CPUID says at that moment.

use crate::{
    kernel::{Kernel, NO_VECTOR, vars},
    programs::{
        access::{self, Access},
        paging::{self, Page},
    },
};
use iced_x86::{IcedError, code_asm::*};

const PAGE_FAULT: i32 = 14;
/// #PF with P and RSVD.
const RESERVED_BIT_FAULT: i32 = 9;
/// CPUID 0x80000001 EDX: 1 GiB pages.
const GBPAGES: u32 = 26;

/// What the programs that judge keep.
pub mod var {
    use crate::kernel::vars::PROGRAM;
    pub const FAILURES: u64 = PROGRAM + 0x80;
}

/// Reads `gva`, mapped to `gpa`, and says in a line that starts with `who` whether a processor of the present CPUID does
/// the same. Clobbers RAX, RBX, RCX, RDX, R12 to R14.
pub fn read(k: &mut Kernel, who: &str, gva: u64, gpa: u64, page: Page) -> Result<(), IcedError> {
    let (mut wrong, mut done, mut must_fault) = (k.a.create_label(), k.a.create_label(), k.a.create_label());
    expect(k, who, gpa, page)?;
    k.a.mov(rbx, gva)?;
    access::touch(k, Access::Read, false)?;
    access::print_outcome(k, Access::Read)?;
    k.a.test(r14d, r14d)?;
    k.a.jnz(must_fault)?;
    k.a.cmp(qword_ptr(vars::VECTOR), NO_VECTOR as i32)?;
    k.a.jne(wrong)?;
    k.print(": right\n")?;
    k.a.jmp(done)?;
    k.here(&mut must_fault)?;
    k.a.cmp(qword_ptr(vars::VECTOR), PAGE_FAULT)?;
    k.a.jne(wrong)?;
    k.a.cmp(qword_ptr(vars::ERROR), RESERVED_BIT_FAULT)?;
    k.a.jne(wrong)?;
    k.a.cmp(qword_ptr(vars::CR2), rbx)?;
    k.a.jne(wrong)?;
    k.print(": right\n")?;
    k.a.jmp(done)?;
    k.here(&mut wrong)?;
    k.a.lock().inc(qword_ptr(var::FAILURES))?;
    let mut fault_expected = k.a.create_label();
    k.a.test(r14d, r14d)?;
    k.a.jnz(fault_expected)?;
    k.print(": wrong, the address is legal\n")?;
    k.a.jmp(done)?;
    k.here(&mut fault_expected)?;
    k.print(": wrong, a processor with this CPUID raises #PF 0x9\n")?;
    k.here(&mut done)
}

/// Prints what CPUID says and leaves in R14D whether it makes the mapping illegal.
fn expect(k: &mut Kernel, who: &str, gpa: u64, page: Page) -> Result<(), IcedError> {
    k.a.mov(eax, 0x8000_0001u32)?;
    k.a.cpuid()?;
    k.a.shr(edx, GBPAGES)?;
    k.a.and(edx, 1)?;
    k.a.mov(r12d, edx)?;
    paging::address_widths(k)?;
    k.a.mov(r13d, eax)?;
    k.print(who)?;
    k.print(": MAXPHYADDR ")?;
    k.print_dec()?;
    k.a.mov(ecx, r13d)?;
    k.a.mov(rax, gpa)?;
    k.a.shr(rax, cl)?;
    k.a.xor(r14d, r14d)?;
    k.a.test(rax, rax)?;
    k.a.setne(r14b)?;
    if page == Page::Huge {
        k.print(" GBPAGES ")?;
        k.a.mov(eax, r12d)?;
        k.print_dec()?;
        k.a.xor(r12d, 1)?;
        k.a.or(r14d, r12d)?;
    }
    k.print(": ")
}

/// Prints the summary of so many touches and leaves with status 0 if all were right.
pub fn finish(k: &mut Kernel, touches: u32) -> Result<(), IcedError> {
    k.print(&format!("SUMMARY: {touches} tests"))?;
    leave(k, var::FAILURES)
}

/// Leaves with status 0 if the variable counts no failures, else says how many and leaves with 1.
pub fn leave(k: &mut Kernel, failures: u64) -> Result<(), IcedError> {
    let mut bad = k.a.create_label();
    k.a.mov(rax, qword_ptr(failures))?;
    k.a.test(eax, eax)?;
    k.a.jnz(bad)?;
    k.print("\n")?;
    k.exit()?;
    k.here(&mut bad)?;
    k.print(", ")?;
    k.print_dec()?;
    k.print(" unexpected failures\n")?;
    k.a.mov(eax, 1)?;
    k.exit()
}
