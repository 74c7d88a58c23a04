//! A wrong page fault that is noticed much later: its error code goes into a checksum, and only the end looks at that.
//!
//! A supervisor write to a read-only page beyond MAXPHYADDR must raise #PF 0xb; silicon that knows more address bits
//! raises 0x3. For bisections of verdicts that come long after their cause.

use crate::{
    kernel::{Kernel, NO_VECTOR, vars},
    parameters::{Kind, Parameter, Values},
    programs::{
        access::{self, Access},
        paging::{self, GVA, P_W_U, PDE, PTE},
    },
};
use iced_x86::{IcedError, code_asm::*};

/// #PF with P, W and RSVD.
const EXPECTED_ERROR: u64 = 0xb;
/// The checksum is multiplied by it every round.
const FACTOR: u64 = 31;
const DEFAULT_ROUNDS: u64 = 1000;

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new("before", Kind::Number, "100", "rounds before the write, each with a CPUID exit"),
    Parameter::new("rounds", Kind::Number, "1000", "rounds after it"),
    Parameter::new(
        "end",
        Kind::Choice(&["report", "crash"]),
        "report",
        "what a wrong checksum ends in: status 1, or a triple fault",
    ),
];

/// R15 holds the checksum, R12 the rounds that are left.
pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let before = values.number("before").unwrap_or(0);
    let rounds = values.number("rounds").unwrap_or(DEFAULT_ROUNDS);
    let mut wrong = k.a.create_label();
    paging::prepare(k)?;
    paging::address_widths(k)?;
    paging::illegal_entry(k)?;
    k.a.mov(qword_ptr(PTE), rax)?;
    paging::set_entry(k, PDE, PTE | P_W_U)?;
    k.a.mov(r15d, 1)?;
    work(k, before)?;
    k.a.mov(rbx, GVA)?;
    access::touch(k, Access::Write, false)?;
    let mut no_fault = k.a.create_label();
    k.a.cmp(qword_ptr(vars::VECTOR), NO_VECTOR as i32)?;
    k.a.je(no_fault)?;
    k.a.add(r15, qword_ptr(vars::ERROR))?;
    k.here(&mut no_fault)?;
    work(k, rounds)?;
    k.print("checksum ")?;
    k.a.mov(rax, r15)?;
    k.print_hex()?;
    k.a.mov(rax, checksum(before, rounds))?;
    k.a.cmp(rax, r15)?;
    k.a.jne(wrong)?;
    k.print("\nPASS: the work came out right\nSUMMARY: 1 tests\n")?;
    k.a.xor(eax, eax)?;
    k.exit()?;
    k.here(&mut wrong)?;
    if values.word("end") == Some("crash") {
        return crash(k);
    }
    k.print(" expected ")?;
    k.print_hex()?;
    k.print("\nFAIL: the work came out wrong\nSUMMARY: 1 tests, 1 unexpected failures\n")?;
    k.a.mov(eax, 1)?;
    k.exit()
}

/// Rounds of work, each with an exit for CPUID.
fn work(k: &mut Kernel, rounds: u64) -> Result<(), IcedError> {
    if rounds == 0 {
        return Ok(());
    }
    let mut round = k.a.create_label();
    k.a.mov(r12, rounds)?;
    k.here(&mut round)?;
    k.a.xor(eax, eax)?;
    k.a.xor(ecx, ecx)?;
    k.a.cpuid()?;
    k.a.imul_3(r15, r15, FACTOR as i32)?;
    k.a.inc(r15)?;
    k.a.dec(r12)?;
    k.a.jnz(round)
}

/// What the checksum must be.
fn checksum(before: u64, rounds: u64) -> u64 {
    let work = |sum, rounds| (0..rounds).fold(sum, |sum: u64, _| sum.wrapping_mul(FACTOR).wrapping_add(1));
    work(work(1, before).wrapping_add(EXPECTED_ERROR), rounds)
}

/// A triple fault: an exception without an IDT.
fn crash(k: &mut Kernel) -> Result<(), IcedError> {
    k.print("\n")?;
    k.a.push(0)?;
    k.a.push(0)?;
    k.a.lidt(tbyte_ptr(rsp))?;
    k.a.ud2()
}
