//! Random code that mostly makes sense: integer instructions on registers that mostly point to memory, short branches, and now and
//! then anything.

use crate::world::{CODE_SIZE, RAM_SIZE};

/// SplitMix64, so that every run is the same.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn pick(&mut self, from: &[u8]) -> u8 {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What a program is begun with.
pub struct Registers {
    pub gpr: [u64; 16],
    pub rflags: u64,
    /// Of FS and GS.
    pub bases: [u64; 2],
    pub xmm: [[u64; 2]; 16],
    pub mxcsr: u32,
    /// CR0.TS: SSE faults.
    pub ts: bool,
}

pub fn registers(random: &mut Random) -> Registers {
    let mut gpr = [0; 16];
    for register in &mut gpr {
        *register = match random.below(10) {
            0 => random.next(),
            1 => random.below(256),
            2 => u64::MAX - random.below(16),
            _ => 0x2000 + random.below(RAM_SIZE - 0x2000),
        };
    }
    // A stack.
    if !random.one_in(8) {
        gpr[4] = 0x8800 + random.below(64) * 8;
    }
    const STATUS: u64 = 0x8d5;
    Registers {
        gpr,
        rflags: 2 | random.next() & STATUS,
        bases: [random.below(0x4000), random.below(0x100)],
        xmm: std::array::from_fn(|_| [vector_half(random), vector_half(random)]),
        mxcsr: mxcsr(random),
        ts: random.one_in(24),
    }
}

/// A double, two singles, or anything.
fn vector_half(random: &mut Random) -> u64 {
    let small = random.below(2000) as f64 / 16.0 - 50.0;
    match random.below(8) {
        0 => random.next(),
        1 => 0,
        2 => (random.pick(&[0x7f, 0xff, 0x80, 0, 0x3f]) as u64) << 56 | random.next() >> random.below(63),
        3 => u64::from((random.below(9) as f32).to_bits()) << 32 | u64::from((small as f32).to_bits()),
        4 => u64::from(f32::MIN_POSITIVE.to_bits()) << 32 | random.below(1 << 24),
        _ => small.to_bits(),
    }
}

/// Mostly with all exceptions masked.
fn mxcsr(random: &mut Random) -> u32 {
    const MASKS: u32 = 0x1f80;
    match random.below(6) {
        0 => random.next() as u32 & 0xffff,
        1 => MASKS,
        2 => MASKS | 0x20,
        _ => MASKS | random.next() as u32 & 0xffff,
    }
}

/// Places where a program is begun, and gone on with after a fault.
pub const ENTRIES: usize = 6;

/// Bytes of code, and where it is entered.
pub fn program(random: &mut Random) -> (Vec<u8>, [u64; ENTRIES]) {
    let mut code = Vec::new();
    let mut boundaries = Vec::new();
    while code.len() < CODE_SIZE - 20 {
        boundaries.push(code.len() as u64);
        instruction(random, &mut code);
    }
    let mut entries = [0; ENTRIES];
    entries[1..].fill_with(|| boundaries[random.below(boundaries.len() as u64) as usize]);
    // Back to the beginning.
    let back = -(code.len() as i32 + 5);
    code.push(0xe9);
    code.extend(back.to_le_bytes());
    code.resize(CODE_SIZE, 0xcc);
    (code, entries)
}

fn instruction(random: &mut Random, code: &mut Vec<u8>) {
    match random.below(24) {
        0..6 => arithmetic(random, code),
        6..9 => moves(random, code),
        9..11 => unary(random, code),
        11..13 => shift(random, code),
        13..15 => two_byte(random, code),
        15..17 => branch(random, code),
        17..19 => stack(random, code),
        19..23 => sse(random, code),
        _ if random.one_in(3) => (0..1 + random.below(4)).for_each(|_| code.push(random.byte())),
        _ => one_byte(random, code),
    }
}

/// Operand size, segment and REX prefixes.
fn prefixes(random: &mut Random, code: &mut Vec<u8>) -> bool {
    if random.one_in(12) {
        code.push(random.pick(&[0x64, 0x65, 0x67, 0xf0, 0x2e, 0xf3]));
    }
    let narrow = random.one_in(8);
    if narrow {
        code.push(0x66);
    }
    let rex = 0x40 | random.byte() & 15 | if random.one_in(2) { 8 } else { 0 };
    if !random.one_in(3) {
        code.push(rex);
        return narrow && rex & 8 == 0;
    }
    narrow
}

