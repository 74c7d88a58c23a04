//! Writes pages, in one of the ways in which a page can become dirty, for logs of dirty pages.

use crate::{
    boot::layout,
    kernel::Kernel,
    parameters::{Kind, Parameter, Values},
};
use iced_x86::{IcedError, code_asm::*};

/// The first page that is written.
const BASE: u32 = 0x240_0000;
const DEFAULT_PAGES: u64 = 64;
/// What a guest of 64 MiB has from there on.
const MOST_PAGES: u64 = 7168;
/// A linear congruential generator. See: Knuth, The Art of Computer Programming, vol. 2 3.3.4, line 26
const FACTOR: u64 = 6_364_136_223_846_793_005;
/// The ways of `by=all`.
const WAYS: [&str; 4] = ["mov", "cmpxchg", "edge", "ins"];
/// An entry of the boot's tables that every access needs, and one of its bits that silicon ignores.
const ENTRY: u64 = layout::PDPT;
const IGNORED_BIT: i32 = 1 << 9;
/// A port of the chipset, which KVM answers itself.
const PORT: u32 = 0x61;

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new("pages", Kind::Number, "64", "how many are written, from 0x2400000 on"),
    Parameter::new("rounds", Kind::Number, "2", "how often, each round ending with a CPUID exit"),
    Parameter::new("order", Kind::Choice(&["ascending", "random"]), "ascending", "in which order"),
    Parameter::new(
        "by",
        Kind::Choice(&["mov", "cmpxchg", "edge", "ins", "all", "table"]),
        "mov",
        "a store, a locked exchange, a store across the page's end, a string from a port, all of these; or a locked exchange in a \
         page table instead",
    ),
];

/// R12 holds the rounds that are left, R13 the pages, R14 the generator, RBX the page.
pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let pages = values.number("pages").unwrap_or(DEFAULT_PAGES).clamp(1, MOST_PAGES) as u32;
    let rounds = values.number("rounds").unwrap_or(1).clamp(1, u32::MAX.into()) as u32;
    let (mut round, mut page) = (k.a.create_label(), k.a.create_label());
    k.a.mov(r14d, 1)?;
    k.a.mov(r15, FACTOR)?;
    k.a.mov(r12d, rounds)?;
    k.here(&mut round)?;
    k.a.mov(r13d, pages)?;
    k.here(&mut page)?;
    if values.word("order") == Some("random") {
        k.a.imul_2(r14, r15)?;
        k.a.inc(r14)?;
        k.a.mov(rbx, r14)?;
        k.a.shr(rbx, 32)?;
        k.a.imul_3(rbx, rbx, pages as i32)?;
        k.a.shr(rbx, 32)?;
    } else {
        k.a.mov(ebx, pages)?;
        k.a.sub(ebx, r13d)?;
    }
    k.a.shl(rbx, 12)?;
    k.a.add(rbx, BASE as i32)?;
    let by = values.word("by").unwrap_or("mov");
    for way in WAYS.into_iter().filter(|way| [way, "all"].contains(&by)) {
        write(k, way)?;
    }
    if by == "table" {
        write(k, by)?;
    }
    k.a.dec(r13d)?;
    k.a.jnz(page)?;
    k.a.xor(eax, eax)?;
    k.a.cpuid()?;
    k.a.dec(r12d)?;
    k.a.jnz(round)?;
    k.print("dirty: done\n")?;
    k.a.xor(eax, eax)?;
    k.exit()
}

fn write(k: &mut Kernel, way: &str) -> Result<(), IcedError> {
    match way {
        "cmpxchg" => {
            k.a.xor(eax, eax)?;
            k.a.lock().cmpxchg(qword_ptr(rbx + 16), r13)
        }
        "table" => {
            k.a.mov(rax, qword_ptr(ENTRY))?;
            k.a.mov(rcx, rax)?;
            k.a.xor(rcx, IGNORED_BIT)?;
            k.a.lock().cmpxchg(qword_ptr(ENTRY), rcx)
        }
        "edge" => k.a.mov(qword_ptr(rbx + 0xffc), r13),
        "ins" => {
            k.a.mov(rdi, rbx)?;
            k.a.mov(edx, PORT)?;
            k.a.insb()
        }
        _ => k.a.mov(qword_ptr(rbx + 8), r13),
    }
}
