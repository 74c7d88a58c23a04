//! Work that keeps a processor busy, for measurements: loops of one kind each, and a sum that shows that it was done.

use crate::{
    kernel::Kernel,
    parameters::{Kind, Parameter, Values},
};
use iced_x86::{IcedError, code_asm::*};

/// Free memory from here on.
const BUFFER: u64 = 0x100_0000;
const TABLE: u64 = 0xf0_0000;
/// Bytes that a round goes over.
const BYTES: u32 = 64 << 10;
/// Faults or exits of a round.
const EVENTS: u32 = 1000;
/// Where a PC's firmware says how far it is.
const POST_PORT: u8 = 0x80;
/// CR4.OSFXSR. See: SDM vol. 3A 2.5 Control Registers
const OSFXSR: i32 = 1 << 9;
/// Numbers that a round sorts.
const NUMBERS: u32 = 128;
/// Pages that a round touches: more than any TLB holds.
const PAGES: u32 = 12 << 10;
const PAGE: i32 = 4096;
/// See: IEEE 802.3 3.2.9 Frame Check Sequence, reflected.
const CRC32: u32 = 0xedb8_8320;
/// See: Knuth, The Art of Computer Programming vol. 2, 3.3.4 table 1: MMIX.
const FACTOR: u64 = 6_364_136_223_846_793_005;

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new(
        "what",
        Kind::Choice(&["bytes", "sort", "crc", "walks", "floats", "copy", "exceptions", "ports", "cpuid"]),
        "bytes",
        "a loop over bytes, a sort with calls through a pointer, CRC by table, one access to each of many pages, SSE, REP MOVSB, \
         or one of an instruction after the other that faults or exits",
    ),
    Parameter::new("rounds", Kind::Number, "1", "how often"),
];

/// R15 holds the sum, R12 the rounds that are left.
pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let what = values.word("what").unwrap_or("bytes");
    let mut round = k.a.create_label();
    k.a.xor(r15d, r15d)?;
    k.a.mov(r12, values.number("rounds").unwrap_or(1).max(1))?;
    match what {
        "crc" => table(k)?,
        "floats" => allow_floats(k)?,
        _ => {}
    }
    k.here(&mut round)?;
    match what {
        "sort" => sort(k)?,
        "crc" => crc(k)?,
        "walks" => walks(k)?,
        "floats" => floats(k)?,
        "copy" => copy(k)?,
        "exceptions" => again_and_again(k, |k| k.attempt(|k| k.a.ud2()))?,
        "ports" => again_and_again(k, |k| k.a.out(u32::from(POST_PORT), al))?,
        "cpuid" => again_and_again(k, |k| {
            k.a.xor(eax, eax)?;
            k.a.cpuid()
        })?,
        _ => bytes(k)?,
    }
    k.a.dec(r12)?;
    k.a.jnz(round)?;
    k.print("sum ")?;
    k.a.mov(rax, r15)?;
    k.print_hex()?;
    k.print("\nPASS: the work is done\nSUMMARY: 1 tests\n")?;
    k.a.xor(eax, eax)?;
    k.exit()
}

/// Adds bytes up and changes each.
fn bytes(k: &mut Kernel) -> Result<(), IcedError> {
    let mut next = k.a.create_label();
    k.a.mov(esi, BUFFER as u32)?;
    k.a.mov(ecx, BYTES)?;
    k.here(&mut next)?;
    k.a.movzx(eax, byte_ptr(rsi))?;
    k.a.lea(eax, ptr(rax * 4 + rcx))?;
    k.a.add(r15, rax)?;
    k.a.mov(byte_ptr(rsi), al)?;
    k.a.inc(rsi)?;
    k.a.dec(ecx)?;
    k.a.jnz(next)
}

/// Random numbers, sorted by insertion. RBX holds the function that compares.
fn sort(k: &mut Kernel) -> Result<(), IcedError> {
    let [mut compare, mut fill, mut outer, mut inner, mut place, mut done] =
        std::array::from_fn(|_| k.a.create_label());
    k.a.lea(rbx, ptr(compare))?;
    k.a.mov(rdx, FACTOR)?;
    k.a.xor(ecx, ecx)?;
    k.here(&mut fill)?;
    k.a.imul_2(r15, rdx)?;
    k.a.inc(r15)?;
    k.a.mov(qword_ptr(rcx * 8 + BUFFER), r15)?;
    k.a.inc(ecx)?;
    k.a.cmp(ecx, NUMBERS)?;
    k.a.jne(fill)?;
    k.a.mov(r8d, 1)?;
    k.here(&mut outer)?;
    k.a.mov(rsi, qword_ptr(r8 * 8 + BUFFER))?;
    k.a.mov(rcx, r8)?;
    k.here(&mut inner)?;
    k.a.mov(rdi, qword_ptr(rcx * 8 + BUFFER - 8))?;
    k.a.call(rbx)?;
    k.a.test(eax, eax)?;
    k.a.jz(place)?;
    k.a.mov(qword_ptr(rcx * 8 + BUFFER), rdi)?;
    k.a.dec(rcx)?;
    k.a.jnz(inner)?;
    k.here(&mut place)?;
    k.a.mov(qword_ptr(rcx * 8 + BUFFER), rsi)?;
    k.a.inc(r8d)?;
    k.a.cmp(r8d, NUMBERS)?;
    k.a.jne(outer)?;
    k.a.add(r15, qword_ptr(BUFFER))?;
    k.a.jmp(done)?;
    // Whether RDI is greater than RSI.
    k.here(&mut compare)?;
    k.a.push(rbp)?;
    k.a.mov(rbp, rsp)?;
    k.a.xor(eax, eax)?;
    k.a.cmp(rdi, rsi)?;
    k.a.seta(al)?;
    k.a.pop(rbp)?;
    k.a.ret()?;
    k.here(&mut done)
}

