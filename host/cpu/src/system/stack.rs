//! Stacks of far transfers and event delivery: pushed to and popped from first, switched to at the end.

use crate::{core::Core, env::Interrupted, mem::Privilege, operand::Int};
use vmtape_arch::{
    descriptor::{Selector, SelectorError},
    exception::Vector,
    vcpu::{Segment, gpr, seg},
};

/// A stack that is being pushed to or popped from. Nothing of it is in the registers yet.
#[derive(Clone, Copy)]
pub(super) struct Stack {
    pub(super) ss: Segment,
    pub(super) sp: u64,
    /// All ones of the stack address size.
    mask: u64,
    how: Privilege,
    /// What #SS names: the selector of a stack that was switched to.
    error: SelectorError,
}

const MASK16: u64 = 0xffff;
const MASK32: u64 = 0xffff_ffff;

fn legacy_mask(ss: &Segment) -> u64 {
    if ss.attr.db() { MASK32 } else { MASK16 }
}

impl Stack {
    /// The stack to which a return to an outer level goes.
    pub(super) fn outer(sp: u64, ss: Segment, is_64bit: bool) -> Self {
        let mask = if is_64bit { u64::MAX } else { legacy_mask(&ss) };
        Self { ss, sp: sp & mask, mask, how: Privilege::Current, error: SelectorError::new() }
    }

    /// A stack of 64-bit code.
    pub(super) fn long(rsp: u64, ss: Segment, how: Privilege) -> Self {
        Self { ss, sp: rsp, mask: u64::MAX, how, error: SelectorError::new() }
    }

    /// An inner level's stack out of a TSS of protected mode.
    pub(super) fn legacy(sp: u64, ss: Segment, how: Privilege) -> Self {
        let mask = legacy_mask(&ss);
        Self { ss, sp: sp & mask, mask, how, error: Selector::from_bits(ss.selector).error() }
    }

    /// Leaves out bytes above what is pushed next.
    pub(super) fn reserve(&mut self, bytes: u64) {
        self.sp = self.sp.wrapping_sub(bytes) & self.mask;
    }

    /// Releases bytes.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.sp = self.sp.wrapping_add(bytes) & self.mask;
    }
}

impl Core<'_> {
    /// The processor's own read, of a table.
    pub(super) fn system_read<T: Int>(&mut self, gva: u64) -> Result<T, Interrupted> {
        self.read_linear(gva & self.table_mask(), Privilege::Implicit)
    }

    /// The processor's own write, to a table.
    pub(super) fn system_write<T: Int>(&mut self, gva: u64, value: T) -> Result<(), Interrupted> {
        self.write_linear(gva & self.table_mask(), value, Privilege::Implicit)
    }

    /// Table addresses have 64 bits in IA-32e mode, compatibility mode included.
    fn table_mask(&self) -> u64 {
        if self.state.efer().lma() { u64::MAX } else { MASK32 }
    }

    /// Stack accesses during a change to an inner level belong to that level.
    pub(super) fn inner_privilege(&self) -> Privilege {
        if self.cpl() == 3 { Privilege::Implicit } else { Privilege::Current }
    }

    /// The current stack.
    pub(super) fn stack(&self) -> Stack {
        let ss = self.state.seg[seg::SS];
        let mask = if self.state.is_64bit_code() { u64::MAX } else { legacy_mask(&ss) };
        let sp = self.state.gpr[gpr::RSP] & mask;
        Stack { ss, sp, mask, how: Privilege::Current, error: SelectorError::new() }
    }

    /// Makes a stack the current one.
    pub(super) fn switch_to(&mut self, stack: Stack) {
        let rsp = &mut self.state.gpr[gpr::RSP];
        // A 16-bit stack leaves the rest of ESP alone; a 32-bit one clears the rest of RSP.
        *rsp = if stack.mask == MASK16 { *rsp & !MASK16 | stack.sp } else { stack.sp };
        self.state.seg[seg::SS] = stack.ss;
    }

    /// The linear address of an item on a stack, with the checks of its segment.
    fn stack_linear(&self, stack: &Stack, sp: u64, size: u8) -> Result<u64, Interrupted> {
        let violation = || Err(self.selector_fault(Vector::SS, stack.error));
        let last = sp.wrapping_add(size as u64 - 1);
        if stack.mask == u64::MAX {
            let fine = self.is_canonical(sp) && self.is_canonical(last);
            return if fine { Ok(sp) } else { violation() };
        }
        let limit = stack.ss.limit as u64;
        let inside = if stack.ss.seg_type().is_expand_down() && self.state.cr0().pe() {
            sp > limit && last <= stack.mask
        } else {
            last <= limit
        };
        if inside { Ok(stack.ss.base.wrapping_add(sp) & MASK32) } else { violation() }
    }

    /// Pushes the low `size` bytes of a value.
    pub(super) fn stack_push(&mut self, stack: &mut Stack, size: u8, value: u64) -> Result<(), Interrupted> {
        let sp = stack.sp.wrapping_sub(size as u64) & stack.mask;
        let gva = self.stack_linear(stack, sp, size)?;
        match size {
            2 => self.write_linear(gva, value as u16, stack.how)?,
            4 => self.write_linear(gva, value as u32, stack.how)?,
            _ => self.write_linear(gva, value, stack.how)?,
        }
        stack.sp = sp;
        Ok(())
    }

    /// Pops `size` bytes.
    pub(super) fn stack_pop(&mut self, stack: &mut Stack, size: u8) -> Result<u64, Interrupted> {
        let value = self.stack_peek(stack, size, 0)?;
        stack.advance(size as u64);
        Ok(value)
    }

    /// Reads `size` bytes that lie `offset` above the top of a stack.
    pub(super) fn stack_peek(&mut self, stack: &Stack, size: u8, offset: u64) -> Result<u64, Interrupted> {
        let sp = stack.sp.wrapping_add(offset) & stack.mask;
        let gva = self.stack_linear(stack, sp, size)?;
        Ok(match size {
            2 => self.read_linear::<u16>(gva, stack.how)? as u64,
            4 => self.read_linear::<u32>(gva, stack.how)? as u64,
            _ => self.read_linear::<u64>(gva, stack.how)?,
        })
    }

    /// Reads `size` bytes of a memory operand.
    pub(super) fn read_sized(&mut self, segment: u8, offset: u64, size: u8) -> Result<u64, Interrupted> {
        Ok(match size {
            1 => self.read::<u8>(segment, offset)? as u64,
            2 => self.read::<u16>(segment, offset)? as u64,
            4 => self.read::<u32>(segment, offset)? as u64,
            _ => self.read::<u64>(segment, offset)?,
        })
    }
}
