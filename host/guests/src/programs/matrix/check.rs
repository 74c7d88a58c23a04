//! What came of a case, held against what had to, and the words for a case that failed.

use super::{NO_FAULT, OPERAND, case, entry, var};
use crate::{
    kernel::{Kernel, NO_VECTOR, RETURN_VECTOR, vars},
    programs::{
        judge,
        paging::{PDE, PTE},
    },
};
use iced_x86::{IcedError, code_asm::*};

const FAILURES_PRINTED: i32 = 16;

const NAMES: [(i32, &str); 12] = [
    (case::PTE_RW, " pte.rw"),
    (case::PTE_USER, " pte.user"),
    (case::PTE_A, " pte.a"),
    (case::PTE_NX, " pte.nx"),
    (case::PTE_P, " pte.p"),
    (case::PDE_RW, " pde.rw"),
    (case::PDE_USER, " pde.user"),
    (case::PDE_P, " pde.p"),
    (case::WRITE, " write"),
    (case::USER, " user"),
    (case::FETCH, " fetch"),
    (case::WP, " cr0.wp"),
];

/// Compares what happened with what had to.
pub fn check(k: &mut Kernel, fail: CodeLabel) -> Result<(), IcedError> {
    let (mut no_fault, mut faulted, mut entries) =
        (k.a.create_label(), k.a.create_label(), k.a.create_label());
    let mut passed = k.a.create_label();
    k.a.mov(rax, qword_ptr(vars::VECTOR))?;
    k.a.cmp(eax, NO_VECTOR as i32)?;
    k.a.je(no_fault)?;
    k.a.cmp(eax, i32::from(RETURN_VECTOR))?;
    k.a.jne(faulted)?;
    k.here(&mut no_fault)?;
    k.a.cmp(ebp, NO_FAULT)?;
    k.a.je(entries)?;
    verdict(k, fail, "unexpected access\n", None, passed)?;

    k.here(&mut faulted)?;
    let mut expected = k.a.create_label();
    k.a.cmp(ebp, NO_FAULT)?;
    k.a.jne(expected)?;
    verdict(k, fail, "unexpected fault, error ", Some(vars::ERROR), passed)?;
    k.here(&mut expected)?;
    let mut code_right = k.a.create_label();
    k.a.cmp(dword_ptr(vars::ERROR), ebp)?;
    k.a.je(code_right)?;
    verdict(k, fail, "error code ", Some(vars::ERROR), passed)?;
    k.here(&mut code_right)?;
    let mut data_access = k.a.create_label();
    k.a.mov(rax, rbx)?;
    k.a.test(r12d, case::FETCH)?;
    k.a.jnz(data_access)?;
    k.a.add(rax, OPERAND)?;
    k.here(&mut data_access)?;
    k.a.cmp(qword_ptr(vars::CR2), rax)?;
    k.a.je(entries)?;
    verdict(k, fail, "cr2 ", Some(vars::CR2), passed)?;

    k.here(&mut entries)?;
    check_entries(k, fail, passed)?;
    k.here(&mut passed)
}

/// Prints the case and a verdict, then goes to `after`.
fn verdict(
    k: &mut Kernel,
    fail: CodeLabel,
    what: &str,
    variable: Option<u64>,
    after: CodeLabel,
) -> Result<(), IcedError> {
    k.a.call(fail)?;
    k.a.jc(after)?;
    k.print(what)?;
    if let Some(address) = variable {
        k.print_variable(address)?;
        k.print("\n")?;
    }
    k.a.jmp(after)
}

/// On a fault the PTE must be as it was, and the PDE too except for its accessed bit, which a processor may set.
fn check_entries(k: &mut Kernel, fail: CodeLabel, passed: CodeLabel) -> Result<(), IcedError> {
    let (mut compare, mut pte_right) = (k.a.create_label(), k.a.create_label());
    k.a.mov(rcx, qword_ptr(PDE))?;
    k.a.cmp(ebp, NO_FAULT)?;
    k.a.mov(rdx, r13)?;
    k.a.mov(rax, r14)?;
    let mut succeeded = k.a.create_label();
    k.a.je(succeeded)?;
    k.a.and(rcx, !entry::A)?;
    k.a.jmp(compare)?;
    k.here(&mut succeeded)?;
    k.a.or(rdx, entry::A)?;
    k.a.or(rax, entry::A)?;
    let mut clean = k.a.create_label();
    k.a.test(r12d, case::WRITE)?;
    k.a.jz(clean)?;
    k.a.or(rdx, entry::D)?;
    k.here(&mut clean)?;
    k.here(&mut compare)?;
    k.a.cmp(qword_ptr(PTE), rdx)?;
    k.a.je(pte_right)?;
    k.a.call(fail)?;
    k.a.jc(passed)?;
    k.print("pte ")?;
    k.print_variable(PTE)?;
    k.print(" expected ")?;
    k.a.mov(rax, rdx)?;
    k.print_hex()?;
    k.print("\n")?;
    k.a.jmp(passed)?;
    k.here(&mut pte_right)?;
    k.a.cmp(rcx, rax)?;
    k.a.je(passed)?;
    verdict(k, fail, "pde ", Some(PDE), passed)
}

pub fn summary(k: &mut Kernel) -> Result<(), IcedError> {
    k.print("SUMMARY: ")?;
    k.a.mov(rax, qword_ptr(var::TESTS))?;
    k.print_dec()?;
    k.print(" tests")?;
    judge::leave(k, var::FAILURES)
}

/// The routine behind `fail`: counts, and prints `test ...: FAIL: `, or returns with CF set after the first few.
/// Keeps RDX; clobbers RAX.
pub fn name_case(k: &mut Kernel) -> Result<(), IcedError> {
    let mut print = k.a.create_label();
    k.a.inc(qword_ptr(var::FAILURES))?;
    k.a.cmp(qword_ptr(var::FAILURES), FAILURES_PRINTED)?;
    k.a.jbe(print)?;
    k.a.stc()?;
    k.a.ret()?;
    k.here(&mut print)?;
    k.print("test")?;
    for (flag, name) in NAMES {
        let illegal = match flag {
            case::PDE_RW => Some((case::PTE_ILLEGAL, " pte.")),
            case::WRITE => Some((case::PDE_ILLEGAL, " pde.")),
            _ => None,
        };
        if let Some((flag, prefix)) = illegal {
            let mut absent = k.a.create_label();
            k.a.test(r12d, flag)?;
            k.a.jz(absent)?;
            k.print(prefix)?;
            k.a.mov(rax, qword_ptr(var::WIDTH))?;
            k.print_dec()?;
            k.here(&mut absent)?;
        }
        let mut absent = k.a.create_label();
        k.a.test(r12d, flag)?;
        k.a.jz(absent)?;
        k.print(name)?;
        k.here(&mut absent)?;
    }
    k.print(": FAIL: ")?;
    k.a.clc()?;
    k.a.ret()
}
