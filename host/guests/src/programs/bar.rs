//! Firmware's habit: a 64-bit BAR goes to the top of the address space that CPUID promises.
//!
//! The address is probed as firmware does that honours GuestPhysBits, and as firmware that only knows MAXPHYADDR. RAM is
//! looked at before and after: a page table with too few levels may have mapped the BAR over it. With `x87` RAM is looked at
//! by an instruction that KVM's emulator does not know, so that RAM which has become MMIO does not go unnoticed.

use crate::{
    kernel::{Kernel, NO_VECTOR, vars},
    parameters::{Kind, Parameter, Values},
    programs::{
        access::{self, Access},
        paging::{self, DATA, GVA, Mapping, P_W_U, PDE, PTE, Page, SIGNATURE},
    },
};
use iced_x86::{IcedError, code_asm::*};

/// Present, writable, not cached, 2 MiB.
const DEVICE_PAGE: i32 = 0x9b;
const PROBE_VALUE: i32 = 0x1357_9bdf;
/// Below the 12 GiB at the top of 40 bits and of the address space that AMD's hosts keep for HyperTransport.
/// See: Linux drivers/iommu/amd/amd_iommu_types.h HT_RANGE_START
const BELOW_RESERVED: u64 = 16 << 30;

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new(
        "by",
        Kind::Choice(&["both", "guest-phys-bits", "phys-bits"]),
        "both",
        "which width this firmware goes by",
    ),
    Parameter::new(
        "size",
        Kind::Number,
        "",
        "the BAR lies so much below the top (default: 16 GiB, or a quarter of the address space where that is less)",
    ),
    Parameter::new("at", Kind::Number, "", "the BAR's address instead, 2 MiB aligned")
        .excludes(&["by", "size"]),
    Parameter::new("ram", Kind::Number, "0x2000000", "the page of RAM that is looked at before and after"),
    Parameter::new("look", Kind::Choice(&["read", "x87"]), "read", "how RAM is looked at"),
];

pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let ram = values.number("ram").unwrap_or(DATA);
    let look = Access::of(values.word("look"));
    paging::prepare(k)?;
    Mapping::new(ram, Page::Small).install(k)?;
    mark_ram(k)?;
    let by = values.word("by").unwrap_or("both");
    match values.number("at") {
        Some(address) => {
            k.a.mov(rax, address)?;
            probe(k, "BAR at 0x")?;
        }
        None => probe_tops(k, by, values.number("size"))?,
    }
    paging::set_entry(k, PDE, PTE | P_W_U)?;
    k.a.mov(rbx, GVA)?;
    k.a.invlpg(byte_ptr(rbx))?;
    look_at_ram(k, look, ram)?;
    k.print("PASS: every probe came back\n")?;
    k.a.xor(eax, eax)?;
    k.exit()
}

/// Probes the top of the address space by each width.
fn probe_tops(k: &mut Kernel, by: &str, size: Option<u64>) -> Result<(), IcedError> {
    let mut promised = k.a.create_label();
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
    for (name, text, width) in [("guest-phys-bits", "GuestPhysBits", r13d), ("phys-bits", "MAXPHYADDR", r12d)]
    {
        if by != "both" && by != name {
            continue;
        }
        k.a.mov(ecx, width)?;
        k.a.mov(eax, 1)?;
        k.a.shl(rax, cl)?;
        k.a.mov(rbx, size.unwrap_or(BELOW_RESERVED))?;
        if size.is_none() {
            k.a.mov(rdx, rax)?;
            k.a.shr(rdx, 2)?;
            k.a.cmp(rbx, rdx)?;
            k.a.cmova(rbx, rdx)?;
        }
        k.a.sub(rax, rbx)?;
        probe(k, &format!("BAR at the top by {text}: 0x"))?;
    }
    Ok(())
}

/// Writes and reads the BAR at the address in RAX.
fn probe(k: &mut Kernel, what: &str) -> Result<(), IcedError> {
    let (mut faulted, mut done) = (k.a.create_label(), k.a.create_label());
    k.print(what)?;
    k.print_hex()?;
    k.a.or(rax, DEVICE_PAGE)?;
    k.a.mov(qword_ptr(PDE), rax)?;
    k.a.mov(rbx, GVA)?;
    k.a.invlpg(byte_ptr(rbx))?;
    k.attempt(|k| {
        k.a.mov(dword_ptr(rbx), PROBE_VALUE)?;
        k.a.mov(r14d, dword_ptr(rbx))
    })?;
    k.a.cmp(qword_ptr(vars::VECTOR), NO_VECTOR as i32)?;
    k.a.jne(faulted)?;
    k.print(" answers")?;
    k.a.cmp(r14d, PROBE_VALUE)?;
    k.a.jne(done)?;
    k.print(" as RAM does")?;
    k.a.jmp(done)?;
    k.here(&mut faulted)?;
    k.print(" faults, error 0x")?;
    k.print_variable(vars::ERROR)?;
    k.here(&mut done)?;
    k.print("\n")
}

/// Writes the signature to RAM, so that its page is mapped when the BAR is.
fn mark_ram(k: &mut Kernel) -> Result<(), IcedError> {
    k.a.mov(rbx, GVA)?;
    k.a.mov(rax, SIGNATURE)?;
    k.a.mov(qword_ptr(rbx), rax)
}

/// Leaves with status 1 unless RAM is as it was.
fn look_at_ram(k: &mut Kernel, look: Access, ram: u64) -> Result<(), IcedError> {
    let (mut wrong, mut intact) = (k.a.create_label(), k.a.create_label());
    access::touch(k, look, false)?;
    k.a.cmp(qword_ptr(vars::VECTOR), NO_VECTOR as i32)?;
    k.a.jne(wrong)?;
    if look == Access::Read {
        k.a.mov(rax, SIGNATURE)?;
        k.a.cmp(rax, r13)?;
        k.a.jne(wrong)?;
    }
    k.a.jmp(intact)?;
    k.here(&mut wrong)?;
    k.print(&format!("FAIL: RAM at {ram:#x}: "))?;
    access::print_outcome(k, look)?;
    k.print("\n")?;
    k.a.mov(eax, 1)?;
    k.exit()?;
    k.here(&mut intact)
}
