//! A hypervisor whose guest is `touch`. The three levels may have three widths: the host's, the hypervisor's, and the one
//! that the hypervisor tells its guest and enforces as KVM once did, by a #PF where the address is too wide.

use super::{
    hypervisor::{self, Hypervisor, at},
    report,
    tables::Path,
    vmcb::{self, exit},
};
use crate::{
    kernel::Kernel,
    parameters::{Kind, Parameter, Values},
    programs::{
        paging::P_W_U,
        touch::{self, mapping},
    },
};
use iced_x86::{IcedError, code_asm::*};

const OWN: [Parameter; 7] = [
    Parameter::new("npt", Kind::Flag, "1", "nested paging"),
    Parameter::new("width", Kind::Number, "0", "MAXPHYADDR of the guest's guest; 0: the hypervisor's"),
    Parameter::new(
        "npml4e",
        Kind::Number,
        "",
        "nested entry of level 4 of the touched address; P, W, U unless given",
    ),
    Parameter::new("npdpte", Kind::Number, "", "nested entry of level 3"),
    Parameter::new("npde", Kind::Number, "", "nested entry of level 2; with bit 7 a 2 MiB page"),
    Parameter::new("npte", Kind::Number, "", "nested entry of level 1").excludes(&["ngpa"]),
    Parameter::new("ngpa", Kind::Number, "", "the hypervisor's address that it maps to, instead of the same"),
];
const COUNT: usize = OWN.len() + touch::PARAMETERS.len();

/// The hypervisor's, then those of `touch`.
pub const PARAMETERS: &[Parameter] = &{
    let mut all = [OWN[0]; COUNT];
    let mut n = 0;
    while n < COUNT {
        all[n] = if n < OWN.len() { OWN[n] } else { touch::PARAMETERS[n - OWN.len()] };
        n += 1;
    }
    all
};

// See: APM vol. 3 E.4.7 Function 8000_0008h
const WIDTHS_LEAF: u32 = 0x8000_0008;
/// Bits 51:12 of an entry.
const ADDRESS: u64 = 0xf_ffff_ffff_f000;
/// Bytes of CPUID.
const CPUID_LENGTH: i32 = 2;
// See: APM vol. 2 8.4.2 Page-Fault Error Code
const PF_P_RSVD: i32 = 9;
const PF_USER: i32 = 4;
const PF_W: i32 = 2;
const PF_FETCH: i32 = 0x10;

pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let nested_paging = values.flag("npt");
    let width = values.number("width").unwrap_or(0).min(52);
    let hypervisor = Hypervisor::start(k, nested_paging)?;
    if nested_paging {
        nested_entries(k, values, width)?;
    }
    let entry = hypervisor::guest(k, |k| touch::touches(k, values))?;
    hypervisor.reset(k, entry)?;
    if width != 0 {
        hypervisor::intercept(k, exit::CPUID)?;
    }
    let (mut next, mut cpuid, mut fault) = (k.a.create_label(), k.a.create_label(), k.a.create_label());
    let mut done = k.a.create_label();
    k.here(&mut next)?;
    hypervisor.run(k)?;
    k.a.mov(eax, dword_ptr(at(vmcb::EXITCODE)))?;
    for (code, label) in [(exit::VMMCALL, done), (exit::CPUID, cpuid), (exit::NPF, fault)] {
        k.a.cmp(eax, code as i32)?;
        k.a.je(label)?;
    }
    k.print("hypervisor:")?;
    report::print_exit(k)?;
    k.print("\n")?;
    k.a.mov(eax, 1)?;
    k.exit()?;
    k.here(&mut cpuid)?;
    answer_cpuid(k, width)?;
    k.a.jmp(next)?;
    k.here(&mut fault)?;
    k.print("hypervisor: nested page fault")?;
    report::print_info(k)?;
    inject_if_too_wide(k, width, mapping(values).gva, next)?;
    k.print(", cannot go on\n")?;
    k.here(&mut done)?;
    k.a.xor(eax, eax)?;
    k.exit()
}

/// Maps the touched address as the parameters say. What is too wide for the guest's guest, or for four levels, stays
/// unmapped.
fn nested_entries(k: &mut Kernel, values: &Values, width: u64) -> Result<(), IcedError> {
    let mapping = mapping(values);
    let (leaf, _) = mapping.leaf_and_parent();
    let gpa = leaf.value & ADDRESS;
    if gpa >> 48 != 0 || width != 0 && gpa >> width != 0 {
        return Ok(());
    }
    let mut path = Path::new(gpa);
    if let Some(address) = values.number("ngpa") {
        path.entries[3].value = (address & !0xfff) | P_W_U;
    }
    for entry in &mut path.entries {
        entry.value = values.number(entry.name).unwrap_or(entry.value);
    }
    path.install(k)
}

/// The processor's answer, with the width in its place. Clobbers RAX to RDX.
fn answer_cpuid(k: &mut Kernel, width: u64) -> Result<(), IcedError> {
    let mut other = k.a.create_label();
    k.a.mov(eax, dword_ptr(at(vmcb::RAX)))?;
    k.a.mov(ecx, dword_ptr(hypervisor::register(rcx)))?;
    k.a.mov(esi, eax)?;
    k.a.cpuid()?;
    k.a.cmp(esi, WIDTHS_LEAF as i32)?;
    k.a.jne(other)?;
    k.a.mov(al, width as i32)?;
    k.here(&mut other)?;
    k.a.mov(qword_ptr(at(vmcb::RAX)), rax)?;
    for register in [rbx, rcx, rdx] {
        k.a.mov(qword_ptr(hypervisor::register(register)), register)?;
    }
    k.a.add(qword_ptr(at(vmcb::RIP)), CPUID_LENGTH)
}

/// Where the faulting address is beyond the width: a #PF for a reserved bit, and back to `resume`. The linear address is
/// not told by the exit; this hypervisor knows it. Clobbers RAX and RCX.
fn inject_if_too_wide(k: &mut Kernel, width: u64, gva: u64, resume: CodeLabel) -> Result<(), IcedError> {
    if width == 0 {
        return Ok(());
    }
    let (mut legal, mut supervisor) = (k.a.create_label(), k.a.create_label());
    k.a.mov(rax, qword_ptr(at(vmcb::EXITINFO2)))?;
    k.a.shr(rax, width as i32)?;
    k.a.test(rax, rax)?;
    k.a.jz(legal)?;
    k.a.mov(eax, dword_ptr(at(vmcb::EXITINFO1)))?;
    k.a.and(eax, PF_W | PF_FETCH)?;
    k.a.or(eax, PF_P_RSVD)?;
    k.a.cmp(byte_ptr(at(vmcb::CPL)), 3)?;
    k.a.jne(supervisor)?;
    k.a.or(eax, PF_USER)?;
    k.here(&mut supervisor)?;
    k.a.mov(dword_ptr(at(vmcb::EVENTINJ_ERROR)), eax)?;
    const PAGE_FAULT: u32 = 14;
    let event = vmcb::EVENT_VALID | vmcb::EVENT_ERROR_CODE | vmcb::EVENT_EXCEPTION | PAGE_FAULT;
    hypervisor::set(k, vmcb::EVENTINJ, event.into())?;
    hypervisor::set(k, vmcb::CR2, gva)?;
    k.print(": too wide, #PF\n")?;
    k.a.jmp(resume)?;
    k.here(&mut legal)
}
