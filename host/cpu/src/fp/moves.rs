//! Moves between registers and memory, MXCSR, and the mask moves.

use super::{
    Done, MXCSR_MASK,
    lanes::{build, lane},
    uses_mmx, uses_xmm,
};
use crate::{
    core::{Core, gp},
    insn::{Handler, Insn, Kind},
    operand::Int,
};
use iced_x86::{Code, Instruction, Mnemonic::*};
use vmtape_arch::vcpu::gpr;

pub fn handler(i: &Instruction) -> Option<Handler> {
    let op = i.mnemonic();
    Some(match op {
        Movaps | Movapd | Movdqa | Movntps | Movntpd | Movntdq | Movntdqa => aligned,
        Movups | Movupd | Movdqu | Lddqu => unaligned,
        Movss => scalar::<u32>,
        Movsd if uses_xmm(i) => scalar::<u64>,
        Movd | Movq => return transfer(i),
        Movntq => store_mmx,
        Movhps | Movhpd | Movlhps => high,
        Movlps | Movlpd | Movhlps => low,
        Movddup | Movsldup | Movshdup => duplicate,
        Movq2dq | Movdq2q => across,
        Movnti => match i.code() {
            Code::Movnti_m64_r64 => store_general::<u64>,
            _ => store_general::<u32>,
        },
        Movmskps | Movmskpd => sign_mask,
        Pmovmskb if uses_mmx(i) => byte_mask_mmx,
        Pmovmskb => byte_mask,
        Maskmovdqu => masked_store,
        Maskmovq => masked_store_mmx,
        Ldmxcsr => load_mxcsr,
        Stmxcsr => store_mxcsr,
        _ => return None,
    })
}

fn aligned(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let value = core.vector(insn, 1)?;
    match insn.kinds[0] {
        Kind::Reg => core.set_xmm(insn.regs[0], value),
        _ => core.write_aligned(insn, value)?,
    }
    Ok(())
}

fn unaligned(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let value = core.scalar::<u128>(insn, 1)?;
    match insn.kinds[0] {
        Kind::Reg => core.set_xmm(insn.regs[0], value),
        _ => core.write(insn.seg, insn.address(core), value)?,
    }
    Ok(())
}

/// MOVSS and MOVSD: a load clears the rest of the register, a move between registers keeps it.
fn scalar<T: Int + std::convert::Into<u128>>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let value = core.scalar::<T>(insn, 1)?;
    match (insn.kinds[0], insn.kinds[1]) {
        (Kind::Reg, Kind::Reg) => {
            let keep = u128::MAX << T::BITS;
            let old = core.xmm(insn.regs[0]);
            core.set_xmm(insn.regs[0], old & keep | value);
        }
        (Kind::Reg, _) => core.set_xmm(insn.regs[0], value),
        _ => core.write(insn.seg, insn.address(core), T::from_u64(value as u64))?,
    }
    Ok(())
}

/// MOVD and MOVQ by what their operands are.
fn transfer(i: &Instruction) -> Option<Handler> {
    Some(match i.code() {
        Code::Movd_xmm_rm32 => general_to_xmm::<u32>,
        Code::Movq_xmm_rm64 => general_to_xmm::<u64>,
        Code::Movd_rm32_xmm => xmm_to_general::<u32>,
        Code::Movq_rm64_xmm => xmm_to_general::<u64>,
        Code::Movq_xmm_xmmm64 => quadword_to_xmm,
        Code::Movq_xmmm64_xmm => quadword_from_xmm,
        Code::Movd_mm_rm32 => general_to_mmx::<u32>,
        Code::Movq_mm_rm64 => general_to_mmx::<u64>,
        Code::Movd_rm32_mm => mmx_to_general::<u32>,
        Code::Movq_rm64_mm => mmx_to_general::<u64>,
        Code::Movq_mm_mmm64 => load_mmx,
        Code::Movq_mmm64_mm => store_mmx,
        _ => return None,
    })
}

fn general_to_xmm<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let value = core.get::<T>(insn, 1)?;
    core.set_xmm(insn.regs[0], u128::from(value.to_u64()));
    Ok(())
}

fn xmm_to_general<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let value = T::from_u64(core.xmm(insn.regs[1]) as u64);
    core.put(insn, 0, value)
}

fn quadword_to_xmm(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let value = core.scalar::<u64>(insn, 1)?;
    core.set_xmm(insn.regs[0], value);
    Ok(())
}

fn quadword_from_xmm(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let value = core.xmm(insn.regs[1]) as u64;
    match insn.kinds[0] {
        Kind::Reg => core.set_xmm(insn.regs[0], u128::from(value)),
        _ => core.write(insn.seg, insn.address(core), value)?,
    }
    Ok(())
}

fn general_to_mmx<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_mmx()?;
    let value = core.get::<T>(insn, 1)?;
    core.enter_mmx();
    core.set_mm(insn.regs[0], value.to_u64());
    Ok(())
}

fn mmx_to_general<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_mmx()?;
    let value = T::from_u64(core.mm(insn.regs[1]));
    core.put(insn, 0, value)?;
    core.enter_mmx();
    Ok(())
}

