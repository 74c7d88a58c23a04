//! Every combination of paging permissions on one mapping: what kvm-unit-tests' `access` does, in small.
//!
//! For each case the guest builds a PDE and a PTE, works out what a processor of its own MAXPHYADDR does, performs the
//! access, and compares exception, error code, CR2 and the accessed and dirty bits. Register use: R12 the case, R13 the
//! PTE, R14 the PDE, RBX the address under test, EBP the expected error code or `NO_FAULT`.

mod check;

use crate::{
    boot::{layout, selector},
    kernel::{Kernel, RETURN_VECTOR},
    parameters::Values,
    programs::paging::{self, DATA, GVA, PDE, PTE},
};
use iced_x86::{IcedError, code_asm::*};

/// The bits of a case number, in the order in which failures name them.
mod case {
    pub const PTE_RW: i32 = 1;
    pub const PTE_USER: i32 = 1 << 1;
    pub const PTE_A: i32 = 1 << 2;
    pub const PTE_NX: i32 = 1 << 3;
    pub const PTE_P: i32 = 1 << 4;
    pub const PTE_ILLEGAL: i32 = 1 << 5;
    pub const PDE_RW: i32 = 1 << 6;
    pub const PDE_USER: i32 = 1 << 7;
    pub const PDE_P: i32 = 1 << 8;
    pub const PDE_ILLEGAL: i32 = 1 << 9;
    pub const WRITE: i32 = 1 << 10;
    pub const USER: i32 = 1 << 11;
    pub const FETCH: i32 = 1 << 12;
    /// The slowest to change, so that CR0 is written twice only.
    pub const WP: i32 = 1 << 13;
    pub const COUNT: i32 = 1 << 14;
}

/// Error-code bits of #PF. See: SDM vol. 3A 4.7 Page-Fault Exceptions
mod pferr {
    pub const P: i32 = 1;
    pub const W: i32 = 2;
    pub const U: i32 = 4;
    pub const RSVD: i32 = 8;
    pub const I: i32 = 16;
}

/// Bits of a paging entry.
mod entry {
    pub const P: i32 = 1;
    pub const RW: i32 = 2;
    pub const USER: i32 = 4;
    pub const A: i32 = 0x20;
    pub const D: i32 = 0x40;
}

const NO_FAULT: i32 = -1;
/// Data is touched behind the `ret` that the page starts with.
const OPERAND: i32 = 8;

/// Variables of this program.
mod var {
    use crate::kernel::vars::PROGRAM;
    /// The illegal address bit as a mask; zero where every bit is legal.
    pub const ILLEGAL: u64 = PROGRAM;
    pub const WIDTH: u64 = PROGRAM + 8;
    pub const TESTS: u64 = PROGRAM + 0x10;
    pub const FAILURES: u64 = PROGRAM + 0x18;
}

pub fn program(k: &mut Kernel, _: &Values) -> Result<(), IcedError> {
    let (mut next, mut skip, mut fail) = (k.a.create_label(), k.a.create_label(), k.a.create_label());
    prepare(k)?;
    k.a.xor(r12d, r12d)?;
    k.here(&mut next)?;
    skip_senseless(k, skip)?;
    build_entries(k)?;
    expect(k)?;
    access(k)?;
    check::check(k, fail)?;
    k.here(&mut skip)?;
    k.a.inc(r12d)?;
    k.a.cmp(r12d, case::COUNT)?;
    k.a.jb(next)?;
    check::summary(k)?;
    k.here(&mut fail)?;
    check::name_case(k)
}

fn prepare(k: &mut Kernel) -> Result<(), IcedError> {
    let mut known = k.a.create_label();
    paging::prepare(k)?;
    paging::address_widths(k)?;
    k.a.mov(ecx, eax)?;
    k.a.mov(qword_ptr(var::WIDTH), rcx)?;
    k.a.xor(eax, eax)?;
    k.a.cmp(ecx, 52)?;
    k.a.jae(known)?;
    k.a.mov(eax, 1)?;
    k.a.shl(rax, cl)?;
    k.here(&mut known)?;
    k.a.mov(qword_ptr(var::ILLEGAL), rax)?;
    k.a.mov(rbx, GVA)
}

