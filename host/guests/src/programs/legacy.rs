//! 32-bit paging with 4 MiB pages: entries without a single bit that depends on MAXPHYADDR.
//!
//! A guest may use such tables under any MAXPHYADDR, one that is smaller than its own memory too. KVM's commit ec7771ab471b
//! refused the addresses all the same, and e7177339d7b5 took it back.

use crate::{
    boot::{layout, selector},
    kernel::{SERIAL_PORT, emit_characters},
    parameters::{Kind, Parameter, Values},
};
use iced_x86::{IcedError, code_asm::*};

pub const PARAMETERS: &[Parameter] =
    &[Parameter::new("gva", Kind::Number, "0x2000000", "the address to read, mapped to itself")];

/// Present, writable, user, 4 MiB.
const LARGE_PAGE_FLAGS: u32 = 0x87;
const PAGE_DIRECTORY: u64 = layout::PML4;
const CR4_PSE: u32 = 0x10;
const PAGE_FAULT: u64 = 14;
/// Where the #PF handler leaves its error code and CR2.
const ERROR: u64 = layout::VARS;
const CR2: u64 = layout::VARS + 4;
const IDT: u64 = layout::VARS + 0x1000;

/// The page directory.
pub fn tables() -> Vec<u32> {
    (0..1024).map(|i| i << 22 | LARGE_PAGE_FLAGS).collect()
}

/// 32-bit code from the multiboot entry on.
pub fn program(a: &mut CodeAssembler, values: &Values) -> Result<(), IcedError> {
    let gva = values.number("gva").unwrap_or(0) as u32;
    let (mut puts, mut put_hex, mut faulted) = (a.create_label(), a.create_label(), a.create_label());
    start(a)?;
    set_page_fault_gate(a, faulted)?;
    page(a)?;
    print(a, puts, "legacy: ")?;
    a.mov(esi, gva)?;
    a.mov(eax, dword_ptr(esi))?;
    print(a, puts, "read 0x")?;
    a.call(put_hex)?;
    leave(a, puts)?;

    a.set_label(&mut faulted)?;
    print(a, puts, "#PF 0x")?;
    a.mov(eax, dword_ptr(ERROR))?;
    a.call(put_hex)?;
    print(a, puts, " cr2 0x")?;
    a.mov(eax, dword_ptr(CR2))?;
    a.call(put_hex)?;
    leave(a, puts)?;

    emit_puts(a, &mut puts)?;
    emit_put_hex(a, &mut put_hex)
}

/// Segments and a stack of our own.
fn start(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.lgdt(fword_ptr(layout::GDTR))?;
    a.mov(eax, u32::from(selector::DATA))?;
    for segment in [ds, es, ss] {
        a.mov(segment, eax)?;
    }
    a.mov(esp, layout::STACK_TOP as u32)
}

/// Loads an IDT that ends with a gate for #PF, and builds that. The handler notes error code and CR2 and goes on at `faulted`.
/// See: SDM vol. 3A Figure 6-2 IDT Gate Descriptors
fn set_page_fault_gate(a: &mut CodeAssembler, faulted: CodeLabel) -> Result<(), IcedError> {
    let gate = IDT + 8 * PAGE_FAULT;
    let mut after = a.create_label();
    // 32-bit code learns its own address from a call.
    a.call(after)?;
    a.pop(eax)?;
    a.mov(dword_ptr(ERROR), eax)?;
    a.mov(eax, cr2)?;
    a.mov(dword_ptr(CR2), eax)?;
    a.mov(esp, layout::STACK_TOP as u32)?;
    a.jmp(faulted)?;
    a.set_label(&mut after)?;
    a.pop(eax)?;
    a.mov(edx, eax)?;
    a.and(eax, 0xffff)?;
    a.or(eax, i32::from(selector::CODE32) << 16)?;
    a.mov(dword_ptr(gate), eax)?;
    a.and(edx, 0xffff_0000u32 as i32)?;
    a.or(edx, 0x8e00)?;
    a.mov(dword_ptr(gate + 4), edx)?;
    a.push(IDT as i32)?;
    a.push(((8 * PAGE_FAULT + 7) << 16) as i32)?;
    a.lidt(fword_ptr(esp + 2))
}

fn page(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, CR4_PSE)?;
    a.mov(cr4, eax)?;
    a.mov(eax, PAGE_DIRECTORY as u32)?;
    a.mov(cr3, eax)?;
    // CR0: PE, MP, ET, NE, WP, PG.
    a.mov(eax, 0x8001_0033u32)?;
    a.mov(cr0, eax)
}

/// Prints text that stands behind the call. Keeps EAX.
fn print(a: &mut CodeAssembler, puts: CodeLabel, text: &str) -> Result<(), IcedError> {
    let mut after = a.create_label();
    a.call(after)?;
    a.db(&[text.as_bytes(), &[0]].concat())?;
    a.set_label(&mut after)?;
    a.pop(esi)?;
    a.call(puts)
}

fn leave(a: &mut CodeAssembler, puts: CodeLabel) -> Result<(), IcedError> {
    print(a, puts, "\n")?;
    a.xor(eax, eax)?;
    a.out(0xf4u32, eax)?;
    let mut forever = a.create_label();
    a.set_label(&mut forever)?;
    a.cli()?;
    a.hlt()?;
    a.jmp(forever)
}

fn emit_puts(a: &mut CodeAssembler, puts: &mut CodeLabel) -> Result<(), IcedError> {
    a.set_label(puts)?;
    a.push(eax)?;
    emit_characters(a)?;
    a.pop(eax)?;
    a.ret()
}

/// EAX in hexadecimal without leading zeroes.
fn emit_put_hex(a: &mut CodeAssembler, put_hex: &mut CodeLabel) -> Result<(), IcedError> {
    let (mut digit, mut number) = (a.create_label(), a.create_label());
    a.set_label(put_hex)?;
    a.mov(ebx, eax)?;
    a.mov(edx, SERIAL_PORT)?;
    a.mov(ecx, eax)?;
    a.or(ecx, 1)?;
    a.bsr(ecx, ecx)?;
    a.and(ecx, !3i32)?;
    a.set_label(&mut digit)?;
    a.mov(eax, ebx)?;
    a.shr(eax, cl)?;
    a.and(eax, 15)?;
    a.add(eax, i32::from(b'0'))?;
    a.cmp(eax, i32::from(b'9'))?;
    a.jbe(number)?;
    a.add(eax, i32::from(b'a' - b'9') - 1)?;
    a.set_label(&mut number)?;
    a.out(dx, al)?;
    a.sub(ecx, 4)?;
    a.jns(digit)?;
    a.ret()
}
