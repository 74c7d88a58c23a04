//! Shuffles, blends, insertions and extractions.

use super::{
    Done,
    lanes::{build, lane, replace},
    uses_mmx,
};
use crate::{
    core::Core,
    env::Interrupted,
    flags,
    insn::{Handler, Insn, Kind},
    operand::Int,
};
use iced_x86::{
    Instruction,
    Mnemonic::{self, *},
};

pub fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Pshufd | Pshuflw | Pshufhw => one_source,
        Pshufw => words_mmx,
        Shufps | Shufpd | Blendps | Blendpd | Pblendw | Mpsadbw => two_sources,
        Palignr if uses_mmx(i) => align_mmx,
        Palignr => two_sources,
        Pslldq | Psrldq => shift_bytes,
        Blendvps | Blendvpd | Pblendvb => blend_variable,
        Ptest => test,
        Pinsrb => insert::<u8>,
        Pinsrw if uses_mmx(i) => insert_word_mmx,
        Pinsrw => insert::<u16>,
        Pinsrd => insert::<u32>,
        Pinsrq => insert::<u64>,
        Insertps => insert_single,
        Pextrb => extract::<u8>,
        Pextrw if uses_mmx(i) => extract_word_mmx,
        Pextrw => extract::<u16>,
        Pextrd | Extractps => extract::<u32>,
        Pextrq => extract::<u64>,
        _ => return None,
    })
}

/// Two selector bits for lane `i`.
fn select2(imm: u64, i: u32) -> u32 {
    (imm >> (2 * i)) as u32 & 3
}

fn one_source(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let source = match insn.kinds[1] {
        Kind::Reg => core.xmm(insn.regs[1]),
        _ => core.read_aligned(insn)?,
    };
    let imm = insn.imm;
    let result = match insn.code.mnemonic() {
        Pshufd => build::<32>(|i| lane::<32>(source, select2(imm, i))),
        Pshuflw => build::<16>(|i| lane::<16>(source, if i < 4 { select2(imm, i) } else { i })),
        _ => build::<16>(|i| lane::<16>(source, if i < 4 { i } else { 4 + select2(imm, i - 4) })),
    };
    core.set_xmm(insn.regs[0], result);
    Ok(())
}

fn words_mmx(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_mmx()?;
    let source = u128::from(core.mmx_source(insn, 1)?);
    core.enter_mmx();
    let result = build::<16>(|i| lane::<16>(source, select2(insn.imm, i & 3)));
    core.set_mm(insn.regs[0], result as u64);
    Ok(())
}

fn two_sources(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let b = core.vector(insn, 1)?;
    let a = core.xmm(insn.regs[0]);
    core.set_xmm(insn.regs[0], combine(insn.code.mnemonic(), a, b, insn.imm));
    Ok(())
}

fn combine(op: Mnemonic, a: u128, b: u128, imm: u64) -> u128 {
    let bit = |i: u32| imm >> i & 1 != 0;
    match op {
        Shufps => build::<32>(|i| lane::<32>(if i < 2 { a } else { b }, select2(imm, i))),
        Shufpd => build::<64>(|i| lane::<64>(if i == 0 { a } else { b }, bit(i).into())),
        Blendps => build::<32>(|i| lane::<32>(if bit(i) { b } else { a }, i)),
        Blendpd => build::<64>(|i| lane::<64>(if bit(i) { b } else { a }, i)),
        Pblendw => build::<16>(|i| lane::<16>(if bit(i) { b } else { a }, i)),
        Mpsadbw => build::<16>(|i| sum_of_differences(a, b, imm, i)),
        // PALIGNR: the sixteen bytes that begin at byte `imm` of a:b.
        _ => match imm as u8 as u32 {
            0 => b,
            n @ 1..16 => b >> (8 * n) | a << (128 - 8 * n),
            n @ 16..32 => a >> (8 * (n - 16)),
            _ => 0,
        },
    }
}

/// One word of MPSADBW.
fn sum_of_differences(a: u128, b: u128, imm: u64, i: u32) -> u64 {
    let first = (imm >> 2 & 1) as u32 * 4 + i;
    let second = (imm & 3) as u32 * 4;
    (0..4).map(|k| lane::<8>(a, first + k).abs_diff(lane::<8>(b, second + k))).sum()
}

