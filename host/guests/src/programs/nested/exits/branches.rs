//! Last branches: what DEBUGCTL takes, whose branches a hypervisor finds after its guest, and whether VMRUN's clean bit of them stays.
//!
//! See: KVM arch/x86/kvm/svm/svm.c svm_set_msr(), svm_copy_lbrs(); APM vol. 2 (24593, revision 3.42) 13.1.1, 15.23

use super::{instructions::msr, nothing};
use crate::{
    kernel::Kernel,
    programs::nested::{
        hypervisor::{self, Hypervisor, set},
        report, vmcb,
    },
};
use iced_x86::{IcedError, code_asm::*};

const DEBUGCTL: u32 = 0x1d9;
const LASTBRANCHFROMIP: u32 = 0x1db;
const LBR: u64 = 1;
const BTF: u64 = 2;
const PIN: u64 = 4;
/// LBR_CTL_ENABLE of the VMCB. See: Appendix B Table B-1. VMCB Layout, Control Area
const LBR_VIRTUALIZATION: u64 = 1;

pub fn list(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    for (name, value) in [("debugctl, single-step on branches:", BTF), ("debugctl, pin control:", PIN)] {
        k.attempt(|k| hypervisor::write_msr(k, DEBUGCTL, value))?;
        k.print(name)?;
        report::print_vector(k)?;
        hypervisor::read_msr(k, DEBUGCTL)?;
        k.print(" then 0x")?;
        k.print_hex()?;
        k.print("\n")?;
    }
    hypervisor::write_msr(k, DEBUGCTL, 0)?;
    let entry = hypervisor::guest(k, branch)?;
    hypervisor.reset(k, entry)?;
    hypervisor.run(k)?;
    k.print("branch of the guest, recorded by the guest: found by the hypervisor ")?;
    print_found(k)?;
    let entry = hypervisor::guest(k, nothing)?;
    hypervisor.reset(k, entry)?;
    set(k, vmcb::VIRT_EXT, LBR_VIRTUALIZATION)?;
    set(k, vmcb::CLEAN, u32::MAX.into())?;
    hypervisor.run(k)?;
    k.print("branches virtualized:")?;
    report::print_exit(k)?;
    report::print_field(k, " clean bits 0x", vmcb::CLEAN)?;
    k.print("\n")
}

/// Records one branch and stops.
fn branch(k: &mut Kernel) -> Result<(), IcedError> {
    let mut target = k.a.create_label();
    hypervisor::write_msr(k, DEBUGCTL, LBR)?;
    k.a.jmp(target)?;
    k.a.nop()?;
    k.here(&mut target)?;
    hypervisor::write_msr(k, DEBUGCTL, 0)
}

/// Whether the register of the last branch has one.
fn print_found(k: &mut Kernel) -> Result<(), IcedError> {
    msr(k, LASTBRANCHFROMIP, |k| k.a.rdmsr())?;
    k.a.shl(rdx, 32)?;
    k.a.or(rdx, rax)?;
    k.a.setnz(al)?;
    k.a.movzx(eax, al)?;
    k.print_dec()?;
    k.print("\n")
}
