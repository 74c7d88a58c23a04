//! Carries what a guest must not lose on a journey, and looks round by round whether it is all there: numbered pages, registers of
//! the FPU and, where there are, protection keys, a timer on its way, and an accessed bit that it has cleared.
//!
//! No other guest tells it how it should be: whatever loses a page, a register or an interrupt makes it say so.

use crate::{
    apic,
    boot::layout,
    kernel::{IPI_VECTOR, Kernel, vars},
    parameters::{Kind, Parameter, Values},
    programs::{expect, smp},
};
use iced_x86::{IcedError, code_asm::*};

/// The first of the numbered pages.
const BASE: u32 = 0x80_0000;
const DEFAULT_PAGES: u64 = 32;
/// What a guest of 64 MiB has from there on.
const MOST_PAGES: u64 = 14336;
const DEFAULT_ROUNDS: u64 = 50;
/// The boot tables' entry of the large page in which they lie, and its accessed bit.
const ENTRY: u64 = layout::PD + (BASE as u64 >> 21) * 8;
const ACCESSED: i32 = 1 << 5;
/// CR4.OSFXSR, CR4.OSXMMEXCPT, CR4.PKE.
const CR4_SSE: i32 = 0x600;
const CR4_PKE: i32 = 1 << 22;
/// CPUID.7.0 ECX[3].
const PKU: i32 = 1 << 3;
/// Rights of key 15 only, which no page has.
const KEY_RIGHTS: i32 = 0x4000_0000;
/// Round to nearest is zero; this rounds to zero, all exceptions masked.
const MXCSR: u32 = 0x7f80;
const FCW: u16 = 0x0f7f;
/// The timer's ticks, and how often the guest looks before it believes that its interrupt is lost.
const TICKS: i32 = 400;
const PATIENCE: i32 = 1_000_000;
/// MSRs with what they hold: variable-range MTRR 0, which makes 1 GiB of no memory write-back, and KERNEL_GS_BASE.
const MSRS: [(u32, u64); 3] =
    [(0x200, 0xc000_0006), (0x201, 0xf_c000_0800), (0xc000_0102, 0xffff_9234_5678_9000)];
/// What each counts.
const PATTERN: u64 = 0x5a5a_0001_1234_9876;

/// Variables: words to load and store FPU control by, and whether there are protection keys.
const SCRATCH: u64 = vars::PROGRAM;
const HAS_KEYS: u64 = vars::PROGRAM + 0x10;

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new("rounds", Kind::Number, "50", "how often it looks, each round ending with a CPUID exit"),
    Parameter::new("pages", Kind::Number, "32", "how many are numbered, from 0x800000 on"),
    Parameter::new("msrs", Kind::Choice(&["off", "on"]), "off", "an MTRR and KERNEL_GS_BASE, too"),
];

/// R12 holds the round, R13 the number of pages, R14 the rounds there are.
pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let pages = values.number("pages").unwrap_or(DEFAULT_PAGES).clamp(1, MOST_PAGES) as u32;
    let rounds = values.number("rounds").unwrap_or(DEFAULT_ROUNDS).clamp(1, u32::MAX.into()) as u32;
    let msrs = if values.word("msrs") == Some("on") { &MSRS[..] } else { &[] };
    prepare(k)?;
    set_msrs(k, msrs)?;
    k.a.mov(r13d, pages)?;
    k.a.mov(r14d, rounds)?;
    k.a.xor(r12d, r12d)?;
    let mut round = k.a.create_label();
    k.here(&mut round)?;
    arm_timer(k)?;
    check_pages(k)?;
    check_fpu(k)?;
    check_keys(k)?;
    check_accessed(k)?;
    check_msrs(k, msrs)?;
    check_timer(k)?;
    k.a.xor(eax, eax)?;
    k.a.cpuid()?;
    k.a.inc(r12d)?;
    k.a.cmp(r12d, r14d)?;
    k.a.jb(round)?;
    k.print("luggage: everything is there\n")?;
    k.a.xor(eax, eax)?;
    k.exit()
}

fn expect_equal(k: &mut Kernel, what: &str) -> Result<(), IcedError> {
    expect::expect_equal(k, "luggage", what)
}

fn prepare(k: &mut Kernel) -> Result<(), IcedError> {
    smp::mask_pics(k)?;
    smp::enable_apic(k)?;
    k.a.mov(rax, cr4)?;
    k.a.or(rax, CR4_SSE)?;
    k.a.mov(cr4, rax)?;
    k.a.mov(rax, PATTERN)?;
    for register in [xmm0, xmm5, xmm15] {
        k.a.movq(register, rax)?;
    }
    k.a.mov(dword_ptr(SCRATCH), MXCSR)?;
    k.a.ldmxcsr(dword_ptr(SCRATCH))?;
    k.a.fninit()?;
    k.a.mov(word_ptr(SCRATCH), i32::from(FCW))?;
    k.a.fldcw(word_ptr(SCRATCH))?;
    k.a.mov(eax, 7)?;
    k.a.xor(ecx, ecx)?;
    k.a.cpuid()?;
    k.a.and(ecx, PKU)?;
    k.a.mov(qword_ptr(HAS_KEYS), rcx)?;
    let mut without = k.a.create_label();
    k.a.jz(without)?;
    k.a.mov(rax, cr4)?;
    k.a.or(rax, CR4_PKE)?;
    k.a.mov(cr4, rax)?;
    k.a.mov(eax, KEY_RIGHTS)?;
    k.a.xor(ecx, ecx)?;
    k.a.xor(edx, edx)?;
    k.a.wrpkru()?;
    k.here(&mut without)?;
    k.a.sti()
}

