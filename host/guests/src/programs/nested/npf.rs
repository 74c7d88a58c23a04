//! Every kind of nested page fault, one after the other: the entry that refuses, the access that meets it, and what the
//! hypervisor is told. After each fault the entry is put right and the guest's guest goes on.
//!
//! See: kvm-unit-tests x86/svm_npt.c; tools/testing/selftests/kvm/x86/nested_tdp_fault_test.c

use super::{
    hypervisor::{self, Hypervisor, at, layout},
    report,
    tables::Path,
    vmcb::{self, exit},
};
use crate::{
    apic,
    kernel::Kernel,
    parameters::{Kind, Parameter, Values},
    programs::paging::{self, Mapping, P_W_U, Page},
};
use iced_x86::{IcedError, code_asm::*};

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new("nx", Kind::Flag, "1", "EFER.NXE of the hypervisor, and with it of its tables"),
    Parameter::new("smep", Kind::Flag, "0", "CR4.SMEP of the hypervisor"),
    Parameter::new("guest-nx", Kind::Flag, "1", "EFER.NXE of the guest's guest"),
];

// See: APM vol. 2 5.4.1 Field Definitions
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;
/// Reserved in an entry of level 2 or 3 that maps a page; the first also in one of level 4.
const RESERVED_WITH_PS: u64 = 1 << 13;
const RESERVED_IN_PML4E: u64 = 1 << 8;

const APIC: u64 = apic::BASE as u64;

/// A page in 2 MiB of its own, away from the guest's guest's tables.
const FAR_PAGE: u64 = 0x220_0000;

/// How the guest's guest meets the entry. RBX holds the linear address of the page under test.
#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
    Fetch,
    /// Reads a register of the local APIC and stores it in the page, in one instruction, which KVM emulates.
    Move,
    ApicRead,
    ApicWrite,
}

/// Which entry, and what it holds meanwhile.
struct Case {
    name: &'static str,
    /// Where the entry lies.
    entry: u64,
    /// The entry that refuses.
    value: u64,
    /// The page under test.
    page: u64,
    access: Access,
}

pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let hypervisor = Hypervisor::start(k, true)?;
    let path = Path::new(paging::DATA);
    path.install(k)?;
    paging::prepare(k)?;
    modes(k, values)?;
    for case in cases(&path) {
        run(k, &hypervisor, values, &case)?;
    }
    beyond_the_width(k, &hypervisor, values, &path)?;
    k.a.xor(eax, eax)?;
    k.exit()
}

/// The cases that need no width.
fn cases(path: &Path) -> Vec<Case> {
    let [npml4e, npdpte, _, npte] = path.entries.map(|entry| entry.address);
    let page = paging::DATA;
    let far_npde = layout::NPD + 8 * (FAR_PAGE >> 21);
    let apic_npde = layout::NPD + 8 * (APIC >> 21);
    // The entries of the guest's guest's own tables: the one with its leaf entry, and its top level.
    let table = |address: u64| layout::NPT + 8 * (address >> 12 & 0x1ff);
    let case = |name, entry, value, access| Case { name, entry, value, page, access };
    let far = |name, entry, value, access| Case { page: FAR_PAGE, ..case(name, entry, value, access) };
    vec![
        case("present, read", npte, page | P_W_U, Access::Read),
        case("not present, read", npte, 0, Access::Read),
        case("not present, write", npte, 0, Access::Write),
        case("not present, fetch", npte, 0, Access::Fetch),
        case("supervisor, read", npte, page | P | W, Access::Read),
        case("read-only, read", npte, page | P | U, Access::Read),
        case("read-only, write", npte, page | P | U, Access::Write),
        case("no execute, read", npte, page | P_W_U | NX, Access::Read),
        case("no execute, fetch", npte, page | P_W_U | NX, Access::Fetch),
        far("reserved bit in npde, read", far_npde, FAR_PAGE | RESERVED_WITH_PS | PS | P_W_U, Access::Read),
        far("reserved bit in npde, fetch", far_npde, FAR_PAGE | RESERVED_WITH_PS | PS | P_W_U, Access::Fetch),
        case("reserved bit in npdpte", npdpte, RESERVED_WITH_PS | PS | P_W_U, Access::Read),
        case("reserved bit in npml4e", npml4e, layout::NPDPT | RESERVED_IN_PML4E | P_W_U, Access::Read),
        case("table not present", table(paging::PTE), 0, Access::Read),
        case("table read-only", table(paging::PTE), paging::PTE | P | U, Access::Read),
        case("table supervisor", table(paging::PTE), paging::PTE | P | W, Access::Read),
        case("upper table not present", table(paging::PDPT), 0, Access::Write),
        case("device, read", apic_npde, APIC | PS | P_W_U, Access::ApicRead),
        case("device read-only, write", apic_npde, APIC | PS | P | U, Access::ApicWrite),
        case("device not present, read", apic_npde, 0, Access::ApicRead),
        case("emulated, destination read-only", npte, page | P | U, Access::Move),
        case("emulated, destination not present", npte, 0, Access::Move),
        case("emulated, table not present", table(paging::PTE), 0, Access::Move),
    ]
}

