//! AES round instructions and carry-less multiplication.
// See: FIPS 197 Advanced Encryption Standard; SDM vol. 2, PCLMULQDQ

use super::{
    Done,
    lanes::{build, lane},
};
use crate::{
    core::Core,
    insn::{Handler, Insn},
};
use iced_x86::{Instruction, Mnemonic::*};

pub fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Aesenc | Aesenclast | Aesdec | Aesdeclast | Aesimc | Aeskeygenassist => aes,
        Pclmulqdq => carryless_multiply,
        _ => return None,
    })
}

/// Multiplication by x in the field of AES.
const fn double(a: u8) -> u8 {
    a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 }
}

const fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    product
}

const fn substitute(a: u8) -> u8 {
    // The inverse is the 254th power.
    let mut inverse = 1;
    let mut n = 0;
    while n < 254 {
        inverse = multiply(inverse, a);
        n += 1;
    }
    inverse
        ^ inverse.rotate_left(1)
        ^ inverse.rotate_left(2)
        ^ inverse.rotate_left(3)
        ^ inverse.rotate_left(4)
        ^ 0x63
}

const S_BOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = substitute(i as u8);
        i += 1;
    }
    table
};

const INVERSE_S_BOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[S_BOX[i] as usize] = i as u8;
        i += 1;
    }
    table
};

fn map_bytes(v: u128, table: &[u8; 256]) -> u128 {
    build::<8>(|i| table[lane::<8>(v, i) as usize].into())
}

/// Row `i % 4` of the state moves left by `i % 4` columns (`by` 5), or right (`by` 13).
fn shift_rows(v: u128, by: u32) -> u128 {
    build::<8>(|i| lane::<8>(v, (i * by) % 16))
}

fn mix_columns(v: u128, factors: [u8; 4]) -> u128 {
    build::<8>(|i| {
        let column = i & !3;
        (0..4)
            .fold(0, |sum, k| sum ^ multiply(lane::<8>(v, column + (i + k) % 4) as u8, factors[k as usize]))
            .into()
    })
}

const MIX: [u8; 4] = [2, 3, 1, 1];
const INVERSE_MIX: [u8; 4] = [14, 11, 13, 9];

fn aes(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let key = core.vector(insn, 1)?;
    let state = core.xmm(insn.regs[0]);
    let result = match insn.code.mnemonic() {
        Aesenc => mix_columns(map_bytes(shift_rows(state, 5), &S_BOX), MIX) ^ key,
        Aesenclast => map_bytes(shift_rows(state, 5), &S_BOX) ^ key,
        Aesdec => mix_columns(map_bytes(shift_rows(state, 13), &INVERSE_S_BOX), INVERSE_MIX) ^ key,
        Aesdeclast => map_bytes(shift_rows(state, 13), &INVERSE_S_BOX) ^ key,
        Aesimc => mix_columns(key, INVERSE_MIX),
        _ => round_key(key, insn.imm as u8),
    };
    core.set_xmm(insn.regs[0], result);
    Ok(())
}

/// AESKEYGENASSIST.
fn round_key(source: u128, constant: u8) -> u128 {
    let word = |i| {
        let bytes = (lane::<32>(source, i) as u32).to_le_bytes().map(|byte| S_BOX[byte as usize]);
        u32::from_le_bytes(bytes)
    };
    build::<32>(|i| {
        let x = word(i | 1);
        if i & 1 == 0 { x.into() } else { (x.rotate_right(8) ^ u32::from(constant)).into() }
    })
}

fn carryless_multiply(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_sse()?;
    let b = core.vector(insn, 1)?;
    let a = core.xmm(insn.regs[0]);
    let imm = insn.imm as u32;
    let (x, y) = (lane::<64>(a, imm & 1), lane::<64>(b, imm >> 4 & 1));
    let product = (0..64).filter(|i| y >> i & 1 != 0).fold(0, |sum, i| sum ^ u128::from(x) << i);
    core.set_xmm(insn.regs[0], product);
    Ok(())
}