/// A write is no fetch, and without an illegal bit its cases repeat others.
fn skip_senseless(k: &mut Kernel, skip: CodeLabel) -> Result<(), IcedError> {
    let mut sensible = k.a.create_label();
    k.a.mov(eax, r12d)?;
    k.a.and(eax, case::WRITE | case::FETCH)?;
    k.a.cmp(eax, case::WRITE | case::FETCH)?;
    k.a.je(skip)?;
    k.a.cmp(qword_ptr(var::ILLEGAL), 0)?;
    k.a.jne(sensible)?;
    k.a.test(r12d, case::PTE_ILLEGAL | case::PDE_ILLEGAL)?;
    k.a.jnz(skip)?;
    k.here(&mut sensible)?;
    k.a.inc(qword_ptr(var::TESTS))
}

/// Adds `bits` to an entry where the case has `flag`. Clobbers RAX.
fn add_bits(k: &mut Kernel, to: AsmRegister64, flag: i32, bits: i32) -> Result<(), IcedError> {
    let mut absent = k.a.create_label();
    k.a.test(r12d, flag)?;
    k.a.jz(absent)?;
    k.a.or(to, bits)?;
    k.here(&mut absent)
}

/// Adds the illegal address bit where the case has `flag`.
fn add_illegal(k: &mut Kernel, to: AsmRegister64, flag: i32) -> Result<(), IcedError> {
    let mut absent = k.a.create_label();
    k.a.test(r12d, flag)?;
    k.a.jz(absent)?;
    k.a.or(to, qword_ptr(var::ILLEGAL))?;
    k.here(&mut absent)
}

fn build_entries(k: &mut Kernel) -> Result<(), IcedError> {
    let (mut executable, mut same_wp) = (k.a.create_label(), k.a.create_label());
    k.a.mov(r13d, DATA as u32)?;
    add_bits(k, r13, case::PTE_P, entry::P)?;
    add_bits(k, r13, case::PTE_RW, entry::RW)?;
    add_bits(k, r13, case::PTE_USER, entry::USER)?;
    add_bits(k, r13, case::PTE_A, entry::A)?;
    add_illegal(k, r13, case::PTE_ILLEGAL)?;
    k.a.test(r12d, case::PTE_NX)?;
    k.a.jz(executable)?;
    k.a.bts(r13, 63)?;
    k.here(&mut executable)?;
    k.a.mov(r14d, PTE as u32)?;
    add_bits(k, r14, case::PDE_P, entry::P)?;
    add_bits(k, r14, case::PDE_RW, entry::RW)?;
    add_bits(k, r14, case::PDE_USER, entry::USER)?;
    add_illegal(k, r14, case::PDE_ILLEGAL)?;
    k.a.mov(qword_ptr(PTE), r13)?;
    k.a.mov(qword_ptr(PDE), r14)?;
    // CR0.WP as the case has it.
    k.a.mov(rax, cr0)?;
    k.a.mov(ecx, r12d)?;
    k.a.shr(ecx, case::WP.trailing_zeros())?;
    k.a.mov(edx, eax)?;
    k.a.shr(edx, 16)?;
    k.a.xor(edx, ecx)?;
    k.a.and(edx, 1)?;
    k.a.jz(same_wp)?;
    k.a.btc(eax, 16)?;
    k.a.mov(cr0, rax)?;
    k.here(&mut same_wp)?;
    k.a.invlpg(byte_ptr(rbx))
}

