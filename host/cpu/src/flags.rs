//! Arithmetic flags, all computed here.
//!
//! The flags are computed with every instruction: a handful of register operations that the processor overlaps with
//! the next instruction's dispatch.
// See: SDM vol. 1 3.4.3.1 Status Flags

use crate::operand::Int;

pub const CF: u64 = 1 << 0;
pub const PF: u64 = 1 << 2;
pub const AF: u64 = 1 << 4;
pub const ZF: u64 = 1 << 6;
pub const SF: u64 = 1 << 7;
pub const TF: u64 = 1 << 8;
pub const IF: u64 = 1 << 9;
pub const DF: u64 = 1 << 10;
pub const OF: u64 = 1 << 11;
pub const AC: u64 = 1 << 18;
/// The six status flags.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// PF for each low byte.
const PARITY: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = if (byte as u8).count_ones().is_multiple_of(2) { PF as u8 } else { 0 };
        byte += 1;
    }
    table
};

/// SF, ZF and PF of a result.
#[inline(always)]
pub fn szp<T: Int>(result: T) -> u64 {
    let r = result.to_u64();
    u64::from(PARITY[(r & 0xff) as usize]) | u64::from(r == 0) << 6 | (r >> (T::BITS - 1)) << 7
}

/// Sum and flags.
#[inline(always)]
pub fn add<T: Int>(a: T, b: T, carry: bool) -> (T, u64) {
    let (x, y) = (a.to_u64(), b.to_u64());
    let result = T::from_u64(x.wrapping_add(y).wrapping_add(u64::from(carry)));
    let r = result.to_u64();
    let carries = (x & y) | ((x | y) & !r);
    let overflow = (x ^ r) & (y ^ r);
    (result, szp(result) | carry_flags::<T>(carries, overflow))
}

/// Difference and flags.
#[inline(always)]
pub fn sub<T: Int>(a: T, b: T, borrow: bool) -> (T, u64) {
    let (x, y) = (a.to_u64(), b.to_u64());
    let result = T::from_u64(x.wrapping_sub(y).wrapping_sub(u64::from(borrow)));
    let r = result.to_u64();
    let borrows = (!x & y) | ((!x | y) & r);
    let overflow = (x ^ y) & (x ^ r);
    (result, szp(result) | carry_flags::<T>(borrows, overflow))
}

/// CF and OF from the top bits, AF from bit 3.
#[inline(always)]
fn carry_flags<T: Int>(carries: u64, overflow: u64) -> u64 {
    let top = T::BITS - 1;
    (carries >> top & 1) | (carries & 8) << 1 | (overflow >> top & 1) << 11
}

/// Flags of AND, OR, XOR and TEST: carry and overflow clear, and AF too, as processors do.
#[inline(always)]
pub fn logic<T: Int>(result: T) -> u64 {
    szp(result)
}

/// Whether a condition code (low four bits of Jcc, SETcc and CMOVcc opcodes) holds.
#[inline(always)]
pub fn condition<const CC: u8>(flags: u64) -> bool {
    let holds = match CC >> 1 {
        0 => flags & OF != 0,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => flags & SF != 0,
        5 => flags & PF != 0,
        6 => (flags >> 7 ^ flags >> 11) & 1 != 0,
        _ => flags & ZF != 0 || (flags >> 7 ^ flags >> 11) & 1 != 0,
    };
    holds != (CC & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_and_overflows() {
        assert_eq!(add(0x7fu8, 1, false), (0x80, SF | OF | AF));
        assert_eq!(add(0xffu8, 0, true), (0, CF | ZF | AF | PF));
        assert_eq!(sub(0u32, 1, false), (u32::MAX, CF | SF | AF | PF));
        assert_eq!(sub(0x8000_0000_0000_0000u64, 1, false).1 & (OF | CF), OF);
    }
}
