//! One instruction of each opcode, prefix and kind of operand, with others around it that are compiled.

use crate::world::CODE_SIZE;

/// Instructions of a program that are executed.
pub const INSNS: u64 = 5;

/// The register that points to the operand in memory, RBX, and what it is.
pub const BASE: usize = 3;
pub const OPERAND: u64 = 0x8000;

const NOP: u8 = 0x90;
/// `mov [rbx], al`: from there on compiled code may write there itself.
const STORE: &[u8] = &[0x88, 0x03];
const OPERAND_SIZE: u8 = 0x66;

/// See: SDM vol. 2A 2.1.1 Instruction Prefixes
const PREFIXES: [&[u8]; 5] = [&[], &[OPERAND_SIZE], &[0xf2], &[0xf3], &[0x48]];
const MAPS: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];

/// What the ModRM byte says with each number of the register that extends some opcodes: another register, and memory at RBX.
const OPERANDS: [u8; 2] = [0xc1, 0x03];

pub fn programs() -> impl Iterator<Item = Vec<u8>> {
    legacy().chain(vex()).map(|insn| {
        let mut code = [&[NOP; INSNS as usize - 2][..], STORE, &insn].concat();
        code.resize(CODE_SIZE, NOP);
        code
    })
}

fn legacy() -> impl Iterator<Item = Vec<u8>> {
    let heads = MAPS.into_iter().flat_map(|map| PREFIXES.map(|prefix| [prefix, map].concat()));
    heads.flat_map(|head| {
        with_operands().map(move |(opcode, operands)| [&head[..], &[opcode, operands]].concat())
    })
}

/// Of three bytes. See: SDM vol. 2A 2.3.5 The VEX Prefix
fn vex() -> impl Iterator<Item = Vec<u8>> {
    const VEX: u8 = 0xc4;
    /// R, X and B extend nothing, as they are stored.
    const NOT_EXTENDED: u8 = 7 << 5;
    /// Register 6, as it is stored.
    const SECOND_SOURCE: u8 = (!6 & 15) << 3;
    let heads = (1..=3).flat_map(|map| {
        let last = (0..4).flat_map(|prefix| [0, 1 << 7].map(|wide| wide | SECOND_SOURCE | prefix));
        last.map(move |last| [VEX, NOT_EXTENDED | map, last])
    });
    heads.flat_map(|head| {
        with_operands().map(move |(opcode, operands)| [&head[..], &[opcode, operands]].concat())
    })
}

/// Opcodes with ModRM bytes.
fn with_operands() -> impl Iterator<Item = (u8, u8)> {
    let operands = (0..8).flat_map(|register| OPERANDS.map(|operands| operands | register << 3));
    (0..=u8::MAX).flat_map(move |opcode| operands.clone().map(move |operands| (opcode, operands)))
}