/// Leaves in EBP what the access must end in.
fn expect(k: &mut Kernel) -> Result<(), IcedError> {
    let mut decided = k.a.create_label();
    let (mut absent, mut reserved, mut denied) = (k.a.create_label(), k.a.create_label(), k.a.create_label());
    let (mut kernel_mode, mut not_write) = (k.a.create_label(), k.a.create_label());
    // Top down, and in each entry P before the reserved bits.
    for (p, illegal) in [(case::PDE_P, case::PDE_ILLEGAL), (case::PTE_P, case::PTE_ILLEGAL)] {
        k.a.test(r12d, p)?;
        k.a.jz(absent)?;
        k.a.test(r12d, illegal)?;
        k.a.jnz(reserved)?;
    }
    k.a.mov(eax, r13d)?;
    k.a.and(eax, r14d)?;
    k.a.test(r12d, case::USER)?;
    k.a.jz(kernel_mode)?;
    k.a.test(eax, entry::USER)?;
    k.a.jz(denied)?;
    k.here(&mut kernel_mode)?;
    k.a.test(r12d, case::WRITE)?;
    k.a.jz(not_write)?;
    k.a.test(r12d, case::USER | case::WP)?;
    k.a.jz(not_write)?;
    k.a.test(eax, entry::RW)?;
    k.a.jz(denied)?;
    k.here(&mut not_write)?;
    k.a.mov(ebp, NO_FAULT)?;
    k.a.mov(eax, r12d)?;
    k.a.and(eax, case::FETCH | case::PTE_NX)?;
    k.a.cmp(eax, case::FETCH | case::PTE_NX)?;
    k.a.jne(decided)?;
    k.here(&mut denied)?;
    k.a.mov(ebp, pferr::P)?;
    let mut add_access = k.a.create_label();
    k.a.jmp(add_access)?;
    k.here(&mut absent)?;
    k.a.xor(ebp, ebp)?;
    k.a.jmp(add_access)?;
    k.here(&mut reserved)?;
    k.a.mov(ebp, pferr::P | pferr::RSVD)?;
    k.here(&mut add_access)?;
    add_bits(k, rbp, case::WRITE, pferr::W)?;
    add_bits(k, rbp, case::USER, pferr::U)?;
    add_bits(k, rbp, case::FETCH, pferr::I)?;
    k.here(&mut decided)
}

/// Performs the access in the mode that the case asks for.
fn access(k: &mut Kernel) -> Result<(), IcedError> {
    k.attempt(|k| {
        let (mut fetch, mut write, mut user) = (k.a.create_label(), k.a.create_label(), k.a.create_label());
        let mut done = k.a.create_label();
        k.a.test(r12d, case::USER)?;
        k.a.jnz(user)?;
        k.a.test(r12d, case::FETCH)?;
        k.a.jnz(fetch)?;
        k.a.test(r12d, case::WRITE)?;
        k.a.jnz(write)?;
        k.a.mov(rcx, qword_ptr(rbx + OPERAND))?;
        k.a.jmp(done)?;
        k.here(&mut write)?;
        k.a.mov(qword_ptr(rbx + OPERAND), rcx)?;
        k.a.jmp(done)?;
        k.here(&mut fetch)?;
        k.a.call(rbx)?;
        k.a.jmp(done)?;
        k.here(&mut user)?;
        access_from_user_mode(k)?;
        k.here(&mut done)
    })
}

fn access_from_user_mode(k: &mut Kernel) -> Result<(), IcedError> {
    let mut enter = k.a.create_label();
    let (mut read, mut write, mut fetch) = (k.a.create_label(), k.a.create_label(), k.a.create_label());
    k.a.lea(rcx, ptr(fetch))?;
    k.a.test(r12d, case::FETCH)?;
    k.a.jnz(enter)?;
    k.a.lea(rcx, ptr(write))?;
    k.a.test(r12d, case::WRITE)?;
    k.a.jnz(enter)?;
    k.a.lea(rcx, ptr(read))?;
    k.here(&mut enter)?;
    k.a.push(i32::from(selector::USER_DATA))?;
    k.a.push(layout::USER_STACK_TOP as i32)?;
    k.a.push(2)?;
    k.a.push(i32::from(selector::USER_CODE64))?;
    k.a.push(rcx)?;
    k.a.iretq()?;
    k.here(&mut read)?;
    k.a.mov(rcx, qword_ptr(rbx + OPERAND))?;
    k.a.int(u32::from(RETURN_VECTOR))?;
    k.here(&mut write)?;
    k.a.mov(qword_ptr(rbx + OPERAND), rcx)?;
    k.a.int(u32::from(RETURN_VECTOR))?;
    k.here(&mut fetch)?;
    k.a.call(rbx)?;
    k.a.int(u32::from(RETURN_VECTOR))
}