fn modes(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    if !values.flag("nx") {
        k.a.mov(ecx, 0xc000_0080u32)?;
        k.a.rdmsr()?;
        k.a.btr(eax, 11)?;
        k.a.wrmsr()?;
    }
    if values.flag("smep") {
        // The tables are user pages, which a supervisor with SMEP may not execute: those of the code become its own.
        k.a.and(dword_ptr(crate::boot::layout::PD), !(U as i32))?;
        k.a.mov(rax, cr4)?;
        k.a.bts(rax, 20)?;
        k.a.mov(cr4, rax)?;
    }
    Ok(())
}

/// One case: up to three exits, each with what it says, and the entries afterwards.
fn run(k: &mut Kernel, hypervisor: &Hypervisor, values: &Values, case: &Case) -> Result<(), IcedError> {
    let mapping = Mapping::new(case.page, Page::Small);
    begin(k, hypervisor, values, case.access, &mapping)?;
    k.a.mov(r12, qword_ptr(case.entry))?;
    paging::set_entry(k, case.entry, case.value)?;
    report(k, hypervisor, case.name, case.entry, &mapping)
}

/// The same for an address just beyond the hypervisor's width, where it has one.
fn beyond_the_width(
    k: &mut Kernel,
    hypervisor: &Hypervisor,
    values: &Values,
    path: &Path,
) -> Result<(), IcedError> {
    let mut none = k.a.create_label();
    for access in [Access::Read, Access::Fetch] {
        let mapping = Mapping::new(paging::DATA, Page::Small);
        let entry = path.entries[3].address;
        paging::address_widths(k)?;
        k.a.cmp(eax, 52)?;
        k.a.jae(none)?;
        k.a.mov(r14d, eax)?;
        begin(k, hypervisor, values, access, &mapping)?;
        k.a.mov(r12, qword_ptr(entry))?;
        k.a.bts(qword_ptr(entry), r14)?;
        report(k, hypervisor, "beyond the width", entry, &mapping)?;
    }
    k.here(&mut none)
}

/// A VMCB for the access, and the mapping as new. Clobbers RAX, RCX, RDX and RDI.
fn begin(
    k: &mut Kernel,
    hypervisor: &Hypervisor,
    values: &Values,
    access: Access,
    mapping: &Mapping,
) -> Result<(), IcedError> {
    mapping.install(k)?;
    // Both pages can be called.
    paging::set_entry(k, FAR_PAGE, paging::SIGNATURE)?;
    let gva = mapping.gva;
    let entry = hypervisor::guest(k, |k| meet(k, access, gva))?;
    hypervisor.reset(k, entry)?;
    // The page under test is a user page, which its kernel executes.
    k.a.btr(dword_ptr(at(vmcb::CR4)), 20)?;
    if !values.flag("guest-nx") {
        k.a.btr(dword_ptr(at(vmcb::EFER)), 11)?;
    }
    Ok(())
}

fn meet(k: &mut Kernel, access: Access, gva: u64) -> Result<(), IcedError> {
    k.a.mov(rbx, gva)?;
    match access {
        Access::Read => k.a.mov(rax, qword_ptr(rbx)),
        Access::Write => k.a.mov(dword_ptr(rbx + 8), 0x1357_9bdf),
        Access::Fetch => k.a.call(rbx),
        Access::Move => {
            k.a.mov(esi, apic::VERSION as i32)?;
            k.a.mov(rdi, rbx)?;
            k.a.add(rdi, 8)?;
            k.a.movsd()
        }
        Access::ApicRead => {
            k.a.mov(esi, apic::VERSION as i32)?;
            k.a.mov(eax, dword_ptr(rsi))
        }
        Access::ApicWrite => {
            k.a.mov(esi, apic::TPR)?;
            k.a.mov(dword_ptr(rsi), 0x20)
        }
    }
}

/// Runs until VMMCALL; R12 is what the entry becomes after the first nested page fault. Ends after four exits.
fn report(
    k: &mut Kernel,
    hypervisor: &Hypervisor,
    name: &str,
    entry: u64,
    mapping: &Mapping,
) -> Result<(), IcedError> {
    let (mut again, mut last) = (k.a.create_label(), k.a.create_label());
    k.print(name)?;
    k.a.mov(r13d, 4)?;
    k.here(&mut again)?;
    hypervisor.run(k)?;
    k.print(":")?;
    report::print_exit(k)?;
    k.a.cmp(qword_ptr(at(vmcb::EXITCODE)), exit::NPF as i32)?;
    k.a.jne(last)?;
    report::print_info(k)?;
    k.print(" entry 0x")?;
    k.print_variable(entry)?;
    k.a.mov(qword_ptr(entry), r12)?;
    k.a.dec(r13d)?;
    k.a.jnz(again)?;
    k.here(&mut last)?;
    k.print(" entry 0x")?;
    k.print_variable(entry)?;
    let (leaf, _) = mapping.leaf_and_parent();
    k.print(" leaf 0x")?;
    k.print_variable(leaf.address)?;
    k.print("\n")?;
    // Without accessed and dirty bits again.
    k.a.mov(qword_ptr(entry), r12)
}
