//! The smallest hypervisor: SVM turned on, one VMCB, a world switch, and an exit in words.

use super::{
    tables,
    vmcb::{self, Field, exit},
};
use crate::{
    boot::{layout as boot, selector},
    kernel::{Kernel, VECTORS},
};
use iced_x86::{IcedError, code_asm::*};

pub use super::layout;

/// Variables.
pub mod var {
    use crate::kernel::vars::PROGRAM;
    /// The guest's guest's registers of [`super::GPRS`], where the VMCB has none.
    pub const REGISTERS: u64 = PROGRAM + 0x200;
    /// Where the guest's guest began, for a RIP that is printed.
    pub const START: u64 = PROGRAM + 0x280;
    /// Not zero: the hypervisor takes interrupts while its guest runs.
    pub const TAKES_INTERRUPTS: u64 = PROGRAM + 0x288;
}

const GPRS: [AsmRegister64; 14] = [rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15];

const EFER: u32 = 0xc000_0080;
const PAT: u32 = 0x277;
const VM_HSAVE_PA: u32 = 0xc001_0117;
const EFER_SVME: u32 = 12;
/// What kvm-unit-tests' guests leave with where they cannot run (77 as QEMU's exit status).
const SKIPPED: u32 = 38;

/// The routines of an L1 guest.
pub struct Hypervisor {
    reset: CodeLabel,
    run: CodeLabel,
    nested_paging: bool,
}

impl Hypervisor {
    /// Turns SVM on and builds the nested page tables; without SVM, or without nested paging where it is asked for, the
    /// guest says so and leaves.
    pub fn start(k: &mut Kernel, nested_paging: bool) -> Result<Self, IcedError> {
        require(k, 0x8000_0001, ecx, 2, "SVM")?;
        k.a.mov(ecx, EFER)?;
        k.a.rdmsr()?;
        k.a.bts(eax, EFER_SVME)?;
        k.a.wrmsr()?;
        if nested_paging {
            require(k, 0x8000_000a, edx, 0, "nested paging")?;
            tables::identity(k)?;
        }
        write_msr(k, VM_HSAVE_PA, layout::HOST_SAVE)?;
        let mut hypervisor = Self { reset: k.a.create_label(), run: k.a.create_label(), nested_paging };
        let mut over = k.a.create_label();
        k.a.jmp(over)?;
        hypervisor.emit_reset(k)?;
        hypervisor.emit_run(k)?;
        k.here(&mut over)?;
        Ok(hypervisor)
    }

    /// Makes the VMCB that of a guest in the hypervisor's own mode and tables, which exits at VMRUN, VMMCALL and SHUTDOWN
    /// only and begins at `entry`. Clobbers RAX, RCX, RDX and RDI.
    pub fn reset(&self, k: &mut Kernel, entry: CodeLabel) -> Result<(), IcedError> {
        k.a.call(self.reset)?;
        k.a.lea(rax, ptr(entry))?;
        k.a.mov(qword_ptr(at(vmcb::RIP)), rax)?;
        k.a.mov(qword_ptr(var::START), rax)
    }

    /// Runs the guest's guest up to its next #VMEXIT. Keeps all registers but RAX.
    pub fn run(&self, k: &mut Kernel) -> Result<(), IcedError> {
        k.a.call(self.run)
    }

    fn emit_reset(&mut self, k: &mut Kernel) -> Result<(), IcedError> {
        k.a.set_label(&mut self.reset)?;
        k.a.mov(edi, layout::VMCB as u32)?;
        k.a.mov(ecx, 0x1000 / 8)?;
        k.a.xor(eax, eax)?;
        k.a.rep().stosq()?;
        k.a.mov(eax, layout::VMCB as u32)?;
        k.a.vmsave()?;
        for code in [exit::VMRUN, exit::VMMCALL, exit::SHUTDOWN] {
            intercept(k, code)?;
        }
        set(k, vmcb::IOPM_BASE_PA, layout::IOPM)?;
        set(k, vmcb::MSRPM_BASE_PA, layout::MSRPM)?;
        set(k, vmcb::GUEST_ASID, 1)?;
        // Every address space of the processor; the tables change between two runs.
        set(k, vmcb::TLB_CONTROL, 1)?;
        if self.nested_paging {
            set(k, vmcb::NP_ENABLE, 1)?;
            set(k, vmcb::N_CR3, layout::NPML4)?;
        }
        // Attributes: P, DPL 0, S, type; in bits 11:8 G, DB, L. See: APM vol. 2 15.5.1 Basic Operation
        segment(k, vmcb::CS, selector::CODE64, 0xa9b)?;
        for register in [vmcb::ES, vmcb::SS, vmcb::DS] {
            segment(k, register, selector::DATA, 0xc93)?;
        }
        table(k, vmcb::GDTR, boot::GDT, 0x3f)?;
        table(k, vmcb::IDTR, boot::IDT, VECTORS as u64 * 16 - 1)?;
        set(k, vmcb::CR3, boot::PML4)?;
        for (register, field) in [(cr0, vmcb::CR0), (cr4, vmcb::CR4)] {
            k.a.mov(rax, register)?;
            k.a.mov(qword_ptr(at(field)), rax)?;
        }
        for (msr, field) in [(EFER, vmcb::EFER), (PAT, vmcb::G_PAT)] {
            k.a.mov(ecx, msr)?;
            k.a.rdmsr()?;
            k.a.mov(dword_ptr(at(field)), eax)?;
            k.a.mov(dword_ptr(at(field) + 4), edx)?;
        }
        set(k, vmcb::DR6, 0xffff_0ff0)?;
        set(k, vmcb::DR7, 0x400)?;
        set(k, vmcb::RFLAGS, 2)?;
        set(k, vmcb::RSP, layout::STACK_TOP)?;
        k.a.ret()
    }

