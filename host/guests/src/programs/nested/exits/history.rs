//! What stable updates changed in nested SVM, one small guest each: who is trapped when VMRUN is stepped through, what a hypervisor that
//! lies about clean bits gets, which VMCB its guest's VMLOAD reaches, fields that were not looked at, a fault during a fault.
//!
//! See: KVM arch/x86/kvm/svm/nested.c; APM vol. 2 (24593, revision 3.42)

use super::{
    Emit, Step, checks,
    events::{self, GP_WITH_CODE, NOWHERE},
    instructions::{self, STAR},
    nothing, step,
};
use crate::{
    kernel::Kernel,
    programs::nested::{
        hypervisor::{self, Hypervisor, at, intercept, layout, set},
        report,
        vmcb::{self, Field, exit},
    },
};
use iced_x86::{IcedError, code_asm::*};

const RFLAGS_TF: i32 = 1 << 8;
/// EFER.LME, which stands below EFER.LMA. See: 3.1.7 Extended Feature Enable Register (EFER)
const EFER_LME: i32 = 8;
const CR0_PG: i32 = 31;
/// 32-bit code: P, S, execute and read; G, D. See: 15.5.1 Basic Operation
const CODE32: u64 = 0xc9b;
/// An aligned address within every width that has no memory.
const NO_MEMORY: u64 = 0x4000_0000;
/// The first page of a slot that the VMM may add, and take away.
const ELSEWHERE: u64 = 0x800_0000;
/// So long a guest's guest waits for the VMM to do so, in turns of two instructions.
const TURNS: u32 = 20_000;
/// What a VMCB has for STAR, whose low half nobody uses in long mode.
const STAR_VALUE: u64 = 0x1234;

/// VMRUN with RFLAGS.TF, one that runs a guest and one that fails: the trap is the hypervisor's, behind VMRUN. Its guest could take
/// none, since it has no IDT.
pub fn single_step(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    for (name, asid) in [("vmrun stepped through:", 1), ("vmrun that fails stepped through:", 0)] {
        let entry = hypervisor::guest(k, nothing)?;
        hypervisor.reset(k, entry)?;
        set(k, vmcb::IDTR_LIMIT, 0)?;
        set(k, vmcb::GUEST_ASID, asid)?;
        k.print(name)?;
        k.attempt(|k| {
            k.a.xor(ebx, ebx)?;
            k.a.mov(eax, layout::VMCB as u32)?;
            k.a.pushfq()?;
            k.a.or(dword_ptr(rsp), RFLAGS_TF)?;
            k.a.popfq()?;
            k.a.vmrun()?;
            k.a.inc(ebx)
        })?;
        k.a.stgi()?;
        report::print_exit(k)?;
        k.print(" hypervisor")?;
        report::print_vector(k)?;
        k.print(" instructions behind vmrun ")?;
        k.a.mov(rax, rbx)?;
        k.print_dec()?;
        k.print("\n")?;
    }
    Ok(())
}

/// Fields under a clean bit each, and what is written there while the bit is set, or clear.
const KEPT: [(&str, Field, u64); 3] = [
    (" es 0x", Field { offset: vmcb::ES, size: 2 }, 0),
    (" gdt 0x", Field { offset: vmcb::GDTR + 4, size: 4 }, 0x37),
    (" dr7 0x", vmcb::DR7, 0x500),
];

/// Clean bits that lie; and a permission map that is wanted from the second VMRUN on.
pub fn clean_bits(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    let entry = hypervisor::guest(k, nothing)?;
    hypervisor.reset(k, entry)?;
    hypervisor.run(k)?;
    for (name, clean) in [("changed, called clean:", u32::MAX), ("changed:", 0)] {
        KEPT.iter().try_for_each(|(_, field, value)| set(k, *field, *value))?;
        set(k, vmcb::CLEAN, clean.into())?;
        hypervisor.run(k)?;
        k.print(name)?;
        for (text, field, _) in KEPT {
            print_narrow(k, text, field)?;
        }
        k.print("\n")?;
    }
    instructions::maps(k)?;
    let entry = hypervisor::guest(k, |k| instructions::msr(k, STAR, |k| k.a.rdmsr()))?;
    for (name, setup) in [
        ("rdmsr, msrs not intercepted:", nothing as Emit),
        ("rdmsr, intercepted from now on:", |k| intercept(k, exit::MSR)),
    ] {
        restart(k, entry)?;
        setup(k)?;
        hypervisor.run(k)?;
        k.print(name)?;
        report::print_exit(k)?;
        k.print("\n")?;
    }
    Ok(())
}

