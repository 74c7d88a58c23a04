//! A handler of SMIs, and the mailbox by which it hears what to do and says what it has found.

use crate::{
    apic::{ICR_HIGH, ICR_LOW},
    kernel::{Kernel, vars},
    programs::nested::vmcb,
};
use iced_x86::{IcedError, code_asm::*};

/// SMBASE after reset.
pub const SMBASE: u32 = 0x3_0000;
/// The handler begins here, from SMBASE.
const ENTRY: u32 = 0x8000;
/// Fields of the state-save area, from SMBASE. See: APM vol. 2 10.2.3 SMRAM State-Save Area
pub mod area {
    pub const SVM_GUEST: i32 = 0xfed8;
    pub const SVM_GUEST_VMCB: i32 = 0xfee0;
    pub const REVISION: i32 = 0xfefc;
    pub const SMBASE: i32 = 0xff00;
    pub const CR4: i32 = 0xff48;
    pub const RIP: i32 = 0xff78;
    pub const RAX: i32 = 0xfff8;
}

/// Variables, all of 32 bits and eight bytes apart.
pub mod mailbox {
    use super::vars;
    const BASE: u64 = vars::PROGRAM + 0x300;
    /// SMIs so far.
    pub const COUNT: u64 = BASE;
    /// What the handler found in the state-save area.
    pub const RIP: u64 = BASE + 0x08;
    pub const SMBASE: u64 = BASE + 0x10;
    pub const REVISION: u64 = BASE + 0x18;
    pub const SVM_GUEST: u64 = BASE + 0x20;
    pub const SVM_GUEST_VMCB: u64 = BASE + 0x28;
    /// Its own SMBASE, by CS.
    pub const RUNS_AT: u64 = BASE + 0x30;
    /// NMIs that had come when the handler left.
    pub const NMIS: u64 = BASE + 0x38;
    /// What to do once: bits of [`super::task`].
    pub const TASKS: u64 = BASE + 0x40;
    /// Where SMBASE is to move.
    pub const NEW_SMBASE: u64 = BASE + 0x48;
    /// NMIs so far.
    pub const NMIS_TAKEN: u64 = BASE + 0x50;
}

/// What the handler can be asked for.
pub mod task {
    pub const MOVE: i32 = 1;
    /// RAX is another one after RSM.
    pub const CHANGE_RAX: i32 = 2;
    pub const SEND_NMI: i32 = 4;
    pub const SEND_SMI: i32 = 8;
    /// RSM fails at CR4.
    pub const SPOIL_CR4: i32 = 0x10;
    /// RSM into L2 finds no VMCB.
    pub const SPOIL_VMCB: i32 = 0x20;
    /// ... finds one with an ASID of zero.
    pub const CLEAR_ASID: i32 = 0x40;
}

const CHANGED_RAX: u32 = 0x5a5a;
const NOWHERE: i32 = 0x7fff_f000;
// Asserted, to a physical destination. See: APM vol. 2 16.5 Interprocessor Interrupts
pub const ICR_SMI: i32 = 0x4200;
pub const ICR_NMI: i32 = 0x4400;

/// Puts the handler where it runs with this SMBASE. Clobbers RAX.
pub fn place(k: &mut Kernel, smbase: u32) -> Result<(), IcedError> {
    let code = code()?;
    for (i, chunk) in (0..).zip(code.chunks(8)) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        k.a.mov(rax, u64::from_le_bytes(word))?;
        k.a.mov(qword_ptr(u64::from(smbase + ENTRY) + 8 * i), rax)?;
    }
    Ok(())
}

/// Sends a signal to local APIC 0. Clobbers RBX.
pub fn send(k: &mut Kernel, icr: i32) -> Result<(), IcedError> {
    k.a.mov(ebx, ICR_HIGH)?;
    k.a.mov(dword_ptr(rbx), 0)?;
    k.a.mov(ebx, ICR_LOW)?;
    k.a.mov(dword_ptr(rbx), icr)
}

/// In EBX SMBASE, in EDI the mailbox, in ECX the tasks.
fn code() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let slot = |variable: u64| dword_ptr(edi + (variable - mailbox::COUNT) as i32);
    a.mov(edi, mailbox::COUNT as u32)?;
    a.mov(ebx, cs)?;
    a.shl(ebx, 4)?;
    a.mov(slot(mailbox::RUNS_AT), ebx)?;
    for (variable, field) in [
        (mailbox::RIP, area::RIP),
        (mailbox::SMBASE, area::SMBASE),
        (mailbox::REVISION, area::REVISION),
        (mailbox::SVM_GUEST, area::SVM_GUEST),
        (mailbox::SVM_GUEST_VMCB, area::SVM_GUEST_VMCB),
    ] {
        a.mov(eax, dword_ptr(ebx + field))?;
        a.mov(slot(variable), eax)?;
    }
    a.mov(ecx, slot(mailbox::TASKS))?;
    a.mov(slot(mailbox::TASKS), 0)?;
    when(&mut a, task::MOVE, |a| {
        a.mov(eax, slot(mailbox::NEW_SMBASE))?;
        a.mov(dword_ptr(ebx + area::SMBASE), eax)
    })?;
    when(&mut a, task::CHANGE_RAX, |a| a.mov(dword_ptr(ebx + area::RAX), CHANGED_RAX))?;
    for (bit, icr) in [(task::SEND_NMI, ICR_NMI), (task::SEND_SMI, ICR_SMI)] {
        when(&mut a, bit, |a| {
            a.mov(esi, ICR_HIGH)?;
            a.mov(dword_ptr(esi), 0)?;
            a.mov(esi, ICR_LOW)?;
            a.mov(dword_ptr(esi), icr)
        })?;
    }
    when(&mut a, task::SPOIL_CR4, |a| a.mov(dword_ptr(ebx + area::CR4), -1))?;
    when(&mut a, task::SPOIL_VMCB, |a| a.mov(dword_ptr(ebx + area::SVM_GUEST_VMCB), NOWHERE))?;
    when(&mut a, task::CLEAR_ASID, |a| {
        a.mov(esi, slot(mailbox::SVM_GUEST_VMCB))?;
        a.mov(dword_ptr(esi + vmcb::GUEST_ASID.offset as i32), 0)
    })?;
    a.mov(eax, slot(mailbox::NMIS_TAKEN))?;
    a.mov(slot(mailbox::NMIS), eax)?;
    a.inc(slot(mailbox::COUNT))?;
    a.rsm()?;
    a.assemble(ENTRY.into())
}

fn when(
    a: &mut CodeAssembler,
    bit: i32,
    act: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut skip = a.create_label();
    a.test(ecx, bit)?;
    a.jz(skip)?;
    act(a)?;
    a.set_label(&mut skip)?;
    a.zero_bytes()
}