    fn emit_run(&mut self, k: &mut Kernel) -> Result<(), IcedError> {
        let mut masked = k.a.create_label();
        k.a.set_label(&mut self.run)?;
        for register in GPRS {
            k.a.push(register)?;
        }
        for (register, slot) in registers() {
            k.a.mov(register, qword_ptr(slot))?;
        }
        // VMRUN sets the global interrupt flag: with RFLAGS.IF set under GIF 0, whatever is pending comes then.
        k.a.clgi()?;
        k.a.cmp(dword_ptr(var::TAKES_INTERRUPTS), 0)?;
        k.a.je(masked)?;
        k.a.sti()?;
        k.here(&mut masked)?;
        k.a.mov(eax, layout::VMCB as u32)?;
        k.a.vmrun()?;
        k.a.cli()?;
        for (register, slot) in registers() {
            k.a.mov(qword_ptr(slot), register)?;
        }
        for register in GPRS.into_iter().rev() {
            k.a.pop(register)?;
        }
        k.a.stgi()?;
        k.a.ret()
    }
}

/// The registers that VMRUN leaves alone, and where they are kept.
fn registers() -> impl Iterator<Item = (AsmRegister64, u64)> {
    GPRS.into_iter().zip((0..).map(|i| var::REGISTERS + 8 * i))
}

/// Where a register of the guest's guest is kept. RAX and RSP stand in the VMCB.
pub fn register(wanted: AsmRegister64) -> u64 {
    let found = registers().find(|(register, _)| *register == wanted);
    found.expect("RAX and RSP stand in the VMCB").1
}

/// The address of a field of the VMCB.
pub const fn at(field: Field) -> u64 {
    layout::VMCB + field.offset
}

/// Writes a field. Clobbers RAX where a value has more than 31 bits.
pub fn set(k: &mut Kernel, field: Field, value: u64) -> Result<(), IcedError> {
    let address = at(field);
    match (field.size, i32::try_from(value)) {
        (1, _) => k.a.mov(byte_ptr(address), value as i32),
        (2, _) => k.a.mov(word_ptr(address), value as i32),
        (4, _) => k.a.mov(dword_ptr(address), value as u32),
        (_, Ok(value)) => k.a.mov(qword_ptr(address), value),
        (_, Err(_)) => {
            k.a.mov(rax, value)?;
            k.a.mov(qword_ptr(address), rax)
        }
    }
}

/// Adds an intercept.
pub fn intercept(k: &mut Kernel, code: u32) -> Result<(), IcedError> {
    let (word, bit) = vmcb::intercept(code);
    k.a.or(dword_ptr(at(word)), bit)
}

fn segment(k: &mut Kernel, register: u64, selector: u16, attributes: u64) -> Result<(), IcedError> {
    let field = |offset, size| Field { offset: register + offset, size };
    set(k, field(0, 2), selector.into())?;
    set(k, field(2, 2), attributes)?;
    set(k, field(4, 4), u32::MAX.into())
}

fn table(k: &mut Kernel, register: u64, base: u64, limit: u64) -> Result<(), IcedError> {
    set(k, Field { offset: register + 4, size: 4 }, limit)?;
    set(k, Field { offset: register + 8, size: 8 }, base)
}

/// Clobbers RAX, RCX and RDX.
pub fn write_msr(k: &mut Kernel, msr: u32, value: u64) -> Result<(), IcedError> {
    k.a.mov(ecx, msr)?;
    k.a.mov(eax, value as u32)?;
    k.a.mov(edx, (value >> 32) as u32)?;
    k.a.wrmsr()
}

/// Leaves an MSR in RAX. Clobbers RCX and RDX.
pub fn read_msr(k: &mut Kernel, msr: u32) -> Result<(), IcedError> {
    k.a.mov(ecx, msr)?;
    k.a.rdmsr()?;
    k.a.shl(rdx, 32)?;
    k.a.or(rax, rdx)
}

/// Leaves where a feature bit of CPUID is clear, or its leaf missing. Clobbers RAX to RDX.
fn require(
    k: &mut Kernel,
    leaf: u32,
    register: AsmRegister32,
    bit: u32,
    name: &str,
) -> Result<(), IcedError> {
    let (mut absent, mut present) = (k.a.create_label(), k.a.create_label());
    k.a.mov(eax, 0x8000_0000u32)?;
    k.a.cpuid()?;
    k.a.cmp(eax, leaf as i32)?;
    k.a.jb(absent)?;
    k.a.mov(eax, leaf)?;
    k.a.cpuid()?;
    k.a.bt(register, bit)?;
    k.a.jc(present)?;
    k.here(&mut absent)?;
    k.print(&format!("no {name}: nothing to run\nSUMMARY: 0 tests, 1 skipped\n"))?;
    k.a.mov(eax, SKIPPED)?;
    k.exit()?;
    k.here(&mut present)
}

/// Emits code that only the guest's guest runs: it ends with VMMCALL. The label is its first instruction.
pub fn guest(
    k: &mut Kernel,
    body: impl FnOnce(&mut Kernel) -> Result<(), IcedError>,
) -> Result<CodeLabel, IcedError> {
    let (mut entry, mut over) = (k.a.create_label(), k.a.create_label());
    k.a.jmp(over)?;
    k.here(&mut entry)?;
    body(k)?;
    k.a.vmmcall()?;
    k.here(&mut over)?;
    Ok(entry)
}