fn align_mmx(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_mmx()?;
    let b = core.mmx_source(insn, 1)?;
    let both = u128::from(core.mm(insn.regs[0])) << 64 | u128::from(b);
    core.enter_mmx();
    let result = both.checked_shr(8 * (insn.imm as u8 as u32)).unwrap_or(0);
    core.set_mm(insn.regs[0], result as u64);
    Ok(())
}

fn shift_bytes(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let bits = 8 * (insn.imm as u8 as u32);
    let a = core.xmm(insn.regs[0]);
    let result = if insn.code.mnemonic() == Pslldq { a.checked_shl(bits) } else { a.checked_shr(bits) };
    core.set_xmm(insn.regs[0], result.unwrap_or(0));
    Ok(())
}

/// Lanes are chosen by the top bits of XMM0's.
fn blend_variable(core: &mut Core<'_>, insn: &Insn) -> Done {
    fn blend<const BITS: u32>(a: u128, b: u128, mask: u128) -> u128 {
        build::<BITS>(|i| lane::<BITS>(if lane::<BITS>(mask, i) >> (BITS - 1) != 0 { b } else { a }, i))
    }
    core.check_sse()?;
    let b = core.vector(insn, 1)?;
    let (a, mask) = (core.xmm(insn.regs[0]), core.xmm(0));
    let result = match insn.code.mnemonic() {
        Blendvps => blend::<32>(a, b, mask),
        Blendvpd => blend::<64>(a, b, mask),
        _ => blend::<8>(a, b, mask),
    };
    core.set_xmm(insn.regs[0], result);
    Ok(())
}

fn test(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let b = core.vector(insn, 1)?;
    let a = core.xmm(insn.regs[0]);
    let zero = if a & b == 0 { flags::ZF } else { 0 };
    let carry = if !a & b == 0 { flags::CF } else { 0 };
    core.set_status(zero | carry);
    Ok(())
}

/// The lowest `T::BITS` bits of a general register, or memory.
fn inserted<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Result<u64, Interrupted> {
    Ok(match insn.kinds[1] {
        Kind::Reg => core.state.gpr[(insn.regs[1] & 15) as usize],
        _ => core.read::<T>(insn.seg, insn.address(core))?.to_u64(),
    })
}

fn insert<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let value = inserted::<T>(core, insn)?;
    let old = core.xmm(insn.regs[0]);
    let index = insn.imm as u32 & (128 / T::BITS - 1);
    let result = match T::BITS {
        8 => replace::<8>(old, index, value),
        16 => replace::<16>(old, index, value),
        32 => replace::<32>(old, index, value),
        _ => replace::<64>(old, index, value),
    };
    core.set_xmm(insn.regs[0], result);
    Ok(())
}

fn insert_word_mmx(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_mmx()?;
    let value = inserted::<u16>(core, insn)?;
    let old = u128::from(core.mm(insn.regs[0]));
    core.enter_mmx();
    core.set_mm(insn.regs[0], replace::<16>(old, insn.imm as u32 & 3, value) as u64);
    Ok(())
}

fn insert_single(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let imm = insn.imm as u32;
    let value = match insn.kinds[1] {
        Kind::Reg => lane::<32>(core.xmm(insn.regs[1]), imm >> 6 & 3),
        _ => core.read::<u32>(insn.seg, insn.address(core))?.into(),
    };
    let merged = replace::<32>(core.xmm(insn.regs[0]), imm >> 4 & 3, value);
    let result = build::<32>(|i| if imm >> i & 1 != 0 { 0 } else { lane::<32>(merged, i) });
    core.set_xmm(insn.regs[0], result);
    Ok(())
}

/// To a general register, zero-extended, or to memory.
fn extract<T: Int>(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let index = insn.imm as u32 & (128 / T::BITS - 1);
    let value = T::from_u64((core.xmm(insn.regs[1]) >> (index * T::BITS)) as u64);
    if insn.is_mem(0) {
        return core.write(insn.seg, insn.address(core), value);
    }
    value.to_u64().set(core, insn.regs[0]);
    Ok(())
}

fn extract_word_mmx(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_mmx()?;
    core.enter_mmx();
    let value = core.mm(insn.regs[1]) >> (16 * (insn.imm & 3)) & 0xffff;
    value.set(core, insn.regs[0]);
    Ok(())
}