/// The remainders of all bytes.
fn table(k: &mut Kernel) -> Result<(), IcedError> {
    let [mut entry, mut bit, mut even] = std::array::from_fn(|_| k.a.create_label());
    k.a.xor(ecx, ecx)?;
    k.here(&mut entry)?;
    k.a.mov(eax, ecx)?;
    k.a.mov(edx, 8)?;
    k.here(&mut bit)?;
    k.a.shr(eax, 1)?;
    k.a.jnc(even)?;
    k.a.xor(eax, CRC32)?;
    k.here(&mut even)?;
    k.a.dec(edx)?;
    k.a.jnz(bit)?;
    k.a.mov(dword_ptr(rcx * 4 + TABLE), eax)?;
    k.a.inc(ecx)?;
    k.a.cmp(ecx, 256)?;
    k.a.jne(entry)
}

fn crc(k: &mut Kernel) -> Result<(), IcedError> {
    let mut next = k.a.create_label();
    k.a.mov(esi, BUFFER as u32)?;
    k.a.mov(ecx, BYTES)?;
    k.a.mov(edx, u32::MAX)?;
    k.here(&mut next)?;
    k.a.movzx(eax, byte_ptr(rsi))?;
    k.a.xor(al, dl)?;
    k.a.shr(edx, 8)?;
    k.a.xor(edx, dword_ptr(rax * 4 + TABLE))?;
    k.a.inc(rsi)?;
    k.a.dec(ecx)?;
    k.a.jnz(next)?;
    k.a.add(r15, rdx)
}

/// One access to each page.
fn walks(k: &mut Kernel) -> Result<(), IcedError> {
    let mut next = k.a.create_label();
    k.a.mov(esi, BUFFER as u32)?;
    k.a.mov(ecx, PAGES)?;
    k.here(&mut next)?;
    k.a.add(r15, qword_ptr(rsi))?;
    k.a.add(rsi, PAGE)?;
    k.a.dec(ecx)?;
    k.a.jnz(next)
}

fn allow_floats(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(rax, cr4)?;
    k.a.or(eax, OSFXSR)?;
    k.a.mov(cr4, rax)
}

/// Doubles, two at a time and one at a time, to memory and from it.
fn floats(k: &mut Kernel) -> Result<(), IcedError> {
    let mut next = k.a.create_label();
    k.a.mov(esi, BUFFER as u32)?;
    k.a.mov(ecx, BYTES)?;
    k.a.mov(eax, 3)?;
    k.a.cvtsi2sd(xmm2, eax)?;
    k.a.unpcklpd(xmm2, xmm2)?;
    k.a.xorps(xmm1, xmm1)?;
    k.here(&mut next)?;
    k.a.cvtsi2sd(xmm0, ecx)?;
    k.a.movsd_2(qword_ptr(rsi), xmm0)?;
    k.a.movapd(xmm3, xmmword_ptr(rsi))?;
    k.a.divpd(xmm3, xmm2)?;
    k.a.addpd(xmm1, xmm3)?;
    k.a.mulsd(xmm0, xmm1)?;
    k.a.paddd(xmm4, xmm0)?;
    k.a.add(rsi, 16)?;
    k.a.sub(ecx, 16)?;
    k.a.jnz(next)?;
    k.a.cvttsd2si(rax, xmm1)?;
    k.a.add(r15, rax)
}

fn copy(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(esi, BUFFER as u32)?;
    k.a.mov(edi, BUFFER as u32 + 16 * BYTES)?;
    k.a.mov(ecx, 4 * BYTES)?;
    k.a.rep().movsb()
}

fn again_and_again(
    k: &mut Kernel,
    event: impl FnOnce(&mut Kernel) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut next = k.a.create_label();
    k.a.mov(r14d, EVENTS)?;
    k.here(&mut next)?;
    event(k)?;
    k.a.dec(r14d)?;
    k.a.jnz(next)
}
