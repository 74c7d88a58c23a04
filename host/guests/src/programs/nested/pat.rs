//! Which PAT a guest's guest sees and writes, as the kernel's selftest asks it.
//!
//! See: tools/testing/selftests/kvm/x86/svm_nested_pat_test.c, added with 4b83e4ba836e. The guest prints what it saw and
//! does not judge: both answers are KVM's. Where it prints `sync`, the selftest saves and restores the vCPU.

use super::{
    hypervisor::{self, Hypervisor, at},
    report, vmcb,
};
use crate::{
    kernel::{Kernel, vars},
    parameters::{Kind, Parameter, Values},
};
use iced_x86::{IcedError, code_asm::*};

pub const PARAMETERS: &[Parameter] = &[
    Parameter::new(
        "npt",
        Kind::Choice(&["both", "0", "1"]),
        "both",
        "with nested paging, without, or one after the other",
    ),
    Parameter::new("rounds", Kind::Number, "10", "how often the guest's guest runs"),
    Parameter::new("invalid", Kind::Flag, "1", "begin with a PAT that no processor takes"),
    Parameter::new("rewrite", Kind::Flag, "0", "the hypervisor writes G_PAT before each round"),
    Parameter::new("clean", Kind::Flag, "0", "with the clean bit that says that it did not"),
];

const IA32_PAT: u32 = 0x277;
const PAT_OF_HYPERVISOR: u64 = 0x0007_0406_0007_0404;
const PAT_IN_VMCB: u64 = 0x0606_0606_0606_0606;
const PAT_OF_GUEST: u64 = 0x0606_0606_0606_0604;
const INVALID_PAT: u64 = 0x0808_0808_0808_0808;

/// Variables of this program.
mod var {
    use crate::kernel::vars::PROGRAM;
    pub const ROUND: u64 = PROGRAM;
}

pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    let npt = values.word("npt").unwrap_or("both");
    let hypervisor = Hypervisor::start(k, npt != "0")?;
    let entry = hypervisor::guest(k, guest)?;
    if values.flag("invalid") {
        let nothing = hypervisor::guest(k, |_| Ok(()))?;
        hypervisor.reset(k, nothing)?;
        hypervisor::set(k, vmcb::G_PAT, INVALID_PAT)?;
        hypervisor.run(k)?;
        k.print("invalid G_PAT:")?;
        report::print_exit(k)?;
        k.print("\n")?;
    }
    for nested_paging in [1, 0] {
        if npt == "both" || npt == ["0", "1"][nested_paging] {
            k.print(&format!("nested paging {nested_paging}\n"))?;
            rounds(k, &hypervisor, values, entry, nested_paging as u64)?;
        }
    }
    k.a.xor(eax, eax)?;
    k.exit()
}

/// One VMCB, run again and again.
fn rounds(
    k: &mut Kernel,
    hypervisor: &Hypervisor,
    values: &Values,
    entry: CodeLabel,
    nested_paging: u64,
) -> Result<(), IcedError> {
    let mut again = k.a.create_label();
    hypervisor.reset(k, entry)?;
    hypervisor::set(k, vmcb::NP_ENABLE, nested_paging)?;
    hypervisor::set(k, vmcb::G_PAT, PAT_IN_VMCB)?;
    hypervisor::write_msr(k, IA32_PAT, PAT_OF_HYPERVISOR)?;
    k.a.mov(dword_ptr(var::ROUND), 0)?;
    k.here(&mut again)?;
    k.print("round ")?;
    k.print_variable(var::ROUND)?;
    k.print("\n")?;
    hypervisor.run(k)?;
    k.print(" hypervisor:")?;
    report::print_exit(k)?;
    report::print_field(k, " G_PAT 0x", vmcb::G_PAT)?;
    k.print(" PAT 0x")?;
    hypervisor::read_msr(k, IA32_PAT)?;
    k.print_hex()?;
    k.print("\n")?;
    k.a.mov(rax, qword_ptr(hypervisor::var::START))?;
    k.a.mov(qword_ptr(at(vmcb::RIP)), rax)?;
    if values.flag("rewrite") {
        hypervisor::set(k, vmcb::G_PAT, PAT_IN_VMCB)?;
    }
    if values.flag("clean") {
        hypervisor::set(k, vmcb::CLEAN, vmcb::CLEAN_NP.into())?;
    }
    k.a.inc(dword_ptr(var::ROUND))?;
    k.a.cmp(dword_ptr(var::ROUND), values.number("rounds").unwrap_or(1).clamp(1, 1 << 30) as i32)?;
    k.a.jb(again)
}

/// What the guest's guest does in a round.
fn guest(k: &mut Kernel) -> Result<(), IcedError> {
    see(k, " guest: PAT 0x")?;
    k.print(" sync 1")?;
    see(k, " PAT 0x")?;
    hypervisor::write_msr(k, IA32_PAT, PAT_OF_GUEST)?;
    see(k, " written, PAT 0x")?;
    k.print(" sync 2")?;
    see(k, " PAT 0x")?;
    k.attempt(|k| hypervisor::write_msr(k, IA32_PAT, INVALID_PAT))?;
    k.print(" invalid:")?;
    report::print_vector(k)?;
    k.print(" error 0x")?;
    k.print_variable(vars::ERROR)?;
    k.print("\n")
}

fn see(k: &mut Kernel, text: &str) -> Result<(), IcedError> {
    k.print(text)?;
    hypervisor::read_msr(k, IA32_PAT)?;
    k.print_hex()
}