/// Each page holds the round and its own number: the one before is looked at, this one written.
fn check_pages(k: &mut Kernel) -> Result<(), IcedError> {
    let (mut page, mut first) = (k.a.create_label(), k.a.create_label());
    k.a.xor(ebx, ebx)?;
    k.here(&mut page)?;
    k.a.mov(rdi, rbx)?;
    k.a.shl(rdi, 12)?;
    k.a.add(rdi, BASE as i32)?;
    k.a.test(r12d, r12d)?;
    k.a.jz(first)?;
    k.a.lea(rax, qword_ptr(r12 - 1))?;
    k.a.shl(rax, 32)?;
    k.a.or(rax, rbx)?;
    k.a.cmp(qword_ptr(rdi + 8), rax)?;
    expect_equal(k, "a page is not as it was")?;
    k.here(&mut first)?;
    k.a.mov(rax, r12)?;
    k.a.shl(rax, 32)?;
    k.a.or(rax, rbx)?;
    k.a.mov(qword_ptr(rdi + 8), rax)?;
    k.a.inc(ebx)?;
    k.a.cmp(ebx, r13d)?;
    k.a.jb(page)
}

fn check_fpu(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(rcx, PATTERN)?;
    for register in [xmm0, xmm5, xmm15] {
        k.a.movq(rax, register)?;
        k.a.cmp(rax, rcx)?;
        expect_equal(k, "an SSE register is another one")?;
    }
    k.a.stmxcsr(dword_ptr(SCRATCH))?;
    k.a.cmp(dword_ptr(SCRATCH), MXCSR as i32)?;
    expect_equal(k, "MXCSR is another one")?;
    k.a.fnstcw(word_ptr(SCRATCH))?;
    k.a.cmp(word_ptr(SCRATCH), i32::from(FCW))?;
    expect_equal(k, "the x87 control word is another one")
}

fn check_keys(k: &mut Kernel) -> Result<(), IcedError> {
    let mut without = k.a.create_label();
    k.a.cmp(qword_ptr(HAS_KEYS), 0)?;
    k.a.je(without)?;
    k.a.xor(ecx, ecx)?;
    k.a.rdpkru()?;
    k.a.cmp(eax, KEY_RIGHTS)?;
    expect_equal(k, "the rights of protection keys are others")?;
    k.here(&mut without)
}

fn set_msrs(k: &mut Kernel, msrs: &[(u32, u64)]) -> Result<(), IcedError> {
    for (index, value) in msrs {
        k.a.mov(ecx, *index)?;
        k.a.mov(eax, *value as u32)?;
        k.a.mov(edx, (*value >> 32) as u32)?;
        k.a.wrmsr()?;
    }
    Ok(())
}

fn check_msrs(k: &mut Kernel, msrs: &[(u32, u64)]) -> Result<(), IcedError> {
    for (index, value) in msrs {
        k.a.mov(ecx, *index)?;
        k.a.rdmsr()?;
        k.a.shl(rdx, 32)?;
        k.a.or(rax, rdx)?;
        k.a.mov(rcx, *value)?;
        k.a.cmp(rax, rcx)?;
        expect_equal(k, &format!("MSR {index:#x} is another one"))?;
    }
    Ok(())
}

/// An accessed bit that was cleared, and the entry flushed, is set by the next access.
fn check_accessed(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.and(qword_ptr(ENTRY), !ACCESSED)?;
    k.a.mov(edi, BASE)?;
    k.a.invlpg(byte_ptr(rdi))?;
    k.a.mov(rax, qword_ptr(rdi))?;
    k.a.mov(rax, qword_ptr(ENTRY))?;
    k.a.and(eax, ACCESSED)?;
    k.a.cmp(eax, ACCESSED)?;
    expect_equal(k, "an access has set no accessed bit")
}

/// One interrupt, some hundred instructions later.
fn arm_timer(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(qword_ptr(vars::INTERRUPTS), 0)?;
    for (register, value) in [
        (apic::LVT_TIMER, i32::from(IPI_VECTOR)),
        // Divided by one.
        (apic::TIMER_DIVIDE, 0b1011),
        (apic::TIMER_INITIAL, TICKS),
    ] {
        k.a.mov(ebx, register)?;
        k.a.mov(dword_ptr(rbx), value)?;
    }
    Ok(())
}

fn check_timer(k: &mut Kernel) -> Result<(), IcedError> {
    let (mut again, mut there) = (k.a.create_label(), k.a.create_label());
    k.a.mov(ecx, PATIENCE)?;
    k.here(&mut again)?;
    k.a.cmp(qword_ptr(vars::INTERRUPTS), 0)?;
    k.a.jne(there)?;
    k.a.pause()?;
    k.a.dec(ecx)?;
    k.a.jnz(again)?;
    k.here(&mut there)?;
    k.a.cmp(qword_ptr(vars::INTERRUPTS), 1)?;
    expect_equal(k, "the timer's interrupt did not come, or came twice")
}