fn load_mmx(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_mmx()?;
    let value = core.mmx_source(insn, 1)?;
    core.enter_mmx();
    core.set_mm(insn.regs[0], value);
    Ok(())
}

fn store_mmx(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_mmx()?;
    let value = core.mm(insn.regs[1]);
    if insn.is_mem(0) {
        core.write(insn.seg, insn.address(core), value)?;
        core.enter_mmx();
    } else {
        core.enter_mmx();
        core.set_mm(insn.regs[0], value);
    }
    Ok(())
}

/// MOVHPS, MOVHPD and MOVLHPS: to or from the high quadword.
fn high(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    if insn.is_mem(0) {
        let value = (core.xmm(insn.regs[1]) >> 64) as u64;
        return core.write(insn.seg, insn.address(core), value);
    }
    let value = core.scalar::<u64>(insn, 1)?;
    let old = core.xmm(insn.regs[0]) as u64;
    core.set_xmm(insn.regs[0], u128::from(old) | value << 64);
    Ok(())
}

/// MOVLPS, MOVLPD and MOVHLPS: to or from the low quadword.
fn low(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    if insn.is_mem(0) {
        let value = core.xmm(insn.regs[1]) as u64;
        return core.write(insn.seg, insn.address(core), value);
    }
    let value = match insn.kinds[1] {
        Kind::Reg => core.xmm(insn.regs[1]) >> 64,
        _ => core.scalar::<u64>(insn, 1)?,
    };
    let old = core.xmm(insn.regs[0]) >> 64 << 64;
    core.set_xmm(insn.regs[0], old | value);
    Ok(())
}

fn duplicate(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let op = insn.code.mnemonic();
    let source = if op == Movddup { core.scalar::<u64>(insn, 1)? } else { core.vector(insn, 1)? };
    let result = match op {
        Movddup => source | source << 64,
        Movsldup => build::<32>(|i| lane::<32>(source, i & !1)),
        _ => build::<32>(|i| lane::<32>(source, i | 1)),
    };
    core.set_xmm(insn.regs[0], result);
    Ok(())
}

/// MOVQ2DQ and MOVDQ2Q.
fn across(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    core.check_mmx()?;
    core.enter_mmx();
    if insn.code.mnemonic() == Movq2dq {
        let value = core.mm(insn.regs[1]);
        core.set_xmm(insn.regs[0], u128::from(value));
    } else {
        let value = core.xmm(insn.regs[1]) as u64;
        core.set_mm(insn.regs[0], value);
    }
    Ok(())
}

/// MOVNTI: an integer store, whatever CR0 and CR4 say.
fn store_general<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    let value = T::get(core, insn.regs[1]);
    core.put(insn, 0, value)
}

fn sign_mask(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let source = core.xmm(insn.regs[1]);
    let mask = if insn.code.mnemonic() == Movmskps {
        (0..4).fold(0, |mask, i| mask | (lane::<32>(source, i) >> 31) << i)
    } else {
        (0..2).fold(0, |mask, i| mask | (lane::<64>(source, i) >> 63) << i)
    };
    (mask as u32).set(core, insn.regs[0]);
    Ok(())
}

/// The top bit of each of the low `bytes` bytes.
fn top_bits(source: u128, bytes: u32) -> u32 {
    (0..bytes).fold(0, |mask, i| mask | ((lane::<8>(source, i) >> 7) as u32) << i)
}

fn byte_mask(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    top_bits(core.xmm(insn.regs[1]), 16).set(core, insn.regs[0]);
    Ok(())
}

fn byte_mask_mmx(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_mmx()?;
    core.enter_mmx();
    top_bits(u128::from(core.mm(insn.regs[1])), 8).set(core, insn.regs[0]);
    Ok(())
}

fn masked_store(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let (value, mask) = (core.xmm(insn.regs[1]), top_bits(core.xmm(insn.regs[2]), 16));
    store_bytes(core, insn, value, mask)
}

fn masked_store_mmx(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_mmx()?;
    let (value, mask) = (core.mm(insn.regs[1]), top_bits(u128::from(core.mm(insn.regs[2])), 8));
    store_bytes(core, insn, u128::from(value), mask)?;
    core.enter_mmx();
    Ok(())
}

/// Stores selected bytes at rDI. All are checked before the first is written.
fn store_bytes(core: &mut Core<'_>, insn: &Insn, value: u128, mask: u32) -> Done {
    let at = core.state.gpr[gpr::RDI];
    let address = |i: u32| at.wrapping_add(u64::from(i)) & insn.address_mask();
    let selected = || (0..16).filter(|i| mask >> i & 1 != 0);
    for i in selected() {
        core.rmw(insn.seg, address(i), |old: u8| (old, ()))?;
    }
    for i in selected() {
        core.write(insn.seg, address(i), lane::<8>(value, i) as u8)?;
    }
    Ok(())
}

fn load_mxcsr(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let value: u32 = core.read(insn.seg, insn.address(core))?;
    if value & !MXCSR_MASK != 0 {
        return gp(0);
    }
    core.state.fpu.mxcsr = value;
    Ok(())
}

fn store_mxcsr(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    core.write(insn.seg, insn.address(core), core.state.fpu.mxcsr)
}
