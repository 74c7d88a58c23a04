//! One read through a PTE with the first address bit that the guest's MAXPHYADDR does not have.
//!
//! A processor of that width raises #PF with RSVD and leaves the accessed bit alone. Status 0 if that is what happens.

use crate::{
    kernel::{Kernel, NO_VECTOR, vars},
    parameters::Values,
    programs::paging::{self, GVA, P_W_U, PDE, PTE},
};
use iced_x86::{IcedError, code_asm::*};

/// #PF with P and RSVD.
const RESERVED_BIT_FAULT: i32 = 9;

pub fn program(k: &mut Kernel, _: &Values) -> Result<(), IcedError> {
    paging::prepare(k)?;
    paging::address_widths(k)?;
    k.print("MAXPHYADDR ")?;
    k.print_dec()?;
    k.print("\n")?;
    paging::illegal_entry(k)?;
    k.a.mov(r12, rax)?;
    paging::set_entry(k, PDE, PTE | P_W_U)?;
    k.a.mov(qword_ptr(PTE), r12)?;
    k.a.mov(rbx, GVA)?;
    k.a.invlpg(byte_ptr(rbx))?;
    k.a.xor(r13, r13)?;
    k.attempt(|k| k.a.mov(r13, qword_ptr(rbx)))?;
    report(k)
}

/// Prints what happened and leaves. R12 holds the PTE as it was, R13 what was read.
fn report(k: &mut Kernel) -> Result<(), IcedError> {
    let (mut faulted, mut pte, mut wrong) = (k.a.create_label(), k.a.create_label(), k.a.create_label());
    k.a.cmp(qword_ptr(vars::VECTOR), NO_VECTOR as i32)?;
    k.a.jne(faulted)?;
    k.print("no fault: read ")?;
    k.a.mov(rax, r13)?;
    k.print_hex()?;
    k.a.jmp(pte)?;
    k.here(&mut faulted)?;
    k.print("exception ")?;
    k.a.mov(rax, qword_ptr(vars::VECTOR))?;
    k.print_dec()?;
    k.print(" error ")?;
    k.print_variable(vars::ERROR)?;
    k.print(" cr2 ")?;
    k.print_variable(vars::CR2)?;
    k.here(&mut pte)?;
    k.print("\npte ")?;
    k.a.mov(rax, r12)?;
    k.print_hex()?;
    k.print(" -> ")?;
    k.print_variable(PTE)?;
    k.print("\n")?;
    k.a.cmp(qword_ptr(vars::VECTOR), 14)?;
    k.a.jne(wrong)?;
    k.a.cmp(qword_ptr(vars::ERROR), RESERVED_BIT_FAULT)?;
    k.a.jne(wrong)?;
    k.a.cmp(qword_ptr(vars::CR2), rbx)?;
    k.a.jne(wrong)?;
    k.a.cmp(qword_ptr(PTE), r12)?;
    k.a.jne(wrong)?;
    k.print("PASS: an illegal address faults and leaves its entry alone\nSUMMARY: 1 tests\n")?;
    k.a.xor(eax, eax)?;
    k.exit()?;
    k.here(&mut wrong)?;
    k.print("FAIL: expected #PF error 9 and an unchanged entry\nSUMMARY: 1 tests, 1 unexpected failures\n")?;
    k.a.mov(eax, 1)?;
    k.exit()
}