/// VMLOAD and VMSAVE of the guest's guest, which nobody intercepts: the hypervisor's memory, the registers that run.
pub fn vmload(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    let entry = hypervisor::guest(k, |k| {
        k.a.mov(eax, layout::HOST_SAVE as u32)?;
        k.a.vmload()?;
        hypervisor::read_msr(k, STAR)?;
        k.print("vmload of the guest: star 0x")?;
        k.print_hex()?;
        hypervisor::write_msr(k, STAR, STAR_VALUE + 1)?;
        k.a.mov(eax, layout::HOST_SAVE as u32)?;
        k.a.vmsave()
    })?;
    k.a.mov(eax, layout::HOST_SAVE as u32)?;
    k.a.vmsave()?;
    k.a.mov(dword_ptr(saved(vmcb::STAR)), STAR_VALUE as u32)?;
    hypervisor.reset(k, entry)?;
    hypervisor.run(k)?;
    k.print(", vmsave 0x")?;
    k.a.mov(rax, qword_ptr(saved(vmcb::STAR)))?;
    k.print_hex()?;
    report::print_exit(k)?;
    k.print("\n")
}

/// A field of the VMCB that the page of the host save area serves as.
const fn saved(field: Field) -> u64 {
    layout::HOST_SAVE + field.offset
}

const FIELDS: &[Step] = &[
    step("tlb_control 3", |k| set(k, vmcb::TLB_CONTROL, 3), nothing),
    step("#PF during #PF", page_fault_twice, nothing).informs().delivers(),
];

/// Fields that not every release looks at. The last one ends the machine in old ones.
pub fn fields(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    FIELDS.iter().try_for_each(|step| super::run(k, hypervisor, step))?;
    let entry = hypervisor::guest(k, nothing)?;
    hypervisor.reset(k, entry)?;
    checks::flip(k, vmcb::EFER, EFER_LME)?;
    checks::flip(k, vmcb::CR0, CR0_PG)?;
    set(k, vmcb::CS_ATTRIB, CODE32)?;
    k.print("efer.lma without lme:")?;
    hypervisor.run(k)?;
    report::print_exit(k)?;
    report::print_field(k, " efer 0x", vmcb::EFER)?;
    k.print("\n")?;
    super::run(
        k,
        hypervisor,
        &step("ncr3 in no memory", |k| set(k, vmcb::N_CR3, NO_MEMORY), nothing).informs(),
    )
}

/// A page fault that cannot be delivered for another one: the hypervisor intercepts it, and what the two would make.
fn page_fault_twice(k: &mut Kernel) -> Result<(), IcedError> {
    intercept(k, exit::EXCEPTION + 14)?;
    intercept(k, exit::EXCEPTION + 8)?;
    set(k, vmcb::IDTR_BASE, NOWHERE)?;
    events::inject(k, GP_WITH_CODE + 1)
}

/// A VMCB in memory that the VMM takes away while the guest's guest runs, which learns of it by VMMCALL.
pub fn elsewhere(k: &mut Kernel, hypervisor: &Hypervisor) -> Result<(), IcedError> {
    let entry = hypervisor::guest(k, |k| {
        let mut turn = k.a.create_label();
        k.a.mov(ecx, TURNS)?;
        k.here(&mut turn)?;
        k.a.dec(ecx)?;
        k.a.jnz(turn)?;
        k.attempt(|k| k.a.vmmcall())?;
        k.print("no vmcb to exit to: guest")?;
        report::print_vector(k)?;
        k.print("\n")?;
        k.a.xor(eax, eax)?;
        k.exit()
    })?;
    hypervisor.reset(k, entry)?;
    k.attempt(|k| {
        k.a.mov(esi, layout::VMCB as u32)?;
        k.a.mov(edi, ELSEWHERE as u32)?;
        k.a.mov(ecx, 0x1000 / 8)?;
        k.a.rep().movsq()?;
        k.a.mov(eax, ELSEWHERE as u32)?;
        k.a.vmrun()
    })?;
    k.print("vmcb elsewhere: exit 0x")?;
    k.a.mov(rbx, ELSEWHERE)?;
    k.a.mov(rax, qword_ptr(rbx + vmcb::EXITCODE.offset as i32))?;
    k.print_hex()?;
    report::print_vector(k)?;
    k.print("\n")
}

/// VMRUN of the same VMCB again, from the start of another guest.
fn restart(k: &mut Kernel, entry: CodeLabel) -> Result<(), IcedError> {
    k.a.lea(rax, ptr(entry))?;
    k.a.mov(qword_ptr(at(vmcb::RIP)), rax)?;
    k.a.mov(qword_ptr(hypervisor::var::START), rax)
}

/// Prints a field of whatever size.
fn print_narrow(k: &mut Kernel, text: &str, field: Field) -> Result<(), IcedError> {
    k.print(text)?;
    match field.size {
        2 => k.a.movzx(eax, word_ptr(at(field)))?,
        4 => k.a.mov(eax, dword_ptr(at(field)))?,
        _ => k.a.mov(rax, qword_ptr(at(field)))?,
    }
    k.print_hex()
}