/// ModRM, SIB and displacement.
fn modrm(random: &mut Random, code: &mut Vec<u8>, reg: Option<u8>) {
    let mode = random.pick(&[0, 1, 1, 2, 3, 3, 3]);
    let reg = reg.unwrap_or(random.byte() & 7);
    let rm = random.byte() & 7;
    code.push(mode << 6 | reg << 3 | rm);
    let mut displacement = [0, 1, 4, 0][usize::from(mode)];
    if mode != 3 && rm == 4 {
        let sib = random.byte();
        code.push(if random.one_in(2) { sib | 0x20 & !0x18 | 0x20 } else { sib });
        if mode == 0 && code.last().is_some_and(|sib| sib & 7 == 5) {
            displacement = 4;
        }
    }
    if mode == 0 && rm == 5 {
        displacement = 4;
    }
    match displacement {
        1 => code.push(random.byte()),
        4 => code.extend((random.below(0x3000) as i32 - 0x400).to_le_bytes()),
        _ => {}
    }
}

fn immediate(random: &mut Random, code: &mut Vec<u8>, narrow: bool) {
    let value = if random.one_in(2) { random.next() as i8 as i32 } else { random.next() as i32 };
    code.extend(&value.to_le_bytes()[..if narrow { 2 } else { 4 }]);
}

/// The eight operations, and TEST.
fn arithmetic(random: &mut Random, code: &mut Vec<u8>) {
    let narrow = prefixes(random, code);
    let operation = random.byte() & 7;
    match random.below(8) {
        0 => {
            code.push(operation << 3 | 4);
            code.push(random.byte());
        }
        1 => {
            code.push(operation << 3 | 5);
            immediate(random, code, narrow);
        }
        2 => {
            code.push(0x83);
            modrm(random, code, Some(operation));
            code.push(random.byte());
        }
        3 => {
            code.push(0x81);
            modrm(random, code, Some(operation));
            immediate(random, code, narrow);
        }
        4 => {
            code.push(random.pick(&[0x84, 0x85, 0x86, 0x87]));
            modrm(random, code, None);
        }
        _ => {
            code.push(operation << 3 | random.byte() & 3);
            modrm(random, code, None);
        }
    }
}

fn moves(random: &mut Random, code: &mut Vec<u8>) {
    let narrow = prefixes(random, code);
    match random.below(6) {
        0 => {
            code.push(0xc7);
            modrm(random, code, Some(0));
            immediate(random, code, narrow);
        }
        1 => {
            code.push(0xc6);
            modrm(random, code, Some(0));
            code.push(random.byte());
        }
        2 => {
            code.push(0x8d);
            modrm(random, code, None);
        }
        3 => {
            code.push(0x63);
            modrm(random, code, None);
        }
        _ => {
            code.push(random.pick(&[0x88, 0x89, 0x8a, 0x8b]));
            modrm(random, code, None);
        }
    }
}

/// INC, DEC, NOT, NEG, MUL, IMUL, and DIV, which faults.
fn unary(random: &mut Random, code: &mut Vec<u8>) {
    prefixes(random, code);
    if random.one_in(2) {
        code.push(random.pick(&[0xfe, 0xff]));
        let operation = random.byte() & 1;
        modrm(random, code, Some(operation));
    } else {
        code.push(random.pick(&[0xf6, 0xf7]));
        let operation = if random.one_in(12) { 6 } else { 2 + (random.byte() & 3) };
        modrm(random, code, Some(operation));
    }
}

fn shift(random: &mut Random, code: &mut Vec<u8>) {
    prefixes(random, code);
    let operation = random.pick(&[0, 1, 2, 3, 4, 4, 5, 5, 6, 7, 7]);
    match random.below(3) {
        0 => {
            code.push(random.pick(&[0xd0, 0xd1, 0xd2, 0xd3]));
            modrm(random, code, Some(operation));
        }
        _ => {
            code.push(random.pick(&[0xc0, 0xc1]));
            modrm(random, code, Some(operation));
            code.push(random.pick(&[0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63]));
        }
    }
}

/// SETcc, CMOVcc, MOVZX, MOVSX, IMUL, BT, BSF, SHLD, XADD, CMPXCHG, BSWAP.
fn two_byte(random: &mut Random, code: &mut Vec<u8>) {
    prefixes(random, code);
    code.push(0x0f);
    let condition = random.byte() & 15;
    match random.below(8) {
        0 => {
            code.push(0x90 | condition);
            modrm(random, code, None);
        }
        1 => {
            code.push(0x40 | condition);
            modrm(random, code, None);
        }
        2 => {
            code.push(random.pick(&[0xb6, 0xb7, 0xbe, 0xbf]));
            modrm(random, code, None);
        }
        3 => {
            code.push(0xaf);
            modrm(random, code, None);
        }
        4 => {
            code.push(random.pick(&[0xa3, 0xab, 0xb3, 0xbb, 0xbc, 0xbd, 0xc1, 0xb1]));
            modrm(random, code, None);
        }
        5 => {
            code.push(0xba);
            let operation = 4 | random.byte() & 3;
            modrm(random, code, Some(operation));
            code.push(random.byte());
        }
        6 => code.push(0xc8 | random.byte() & 7),
        _ => {
            code.push(random.pick(&[0xa4, 0xac]));
            modrm(random, code, None);
            code.push(random.byte());
        }
    }
}

