//! MOV, MOVZX, MOVSX, MOVSXD, LEA, CMOVcc, SETcc, XCHG, BSWAP, MOVBE, and the conversions CBW to CQO.

use crate::{
    core::Core,
    env::Interrupted,
    flags,
    insn::{Handler, Insn},
    integer::{condition_number, conditional, operand_size, sized},
    operand::Int,
};
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind};
use vmtape_arch::vcpu::gpr::{RAX, RDX};

type Done = Result<(), Interrupted>;

pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    let size = operand_size(i, 0);
    let source = if i.op_count() > 1 { operand_size(i, 1) } else { 0 };
    Some(match i.mnemonic() {
        Mnemonic::Mov if plain(i) => sized!(size, T => mov::<T>(i)),
        Mnemonic::Movzx => sized!(size, T => movzx::<T>(i)),
        Mnemonic::Movsx | Mnemonic::Movsxd => sized!(size, T => movsx::<T>(source)),
        Mnemonic::Lea => sized!(size, T => lea::<T>),
        Mnemonic::Xchg => sized!(size, T => xchg::<T>),
        Mnemonic::Bswap => bswap(size),
        Mnemonic::Movbe => sized!(size, T => movbe::<T>),
        Mnemonic::Cbw => cbw,
        Mnemonic::Cwde => cwde,
        Mnemonic::Cdqe => cdqe,
        Mnemonic::Cwd => spread::<u16>,
        Mnemonic::Cdq => spread::<u32>,
        Mnemonic::Cqo => spread::<u64>,
        _ => return conditional_move(i, size),
    })
}

/// Not a move to or from a segment, control or debug register.
fn plain(i: &Instruction) -> bool {
    (0..2).all(|n| i.op_kind(n) != OpKind::Register || i.op_register(n).is_gpr())
}

fn mov<T: Int>(i: &Instruction) -> Handler {
    match (i.op0_kind(), i.op1_kind()) {
        (OpKind::Register, OpKind::Register) => mov_reg_reg::<T>,
        (OpKind::Register, OpKind::Memory) => mov_reg_mem::<T>,
        (OpKind::Memory, OpKind::Register) => mov_mem_reg::<T>,
        (OpKind::Register, _) => mov_reg_imm::<T>,
        _ => mov_mem_imm::<T>,
    }
}

fn mov_reg_reg<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    T::get(core, insn.regs[1]).set(core, insn.regs[0]);
    Ok(())
}

fn mov_reg_imm<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    T::from_u64(insn.imm).set(core, insn.regs[0]);
    Ok(())
}

fn mov_reg_mem<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.read::<T>(insn.seg, insn.address(core))?.set(core, insn.regs[0]);
    Ok(())
}

fn mov_mem_reg<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.write(insn.seg, insn.address(core), T::get(core, insn.regs[1]))
}

fn mov_mem_imm<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.write(insn.seg, insn.address(core), T::from_u64(insn.imm))
}

fn movzx<T: Int>(i: &Instruction) -> Handler {
    match (operand_size(i, 1), i.op1_kind()) {
        (1, OpKind::Register) => movzx_reg::<T, u8>,
        (1, _) => movzx_mem::<T, u8>,
        (_, OpKind::Register) => movzx_reg::<T, u16>,
        _ => movzx_mem::<T, u16>,
    }
}

fn movzx_reg<T: Int, S: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    T::from_u64(S::get(core, insn.regs[1]).to_u64()).set(core, insn.regs[0]);
    Ok(())
}

fn movzx_mem<T: Int, S: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let value = core.read::<S>(insn.seg, insn.address(core))?;
    T::from_u64(value.to_u64()).set(core, insn.regs[0]);
    Ok(())
}

fn movsx<T: Int>(source: usize) -> Handler {
    match source {
        1 => movsx_from::<T, u8>,
        2 => movsx_from::<T, u16>,
        _ => movsx_from::<T, u32>,
    }
}

fn movsx_from<T: Int, S: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let value = core.get::<S>(insn, 1)?;
    T::from_u64(value.to_i64() as u64).set(core, insn.regs[0]);
    Ok(())
}

fn lea<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    T::from_u64(insn.address(core)).set(core, insn.regs[0]);
    Ok(())
}

fn xchg<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let value = T::get(core, insn.regs[1]);
    let old = core.modify(insn, 0, |old: T| (value, old))?;
    old.set(core, insn.regs[1]);
    Ok(())
}

fn bswap(size: usize) -> Handler {
    match size {
        // Undefined by the manuals; processors clear the register.
        2 => |core, insn| {
            0u16.set(core, insn.regs[0]);
            Ok(())
        },
        4 => |core, insn| {
            u32::get(core, insn.regs[0]).swap_bytes().set(core, insn.regs[0]);
            Ok(())
        },
        _ => |core, insn| {
            u64::get(core, insn.regs[0]).swap_bytes().set(core, insn.regs[0]);
            Ok(())
        },
    }
}

fn movbe<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let value = core.get::<T>(insn, 1)?;
    let swapped = value.to_u64().swap_bytes() >> (64 - T::BITS);
    core.put(insn, 0, T::from_u64(swapped))
}

fn cbw(core: &mut Core<'_>, _: &Insn) -> Done {
    (u8::get(core, RAX as u8) as i8 as u16).set(core, RAX as u8);
    Ok(())
}

fn cwde(core: &mut Core<'_>, _: &Insn) -> Done {
    (u16::get(core, RAX as u8) as i16 as u32).set(core, RAX as u8);
    Ok(())
}

fn cdqe(core: &mut Core<'_>, _: &Insn) -> Done {
    (u32::get(core, RAX as u8) as i32 as u64).set(core, RAX as u8);
    Ok(())
}

fn spread<T: Int>(core: &mut Core<'_>, _: &Insn) -> Done {
    let sign = T::get(core, RAX as u8).to_i64() >> 63;
    T::from_u64(sign as u64).set(core, RDX as u8);
    Ok(())
}

/// SETcc has one operand, CMOVcc two.
fn conditional_move(i: &Instruction, size: usize) -> Option<Handler> {
    let number = condition_number(i)?;
    if i.flow_control() != FlowControl::Next {
        return None;
    }
    Some(match (i.op_count(), size) {
        (1, 1) => conditional!(number, CC => setcc::<CC>),
        (2, 2) => conditional!(number, CC => cmov::<CC, u16>),
        (2, 4) => conditional!(number, CC => cmov::<CC, u32>),
        (2, 8) => conditional!(number, CC => cmov::<CC, u64>),
        _ => return None,
    })
}

fn setcc<const CC: u8>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.put(insn, 0, u8::from(flags::condition::<CC>(core.state.rflags)))
}

/// The source is read, and may fault, whatever the condition; a 32-bit destination is extended whatever the condition.
fn cmov<const CC: u8, T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let value = core.get::<T>(insn, 1)?;
    let holds = flags::condition::<CC>(core.state.rflags);
    let value = if holds { value } else { T::get(core, insn.regs[0]) };
    value.set(core, insn.regs[0]);
    Ok(())
}
