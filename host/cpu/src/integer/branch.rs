//! Near branches: JMP, Jcc, CALL, RET, LOOPcc, JrCXZ.

use crate::{
    core::{Core, gp},
    env::Interrupted,
    flags,
    insn::{Handler, Insn},
    integer::{condition_number, conditional, operand_size},
    operand::Int,
};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use vmtape_arch::vcpu::gpr::{RCX, RSP};

type Done = Result<(), Interrupted>;

pub(crate) fn handler(i: &Instruction) -> Option<Handler> {
    if i.is_jcc_short_or_near() {
        return condition_number(i).map(|number| match i.op0_kind() {
            OpKind::NearBranch16 => conditional!(number, CC => jcc::<CC, u16>),
            OpKind::NearBranch32 => conditional!(number, CC => jcc::<CC, u32>),
            _ => conditional!(number, CC => jcc::<CC, u64>),
        });
    }
    Some(match (i.mnemonic(), i.op0_kind()) {
        (Mnemonic::Jmp, OpKind::NearBranch16) => jmp::<u16>,
        (Mnemonic::Jmp, OpKind::NearBranch32) => jmp::<u32>,
        (Mnemonic::Jmp, OpKind::NearBranch64) => jmp::<u64>,
        (Mnemonic::Call, OpKind::NearBranch16) => call::<u16>,
        (Mnemonic::Call, OpKind::NearBranch32) => call::<u32>,
        (Mnemonic::Call, OpKind::NearBranch64) => call::<u64>,
        (Mnemonic::Jmp | Mnemonic::Call, _) if i.is_jmp_near_indirect() || i.is_call_near_indirect() => {
            match (operand_size(i, 0), i.mnemonic()) {
                (2, Mnemonic::Jmp) => jmp_to::<u16>,
                (4, Mnemonic::Jmp) => jmp_to::<u32>,
                (_, Mnemonic::Jmp) => jmp_to::<u64>,
                (2, _) => call_to::<u16>,
                (4, _) => call_to::<u32>,
                _ => call_to::<u64>,
            }
        }
        (Mnemonic::Ret, _) => match i.code() {
            Code::Retnw | Code::Retnw_imm16 => ret::<u16>,
            Code::Retnd | Code::Retnd_imm16 => ret::<u32>,
            _ => ret::<u64>,
        },
        _ => return counted(i),
    })
}

/// LOOPcc and JrCXZ: by the size of the branch and of the counter.
fn counted(i: &Instruction) -> Option<Handler> {
    use Mnemonic::{Jcxz, Jecxz, Jrcxz, Loop, Loope, Loopne};
    let counter: u64 = match i.code() {
        Code::Loop_rel8_16_CX | Code::Loop_rel8_32_CX => 2,
        Code::Loope_rel8_16_CX | Code::Loope_rel8_32_CX => 2,
        Code::Loopne_rel8_16_CX | Code::Loopne_rel8_32_CX => 2,
        Code::Loop_rel8_16_ECX | Code::Loop_rel8_32_ECX | Code::Loop_rel8_64_ECX => 4,
        Code::Loope_rel8_16_ECX | Code::Loope_rel8_32_ECX | Code::Loope_rel8_64_ECX => 4,
        Code::Loopne_rel8_16_ECX | Code::Loopne_rel8_32_ECX | Code::Loopne_rel8_64_ECX => 4,
        _ => match i.mnemonic() {
            Jcxz => 2,
            Jecxz => 4,
            Jrcxz | Loop | Loope | Loopne => 8,
            _ => return None,
        },
    };
    Some(match (i.op0_kind(), counter) {
        (OpKind::NearBranch16, 2) => by_counter::<u16, u16>(i),
        (OpKind::NearBranch16, 4) => by_counter::<u16, u32>(i),
        (OpKind::NearBranch16, _) => by_counter::<u16, u64>(i),
        (OpKind::NearBranch32, 2) => by_counter::<u32, u16>(i),
        (OpKind::NearBranch32, _) => by_counter::<u32, u32>(i),
        (_, 4) => by_counter::<u64, u32>(i),
        _ => by_counter::<u64, u64>(i),
    })
}

fn by_counter<T: Int, C: Int>(i: &Instruction) -> Handler {
    match i.mnemonic() {
        Mnemonic::Loop => looping::<T, C, 0>,
        Mnemonic::Loope => looping::<T, C, 1>,
        Mnemonic::Loopne => looping::<T, C, 2>,
        _ => jrcxz::<T, C>,
    }
}

/// Goes on at a near target of operand size `T`.
// The new RIP is checked by the branch, not by the fetch. See: SDM vol. 2A JMP
#[inline(always)]
fn jump<T: Int>(core: &mut Core<'_>, target: u64) -> Done {
    let target = T::from_u64(target).to_u64();
    // 64-bit code has no limit: the last address of all is one.
    let beyond = if T::BITS == 64 { !core.is_canonical(target) } else { target >= core.code_end };
    if beyond {
        return gp(0);
    }
    core.next_rip = target;
    Ok(())
}

#[inline(always)]
fn jump_relative<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    jump::<T>(core, core.state.rip.wrapping_add(insn.imm))
}

fn jmp<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    jump_relative::<T>(core, insn)
}

/// A branch that is not taken stays in its block; one that is leaves it.
#[inline(always)]
fn take<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.look_again();
    jump_relative::<T>(core, insn)
}

fn jcc<const CC: u8, T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    if flags::condition::<CC>(core.state.rflags) { take::<T>(core, insn) } else { Ok(()) }
}

fn jmp_to<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let target = core.get::<T>(insn, 0)?;
    jump::<T>(core, target.to_u64())
}

fn call<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let back = T::from_u64(core.next_rip);
    jump_relative::<T>(core, insn)?;
    core.push(back)
}

fn call_to<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let back = T::from_u64(core.next_rip);
    let target = core.get::<T>(insn, 0)?;
    jump::<T>(core, target.to_u64())?;
    core.push(back)
}

fn ret<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let target = core.peek::<T>(0)?;
    jump::<T>(core, target.to_u64())?;
    core.set_rsp(core.state.gpr[RSP].wrapping_add(T::BYTES + insn.imm));
    Ok(())
}

fn looping<T: Int, C: Int, const WHEN: u8>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let count = C::from_u64(C::get(core, RCX as u8).to_u64().wrapping_sub(1));
    let zero = core.state.rflags & flags::ZF != 0;
    let wanted = match WHEN {
        1 => zero,
        2 => !zero,
        _ => true,
    };
    if count.to_u64() != 0 && wanted {
        take::<T>(core, insn)?;
    }
    count.set(core, RCX as u8);
    Ok(())
}

fn jrcxz<T: Int, C: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    if C::get(core, RCX as u8).to_u64() == 0 { take::<T>(core, insn) } else { Ok(()) }
}