/// All two-byte opcodes with XMM registers, and some of three bytes.
fn sse(random: &mut Random, code: &mut Vec<u8>) {
    let prefix = random.pick(&[0, 0x66, 0x66, 0xf2, 0xf3]);
    if prefix != 0 {
        code.push(prefix);
    }
    if random.one_in(2) {
        code.push(0x40 | random.byte() & 15);
    }
    code.push(0x0f);
    let opcode = match random.below(8) {
        0 => random.pick(&[0x10, 0x11, 0x28, 0x29, 0x6f, 0x7f, 0x6e, 0x7e, 0xd6]),
        1 => random.pick(&[0x12, 0x13, 0x16, 0x17, 0x14, 0x15, 0x2b, 0xe7, 0x50, 0xd7]),
        2 => random.pick(&[0x2a, 0x2c, 0x2d, 0x2e, 0x2f, 0x5a, 0x5b, 0xe6]),
        3 => 0x50 | random.byte() & 15,
        4 => random.pick(&[0x70, 0xc2, 0xc4, 0xc5, 0xc6, 0x71, 0x72, 0x73, 0x7c, 0x7d, 0xd0]),
        5 => 0x60 | random.byte() & 15,
        6 => 0x38,
        _ => 0xd0 | random.byte() & 0x2f,
    };
    let mut immediate = matches!(opcode, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6);
    code.push(opcode);
    if opcode == 0x38 {
        *code.last_mut().unwrap() = random.pick(&[0x38, 0x38, 0x3a]);
        immediate = code.ends_with(&[0x3a]);
        code.push(match immediate {
            true => random
                .pick(&[8, 9, 10, 11, 12, 13, 14, 15, 0x14, 0x15, 0x16, 0x17, 0x20, 0x21, 0x22, 0x40, 0x42]),
            false => random.pick(&[0, 0x10, 0x20, 0x30]) | random.byte() & 15,
        });
    }
    modrm(random, code, None);
    if immediate {
        code.push(random.byte());
    }
}

/// Short ones, forwards mostly.
fn branch(random: &mut Random, code: &mut Vec<u8>) {
    let back = code.len().min(100) as u64;
    let distance = match random.below(4) {
        0 => -(random.below(back + 1) as i64) as i8,
        _ => random.below(24) as i8,
    };
    match random.below(10) {
        0 => {
            code.push(0xe8);
            code.extend(i32::from(distance).to_le_bytes());
        }
        1 => code.extend([0xeb, distance as u8]),
        2 => code.extend([0xe2, distance as u8]),
        // The address of this very call, that it comes back behind.
        3 => code.extend([0xe8, 0, 0, 0, 0, 0x58 | random.byte() & 7]),
        4 => {
            code.push(0xff);
            let operation = random.pick(&[2, 4]);
            modrm(random, code, Some(operation));
        }
        5 => {
            code.extend([0x0f, 0x80 | random.byte() & 15]);
            code.extend(i32::from(distance).to_le_bytes());
        }
        _ => code.extend([0x70 | random.byte() & 15, distance as u8]),
    }
}

fn stack(random: &mut Random, code: &mut Vec<u8>) {
    if random.one_in(4) {
        code.push(0x41);
    }
    match random.below(9) {
        0 => code.push(0xc3),
        1 => code.push(0xc9),
        2 => code.extend([0x6a, random.byte()]),
        3 => {
            code.push(0x68);
            immediate(random, code, false);
        }
        4 => {
            code.push(0xff);
            modrm(random, code, Some(6));
        }
        5 => code.extend([0x9c, 0x9d]),
        6 => code.push(0x58 | random.byte() & 7),
        _ => code.push(0x50 | random.byte() & 7),
    }
}

/// CBW and its like, flag instructions, strings, XCHG with RAX, MOV of immediates.
fn one_byte(random: &mut Random, code: &mut Vec<u8>) {
    let narrow = prefixes(random, code);
    match random.below(4) {
        0 => code.push(0x90 | random.byte() & 7),
        1 => {
            code.push(0xb0 | random.byte() & 7);
            code.push(random.byte());
        }
        2 if !narrow => {
            code.push(0xb8 | random.byte() & 7);
            code.extend((random.next() as i32).to_le_bytes());
        }
        _ => {
            code.push(random.pick(&[0x98, 0x99, 0x9e, 0x9f, 0xf5, 0xf8, 0xf9, 0xa4, 0xa5, 0xaa, 0xac, 0xf4]))
        }
    }
}
