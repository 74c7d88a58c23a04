//! Memory operands: the linear address, and the table of pages.

use super::code::{Code, SlowPath};
use crate::{
    frame::{FS_BASE, GS_BASE, Home, RAM, RAM_LAST, READ_EPOCH, TLB, WRITE_EPOCH, home, host},
    interface::{TLB_ENTRIES, TlbEntry, Use},
};
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Instruction, Register};
use std::mem::offset_of;

const PAGE_SHIFT: u32 = 12;
const ENTRY_SHIFT: u32 = size_of::<TlbEntry>().trailing_zeros();
/// An entry's offset, which is cut out of the address shifted right.
const INDEX_SHIFT: i8 = (PAGE_SHIFT - ENTRY_SHIFT) as i8;
const INDEX_MASK: i32 = ((TLB_ENTRIES - 1) << ENTRY_SHIFT) as i32;
const READ: i8 = offset_of!(TlbEntry, read) as i8;
const WRITE: i8 = offset_of!(TlbEntry, write) as i8;
const ADDEND: i8 = offset_of!(TlbEntry, addend) as i8;

const _: () = assert!(size_of::<TlbEntry>().is_power_of_two() && TLB_ENTRIES.is_power_of_two());

/// Whether the memory operand has a 64-bit address out of general registers or RIP, in a flat segment, FS or GS.
pub(super) fn is_plain(i: &Instruction) -> bool {
    let (base, index) = (i.memory_base(), i.memory_index());
    let wide = |register: Register| register == Register::None || register.is_gpr64();
    let displacement_only = base == Register::None && index == Register::None;
    (wide(base) || base == Register::RIP) && wide(index) && (!displacement_only || i.memory_displ_size() == 8)
}

impl Code {
    /// R14 becomes the linear address of the memory operand. Destroys R15 and flags.
    pub(super) fn address(&mut self, i: &Instruction) {
        let displacement = i.memory_displacement64();
        if i.memory_base() == Register::RIP {
            self.constant(host::ADDRESS, displacement);
        } else {
            self.sum(i, displacement as i32);
        }
        match i.memory_segment() {
            Register::FS => dynasm!(self.ops ; .arch x64 ; add r14, [BYTE rbp + FS_BASE]),
            Register::GS => dynasm!(self.ops ; .arch x64 ; add r14, [BYTE rbp + GS_BASE]),
            _ => {}
        }
    }

    /// R14 becomes base, index and displacement, which is 32 bits wide, extended.
    fn sum(&mut self, i: &Instruction, displacement: i32) {
        let number = |register: Register| (register != Register::None).then(|| register.number() as u8);
        let base = number(i.memory_base()).map(|base| self.load(base, host::ADDRESS));
        let index = number(i.memory_index()).map(|index| self.load(index, host::SCRATCH));
        let ops = &mut self.ops;
        match (base, index, i.memory_index_scale()) {
            (None, None, _) => self.constant(host::ADDRESS, displacement as u64),
            (Some(base), None, _) if displacement == 0 => dynasm!(ops ; .arch x64 ; mov r14, Rq(base)),
            (Some(base), None, _) => dynasm!(ops ; .arch x64 ; lea r14, [Rq(base) + displacement]),
            (Some(base), Some(index), 1) => {
                dynasm!(ops ; .arch x64 ; lea r14, [Rq(base) + Rq(index) + displacement]);
            }
            (Some(base), Some(index), 2) => {
                dynasm!(ops ; .arch x64 ; lea r14, [Rq(base) + Rq(index) * 2 + displacement]);
            }
            (Some(base), Some(index), 4) => {
                dynasm!(ops ; .arch x64 ; lea r14, [Rq(base) + Rq(index) * 4 + displacement]);
            }
            (Some(base), Some(index), _) => {
                dynasm!(ops ; .arch x64 ; lea r14, [Rq(base) + Rq(index) * 8 + displacement]);
            }
            (None, Some(index), 1) => dynasm!(ops ; .arch x64 ; lea r14, [Rq(index) + displacement]),
            (None, Some(index), 2) => {
                dynasm!(ops ; .arch x64 ; lea r14, [NOSPLIT Rq(index) * 2 + displacement]);
            }
            (None, Some(index), 4) => dynasm!(ops ; .arch x64 ; lea r14, [Rq(index) * 4 + displacement]),
            (None, Some(index), _) => dynasm!(ops ; .arch x64 ; lea r14, [Rq(index) * 8 + displacement]),
        }
    }

    /// From the linear address of `size` bytes in R14 to the host's own, if the table allows the access. Destroys RAX, R15 and
    /// flags.
    pub(super) fn translate_address(&mut self, size: u8, to: Use) -> SlowPath {
        let slow = self.slow_path();
        let miss = self.miss(size, to, true);
        self.translate_to(&slow, miss, size, to != Use::Read);
        slow
    }

    /// As [`Code::translate_address`], to be followed by [`Code::count_after`] if it writes, with another's way to the interpreter and where
    /// it is left without its page.
    pub(super) fn translate_to(&mut self, slow: &SlowPath, miss: DynamicLabel, size: u8, writes: bool) {
        if writes {
            self.count_within_words(slow, size);
        }
        let label = slow.label;
        let (tag, epoch) = if writes { (WRITE, WRITE_EPOCH) } else { (READ, READ_EPOCH) };
        let last = size as i8 - 1;
        dynasm!(self.ops
            ; .arch x64
            ; mov r15d, r14d
            ; shr r15d, BYTE INDEX_SHIFT
            ; and r15d, INDEX_MASK
            ; add r15, [BYTE rbp + TLB]
            ; lea rax, [BYTE r14 + last]
            ; and rax, -(1i32 << PAGE_SHIFT)
            ; or rax, [BYTE rbp + epoch]
            ; cmp rax, [BYTE r15 + tag]
            ; jne =>miss
            ; add r14, [BYTE r15 + ADDEND]
            ; cmp r14, [BYTE rbp + RAM_LAST]
            ; ja =>label
            ; add r14, [BYTE rbp + RAM]
        );
        if writes {
            self.count_before(size);
        }
    }

    /// The host register that has a guest register's value, or R15 with a copy of it.
    pub(super) fn value(&mut self, register: u8) -> u8 {
        match home(register) {
            Home::Host(host) => host,
            Home::Frame(_) => self.load(register, host::SCRATCH),
        }
    }
}
