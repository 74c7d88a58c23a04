//! One access through entries that the command line chooses: a single case of kvm-unit-tests' `access` test
//! (x86/access.c, `ac_test_do_access`), and a line that says what happened to the guest and to its entries.

use crate::{
    kernel::Kernel,
    parameters::{Kind, Parameter, Values},
    programs::{
        access::{self, Access},
        paging::{self, Mapping, Page},
    },
};
use iced_x86::{IcedError, code_asm::*};

const TWO_WAYS: &[&str] = &["gpa", "pse"];

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new("pml4e", Kind::Number, "", "entry of level 4; a table's address and P, W, U unless given"),
    Parameter::new("pdpte", Kind::Number, "", "entry of level 3; with bit 7 a 1 GiB page"),
    Parameter::new("pde", Kind::Number, "", "entry of level 2; with bit 7 a 2 MiB page"),
    Parameter::new(
        "pte",
        Kind::Number,
        "",
        "entry of level 1; the data page 0x2000000 and P, W, U unless given",
    )
    .excludes(TWO_WAYS),
    Parameter::new("gpa", Kind::Number, "", "the address to touch, mapped with P, W, U"),
    Parameter::new("pse", Kind::Flag, "0", "map with a 2 MiB page"),
    Parameter::new("access", Kind::Choice(Access::WORDS), "read", "8 bytes, 4 bytes, a call, or FLDS"),
    Parameter::new("cpl", Kind::Choice(&["0", "3"]), "0", "in kernel or user mode"),
    Parameter::new("wp", Kind::Flag, "1", "CR0.WP"),
    Parameter::new("nx", Kind::Flag, "1", "EFER.NXE"),
    Parameter::new("osxsave", Kind::Flag, "0", "CR4.OSXSAVE, which CPUID shows"),
    Parameter::new("times", Kind::Number, "1", "how often; the entries are written once"),
    Parameter::new("invlpg", Kind::Flag, "1", "INVLPG before each access"),
    Parameter::new("wait", Kind::Number, "0", "empty rounds of two instructions after each access"),
];

/// Variables of this program.
mod var {
    use crate::kernel::vars::PROGRAM;
    pub const LEFT: u64 = PROGRAM;
    /// The leaf and the entry above it as they were.
    pub const LEAF: u64 = PROGRAM + 8;
    pub const PARENT: u64 = PROGRAM + 0x10;
}

pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    touches(k, values)?;
    k.a.xor(eax, eax)?;
    k.exit()
}

/// The touches, as long as they go on.
pub fn touches(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let access = Access::of(values.word("access"));
    let mapping = mapping(values);
    control_registers(k, values)?;
    paging::prepare(k)?;
    mapping.install(k)?;
    let mut again = k.a.create_label();
    k.a.mov(eax, values.number("times").unwrap_or(1).clamp(1, u32::MAX.into()) as u32)?;
    k.a.mov(qword_ptr(var::LEFT), rax)?;
    k.here(&mut again)?;
    let (leaf, parent) = mapping.leaf_and_parent();
    for (entry, saved) in [(leaf, var::LEAF), (parent, var::PARENT)] {
        k.a.mov(rax, qword_ptr(entry.address))?;
        k.a.mov(qword_ptr(saved), rax)?;
    }
    k.a.mov(rbx, mapping.gva)?;
    if values.flag("invlpg") {
        k.a.invlpg(byte_ptr(rbx))?;
    }
    access::touch(k, access, values.word("cpl") == Some("3"))?;
    k.print("touch: ")?;
    access::print_outcome(k, access)?;
    for (entry, saved) in [(leaf, var::LEAF), (parent, var::PARENT)] {
        k.print(&format!(" {} 0x", entry.name))?;
        k.print_variable(saved)?;
        k.print(" -> 0x")?;
        k.print_variable(entry.address)?;
    }
    k.print("\n")?;
    wait(k, values.number("wait").unwrap_or(0))?;
    k.a.dec(dword_ptr(var::LEFT))?;
    k.a.jnz(again)
}

/// The entries that the parameters describe.
pub fn mapping(values: &Values) -> Mapping {
    let page = if values.flag("pse") { Page::Large } else { Page::Small };
    let mut mapping = Mapping::new(values.number("gpa").unwrap_or(paging::DATA), page);
    for entry in &mut mapping.entries {
        entry.value = values.number(entry.name).unwrap_or(entry.value);
    }
    mapping
}

fn control_registers(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    if !values.flag("wp") {
        k.a.mov(rax, cr0)?;
        k.a.btr(rax, 16)?;
        k.a.mov(cr0, rax)?;
    }
    if !values.flag("nx") {
        k.a.mov(ecx, 0xc000_0080u32)?;
        k.a.rdmsr()?;
        k.a.btr(eax, 11)?;
        k.a.wrmsr()?;
    }
    if values.flag("osxsave") {
        k.a.mov(rax, cr4)?;
        k.a.bts(rax, 18)?;
        k.a.mov(cr4, rax)?;
    }
    Ok(())
}

/// Spends time, so that something outside can happen at a known instruction. Clobbers RCX.
pub fn wait(k: &mut Kernel, rounds: u64) -> Result<(), IcedError> {
    if rounds == 0 {
        return Ok(());
    }
    let mut round = k.a.create_label();
    k.a.mov(rcx, rounds)?;
    k.here(&mut round)?;
    k.a.dec(rcx)?;
    k.a.jnz(round)
}
