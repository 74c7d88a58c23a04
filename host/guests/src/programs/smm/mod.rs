//! System-management mode: SMIs that the guest sends itself, a handler that looks at the state-save area, SMBASE that moves, and RSM.

pub mod handler;

use crate::{
    boot::layout,
    kernel::Kernel,
    parameters::{Kind, Parameter, Values},
    programs::smp,
};
use handler::{ICR_SMI, SMBASE, mailbox, task};
use iced_x86::{IcedError, code_asm::*};

const MOVED: u32 = 0x5_0000;
const NOWHERE: u32 = 0xf000_0000;
const NMI: u64 = 2;
const KEPT: u64 = 0x1122_3344_5566_7788;
/// How often it looks before it believes that an SMI does not come.
const PATIENCE: i32 = 100_000;

pub const PARAMETERS: &[Parameter] = &[Parameter::new(
    "end",
    Kind::Choice(&["well", "cr4", "nowhere"]),
    "well",
    "the last RSM: well, with a CR4 in the state-save area that no processor has, or with an SMBASE where no memory is, and one SMI more",
)];

pub fn program(k: &mut Kernel, values: &Values) -> Result<(), IcedError> {
    smp::mask_pics(k)?;
    smp::enable_apic(k)?;
    let nmi = k.a.create_label();
    gate(k, nmi)?;
    handler::place(k, SMBASE)?;
    handler::place(k, MOVED)?;
    k.a.mov(r12, KEPT)?;

    smi(k, 0, 1)?;
    k.print("smm: entered at 0x")?;
    say(k, mailbox::RUNS_AT)?;
    k.print(", state-save area of 0x")?;
    say(k, mailbox::REVISION)?;
    k.print(" with smbase 0x")?;
    say(k, mailbox::SMBASE)?;
    interrupted(k)?;

    k.a.mov(dword_ptr(mailbox::NEW_SMBASE), MOVED)?;
    smi(k, task::MOVE | task::CHANGE_RAX, 1)?;
    k.print("smm: rax after rsm 0x")?;
    k.print_hex()?;
    k.print("\n")?;
    smi(k, 0, 1)?;
    k.print("smm: moved to 0x")?;
    say(k, mailbox::RUNS_AT)?;
    k.print("\n")?;

    smi(k, task::SEND_NMI, 1)?;
    k.print("smm: nmis within 0x")?;
    say(k, mailbox::NMIS)?;
    k.print(", after 0x")?;
    say(k, mailbox::NMIS_TAKEN)?;
    k.print("\n")?;
    smi(k, task::SEND_SMI, 2)?;
    k.print("smm: one within another comes after it: 0x")?;
    say(k, mailbox::COUNT)?;
    k.print(" in all, registers ")?;
    k.a.mov(rax, KEPT)?;
    k.a.sub(rax, r12)?;
    k.print_hex()?;
    k.print("\n")?;

    if values.word("end") == Some("cr4") {
        smi(k, task::SPOIL_CR4, 1)?;
        k.print("smm: rsm took the cr4\n")?;
    }
    if values.word("end") == Some("nowhere") {
        k.a.mov(dword_ptr(mailbox::NEW_SMBASE), NOWHERE)?;
        smi(k, task::MOVE, 1)?;
        smi(k, 0, 1)?;
    }
    k.a.xor(eax, eax)?;
    k.exit()?;
    on_nmi(k, nmi)
}

/// Sends one and waits until the handler has run `times`. RAX is 0 unless the handler changes it. Clobbers RBX, RCX, RDX and R13.
fn smi(k: &mut Kernel, tasks: i32, times: i32) -> Result<(), IcedError> {
    let (mut again, mut done) = (k.a.create_label(), k.a.create_label());
    k.a.mov(dword_ptr(mailbox::TASKS), tasks)?;
    k.a.mov(edx, dword_ptr(mailbox::COUNT))?;
    k.a.add(edx, times)?;
    k.a.mov(ecx, PATIENCE)?;
    k.a.xor(eax, eax)?;
    k.a.lea(r13, ptr(again))?;
    handler::send(k, ICR_SMI)?;
    k.here(&mut again)?;
    k.a.cmp(dword_ptr(mailbox::COUNT), edx)?;
    k.a.je(done)?;
    k.a.dec(ecx)?;
    k.a.jnz(again)?;
    k.print("smm: no smi came\n")?;
    k.here(&mut done)
}

/// Whether the saved RIP is that of the code that waits.
fn interrupted(k: &mut Kernel) -> Result<(), IcedError> {
    let (mut elsewhere, mut done) = (k.a.create_label(), k.a.create_label());
    k.a.mov(eax, dword_ptr(mailbox::RIP))?;
    k.a.sub(rax, r13)?;
    k.a.cmp(rax, 0x20)?;
    k.a.ja(elsewhere)?;
    k.print(", where it was sent\n")?;
    k.a.jmp(done)?;
    k.here(&mut elsewhere)?;
    k.print(", elsewhere\n")?;
    k.here(&mut done)
}

fn say(k: &mut Kernel, variable: u64) -> Result<(), IcedError> {
    k.a.mov(eax, dword_ptr(variable))?;
    k.print_hex()
}

/// Clobbers RAX and RBX.
fn gate(k: &mut Kernel, handler: CodeLabel) -> Result<(), IcedError> {
    k.a.lea(rax, ptr(handler))?;
    k.a.mov(rbx, layout::IDT + NMI * 16)?;
    k.a.mov(word_ptr(rbx), ax)?;
    k.a.shr(rax, 16)?;
    k.a.mov(word_ptr(rbx + 6), ax)
}

fn on_nmi(k: &mut Kernel, mut handler: CodeLabel) -> Result<(), IcedError> {
    k.here(&mut handler)?;
    k.a.inc(dword_ptr(mailbox::NMIS_TAKEN))?;
    k.a.iretq()
}
