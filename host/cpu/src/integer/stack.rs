//! PUSH, POP, PUSHA, POPA, ENTER, LEAVE, and the stack accesses that other families use.

use crate::{
    core::Core,
    env::Interrupted,
    insn::{Handler, Insn, Kind},
    operand::Int,
};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use vmtape_arch::vcpu::{
    gpr::{RBP, RSP},
    seg,
};

type Done = Result<(), Interrupted>;

const SS: u8 = seg::SS as u8;

pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    let bytes = i.stack_pointer_increment().unsigned_abs();
    Some(match i.mnemonic() {
        Mnemonic::Push if general(i) => match (bytes, i.op0_kind()) {
            (2, _) => push::<u16>,
            (4, _) => push::<u32>,
            (_, OpKind::Register) => push_reg64,
            _ => push::<u64>,
        },
        Mnemonic::Pop if general(i) => match (bytes, i.op0_kind()) {
            (2, _) => pop::<u16>,
            (4, _) => pop::<u32>,
            (_, OpKind::Register) => pop_reg64,
            _ => pop::<u64>,
        },
        Mnemonic::Pusha => pusha::<u16>,
        Mnemonic::Pushad => pusha::<u32>,
        Mnemonic::Popa => popa::<u16>,
        Mnemonic::Popad => popa::<u32>,
        Mnemonic::Enter => match i.code() {
            Code::Enterw_imm16_imm8 => enter::<u16>,
            Code::Enterd_imm16_imm8 => enter::<u32>,
            _ => enter::<u64>,
        },
        Mnemonic::Leave => match i.code() {
            Code::Leavew => leave::<u16>,
            Code::Leaved => leave::<u32>,
            _ => leave::<u64>,
        },
        _ => return None,
    })
}

/// Not a segment register.
fn general(i: &Instruction) -> bool {
    i.op0_kind() != OpKind::Register || i.op0_register().is_gpr()
}

impl Core<'_> {
    /// Moves the stack pointer, in the stack's address size.
    #[inline(always)]
    pub fn set_rsp(&mut self, value: u64) {
        self.set_address(RSP, value, self.stack_mask);
    }

    /// Writes a register that holds an address, in an address size given by its mask.
    #[inline(always)]
    pub fn set_address(&mut self, register: usize, value: u64, mask: u64) {
        let slot = &mut self.state.gpr[register & 15];
        *slot = if mask == 0xffff { *slot & !mask | value & mask } else { value & mask };
    }

    /// Pushes a value.
    #[inline(always)]
    pub fn push<T: Int>(&mut self, value: T) -> Done {
        let top = self.state.gpr[RSP].wrapping_sub(T::BYTES);
        self.write(SS, top & self.stack_mask, value)?;
        self.set_rsp(top);
        Ok(())
    }

    /// Reads `depth` bytes below the top of the stack without moving the stack pointer.
    #[inline(always)]
    pub fn peek<T: Int>(&mut self, depth: u64) -> Result<T, Interrupted> {
        let at = self.state.gpr[RSP].wrapping_add(depth) & self.stack_mask;
        self.read(SS, at)
    }

    /// Pops a value.
    #[inline(always)]
    pub fn pop<T: Int>(&mut self) -> Result<T, Interrupted> {
        let value = self.peek(0)?;
        self.set_rsp(self.state.gpr[RSP].wrapping_add(T::BYTES));
        Ok(value)
    }
}

fn push<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let value = core.get::<T>(insn, 0)?;
    core.push(value)
}

fn push_reg64(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.push(u64::get(core, insn.regs[0]))
}

fn pop_reg64(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.pop::<u64>()?.set(core, insn.regs[0]);
    Ok(())
}

/// The address of a memory operand that uses RSP is computed after the increment.
fn pop<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let before = core.state.gpr[RSP];
    let value = core.pop::<T>()?;
    if insn.kinds[0] == Kind::Reg {
        value.set(core, insn.regs[0]);
        return Ok(());
    }
    core.write(insn.seg, insn.address(core), value).inspect_err(|_| core.state.gpr[RSP] = before)
}

fn pusha<T: Int>(core: &mut Core<'_>, _: &Insn) -> Done {
    let before = core.state.gpr[RSP];
    for register in 0..8 {
        let value = if usize::from(register) == RSP { T::from_u64(before) } else { T::get(core, register) };
        core.push(value).inspect_err(|_| core.state.gpr[RSP] = before)?;
    }
    Ok(())
}

fn popa<T: Int>(core: &mut Core<'_>, _: &Insn) -> Done {
    let mut values = [T::from_u64(0); 8];
    for (depth, value) in values.iter_mut().enumerate() {
        *value = core.peek(depth as u64 * T::BYTES)?;
    }
    for (register, value) in values.iter().rev().enumerate() {
        if register != RSP {
            value.set(core, register as u8);
        }
    }
    core.set_rsp(core.state.gpr[RSP].wrapping_add(8 * T::BYTES));
    Ok(())
}

// See: SDM vol. 2A ENTER
fn enter<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let before = core.state.gpr;
    frame::<T>(core, insn.imm & 0xffff, u64::from(insn.imm2 % 32)).inspect_err(|_| core.state.gpr = before)
}

fn frame<T: Int>(core: &mut Core<'_>, size: u64, level: u64) -> Done {
    core.push(T::get(core, RBP as u8))?;
    let frame = core.state.gpr[RSP];
    for outer in 1..level {
        let at = core.state.gpr[RBP].wrapping_sub(outer * T::BYTES) & core.stack_mask;
        let value = core.read::<T>(SS, at)?;
        core.push(value)?;
    }
    if level > 0 {
        core.push(T::from_u64(frame))?;
    }
    let top = core.state.gpr[RSP].wrapping_sub(size) & core.stack_mask;
    // A write at the new top must be possible.
    core.probe_write(SS, top, T::BYTES)?;
    core.set_rsp(top);
    T::from_u64(frame).set(core, RBP as u8);
    Ok(())
}

fn leave<T: Int>(core: &mut Core<'_>, _: &Insn) -> Done {
    let frame = core.state.gpr[RBP];
    let value = core.read::<T>(SS, frame & core.stack_mask)?;
    core.set_rsp(frame.wrapping_add(T::BYTES));
    value.set(core, RBP as u8);
    Ok(())
}
