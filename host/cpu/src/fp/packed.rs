//! Packed integer operations of two operands, as plain functions on 128-bit values.
//!
//! See: SDM vol. 2, the reference page of each mnemonic.

use super::lanes::*;
use iced_x86::Mnemonic::{self, *};

/// `f(destination, source, bytes)`; `bytes` is 16, or 8 for MMX registers.
pub type Binary = fn(u128, u128, u32) -> u128;

/// The operation behind a mnemonic.
pub fn binary(op: Mnemonic) -> Option<Binary> {
    logic(op)
        .or_else(|| add_sub(op))
        .or_else(|| compare(op))
        .or_else(|| interleave(op))
        .or_else(|| multiply(op))
        .or_else(|| horizontal(op))
}

fn logic(op: Mnemonic) -> Option<Binary> {
    Some(match op {
        Pand | Andps | Andpd => |a, b, _| a & b,
        Pandn | Andnps | Andnpd => |a, b, _| !a & b,
        Por | Orps | Orpd => |a, b, _| a | b,
        Pxor | Xorps | Xorpd => |a, b, _| a ^ b,
        Psllw => |a, b, n| shift_left::<16>(a, count(b, n)),
        Pslld => |a, b, n| shift_left::<32>(a, count(b, n)),
        Psllq => |a, b, n| shift_left::<64>(a, count(b, n)),
        Psrlw => |a, b, n| shift_right::<16>(a, count(b, n)),
        Psrld => |a, b, n| shift_right::<32>(a, count(b, n)),
        Psrlq => |a, b, n| shift_right::<64>(a, count(b, n)),
        Psraw => |a, b, n| shift_arithmetic::<16>(a, count(b, n)),
        Psrad => |a, b, n| shift_arithmetic::<32>(a, count(b, n)),
        _ => return None,
    })
}

/// A shift count is the low quadword of its operand.
fn count(b: u128, _bytes: u32) -> u64 {
    b as u64
}

/// PSLLW, PSLLD, PSLLQ.
pub fn shift_left<const BITS: u32>(a: u128, count: u64) -> u128 {
    if count >= BITS as u64 { 0 } else { zip::<BITS>(a, 0, |x, _| x << count) }
}

/// PSRLW, PSRLD, PSRLQ.
pub fn shift_right<const BITS: u32>(a: u128, count: u64) -> u128 {
    if count >= BITS as u64 { 0 } else { zip::<BITS>(a, 0, |x, _| x >> count) }
}

/// PSRAW, PSRAD.
pub fn shift_arithmetic<const BITS: u32>(a: u128, count: u64) -> u128 {
    let count = count.min(BITS as u64 - 1);
    zip_signed::<BITS>(a, 0, |x, _| x >> count)
}

fn add_sub(op: Mnemonic) -> Option<Binary> {
    Some(match op {
        Paddb => |a, b, _| zip::<8>(a, b, |x, y| x + y),
        Paddw => |a, b, _| zip::<16>(a, b, |x, y| x + y),
        Paddd => |a, b, _| zip::<32>(a, b, |x, y| x + y),
        Paddq => |a, b, _| zip::<64>(a, b, u64::wrapping_add),
        Psubb => |a, b, _| zip::<8>(a, b, u64::wrapping_sub),
        Psubw => |a, b, _| zip::<16>(a, b, u64::wrapping_sub),
        Psubd => |a, b, _| zip::<32>(a, b, u64::wrapping_sub),
        Psubq => |a, b, _| zip::<64>(a, b, u64::wrapping_sub),
        Paddsb => |a, b, _| zip_signed::<8>(a, b, |x, y| saturate_signed::<8>(x + y)),
        Paddsw => |a, b, _| zip_signed::<16>(a, b, |x, y| saturate_signed::<16>(x + y)),
        Psubsb => |a, b, _| zip_signed::<8>(a, b, |x, y| saturate_signed::<8>(x - y)),
        Psubsw => |a, b, _| zip_signed::<16>(a, b, |x, y| saturate_signed::<16>(x - y)),
        Paddusb => |a, b, _| zip::<8>(a, b, |x, y| (x + y).min(0xff)),
        Paddusw => |a, b, _| zip::<16>(a, b, |x, y| (x + y).min(0xffff)),
        Psubusb => |a, b, _| zip::<8>(a, b, u64::saturating_sub),
        Psubusw => |a, b, _| zip::<16>(a, b, u64::saturating_sub),
        Pavgb => |a, b, _| zip::<8>(a, b, |x, y| (x + y + 1) >> 1),
        Pavgw => |a, b, _| zip::<16>(a, b, |x, y| (x + y + 1) >> 1),
        Pabsb => |_, b, _| zip_signed::<8>(b, 0, |x, _| x.abs()),
        Pabsw => |_, b, _| zip_signed::<16>(b, 0, |x, _| x.abs()),
        Pabsd => |_, b, _| zip_signed::<32>(b, 0, |x, _| x.abs()),
        Psignb => |a, b, _| zip_signed::<8>(a, b, |x, y| x * y.signum()),
        Psignw => |a, b, _| zip_signed::<16>(a, b, |x, y| x * y.signum()),
        Psignd => |a, b, _| zip_signed::<32>(a, b, |x, y| x * y.signum()),
        _ => return None,
    })
}

fn compare(op: Mnemonic) -> Option<Binary> {
    Some(match op {
        Pcmpeqb => |a, b, _| mask::<8>(a, b, |x, y| x == y),
        Pcmpeqw => |a, b, _| mask::<16>(a, b, |x, y| x == y),
        Pcmpeqd => |a, b, _| mask::<32>(a, b, |x, y| x == y),
        Pcmpeqq => |a, b, _| mask::<64>(a, b, |x, y| x == y),
        Pcmpgtb => |a, b, _| mask::<8>(a, b, |x, y| x > y),
        Pcmpgtw => |a, b, _| mask::<16>(a, b, |x, y| x > y),
        Pcmpgtd => |a, b, _| mask::<32>(a, b, |x, y| x > y),
        Pcmpgtq => |a, b, _| mask::<64>(a, b, |x, y| x > y),
        Pminub => |a, b, _| zip::<8>(a, b, u64::min),
        Pminuw => |a, b, _| zip::<16>(a, b, u64::min),
        Pminud => |a, b, _| zip::<32>(a, b, u64::min),
        Pmaxub => |a, b, _| zip::<8>(a, b, u64::max),
        Pmaxuw => |a, b, _| zip::<16>(a, b, u64::max),
        Pmaxud => |a, b, _| zip::<32>(a, b, u64::max),
        Pminsb => |a, b, _| zip_signed::<8>(a, b, i64::min),
        Pminsw => |a, b, _| zip_signed::<16>(a, b, i64::min),
        Pminsd => |a, b, _| zip_signed::<32>(a, b, i64::min),
        Pmaxsb => |a, b, _| zip_signed::<8>(a, b, i64::max),
        Pmaxsw => |a, b, _| zip_signed::<16>(a, b, i64::max),
        Pmaxsd => |a, b, _| zip_signed::<32>(a, b, i64::max),
        _ => return None,
    })
}

fn interleave(op: Mnemonic) -> Option<Binary> {
    Some(match op {
        Punpcklbw => |a, b, n| unpack::<8>(a, b, 0, n),
        Punpcklwd => |a, b, n| unpack::<16>(a, b, 0, n),
        Punpckldq | Unpcklps => |a, b, n| unpack::<32>(a, b, 0, n),
        Punpcklqdq | Unpcklpd => |a, b, n| unpack::<64>(a, b, 0, n),
        Punpckhbw => |a, b, n| unpack::<8>(a, b, n / 2, n),
        Punpckhwd => |a, b, n| unpack::<16>(a, b, n / 2, n),
        Punpckhdq | Unpckhps => |a, b, n| unpack::<32>(a, b, n / 2, n),
        Punpckhqdq | Unpckhpd => |a, b, n| unpack::<64>(a, b, n / 2, n),
        Packsswb => |a, b, n| pack::<16, 8>(a, b, n, saturate_signed::<8>),
        Packssdw => |a, b, n| pack::<32, 16>(a, b, n, saturate_signed::<16>),
        Packuswb => |a, b, n| pack::<16, 8>(a, b, n, saturate_unsigned::<8>),
        Packusdw => |a, b, n| pack::<32, 16>(a, b, n, saturate_unsigned::<16>),
        Pshufb => |a, b, n| build::<8>(|i| shuffled_byte(a, lane::<8>(b, i), n)),
        _ => return None,
    })
}

fn shuffled_byte(a: u128, selector: u64, bytes: u32) -> u64 {
    if selector & 0x80 != 0 { 0 } else { lane::<8>(a, selector as u32 & (bytes - 1)) }
}

/// Interleaves lanes of `a` and `b`, beginning at byte `from` of each.
fn unpack<const BITS: u32>(a: u128, b: u128, from: u32, _bytes: u32) -> u128 {
    let first = from * 8 / BITS;
    build::<BITS>(|i| lane::<BITS>(if i & 1 == 0 { a } else { b }, (first + i / 2) % (128 / BITS)))
}

/// Narrows the lanes of `a`, then those of `b`.
fn pack<const FROM: u32, const TO: u32>(a: u128, b: u128, bytes: u32, narrow: fn(i64) -> i64) -> u128 {
    let half = bytes * 8 / FROM;
    build::<TO>(|i| {
        let (from, index) = if i < half { (a, i) } else { (b, (i - half) % half) };
        narrow(signed::<FROM>(lane::<FROM>(from, index))) as u64
    })
}

fn multiply(op: Mnemonic) -> Option<Binary> {
    Some(match op {
        Pmullw => |a, b, _| zip::<16>(a, b, |x, y| x * y),
        Pmulld => |a, b, _| zip::<32>(a, b, |x, y| x * y),
        Pmulhw => |a, b, _| zip_signed::<16>(a, b, |x, y| (x * y) >> 16),
        Pmulhuw => |a, b, _| zip::<16>(a, b, |x, y| (x * y) >> 16),
        Pmulhrsw => |a, b, _| zip_signed::<16>(a, b, |x, y| (((x * y) >> 14) + 1) >> 1),
        Pmuludq => |a, b, _| zip::<64>(a, b, |x, y| (x as u32 as u64) * (y as u32 as u64)),
        Pmuldq => |a, b, _| zip::<64>(a, b, |x, y| (x as i32 as i64 * y as i32 as i64) as u64),
        Pmaddwd => |a, b, _| {
            build::<32>(|i| {
                let product = |i| signed::<16>(lane::<16>(a, i)) * signed::<16>(lane::<16>(b, i));
                (product(2 * i) + product(2 * i + 1)) as u64
            })
        },
        Pmaddubsw => |a, b, _| {
            build::<16>(|i| {
                let product = |i| lane::<8>(a, i) as i64 * signed::<8>(lane::<8>(b, i));
                saturate_signed::<16>(product(2 * i) + product(2 * i + 1)) as u64
            })
        },
        Psadbw => |a, b, _| {
            build::<64>(|i| (8 * i..8 * i + 8).map(|i| lane::<8>(a, i).abs_diff(lane::<8>(b, i))).sum())
        },
        _ => return None,
    })
}

fn horizontal(op: Mnemonic) -> Option<Binary> {
    Some(match op {
        Phaddw => |a, b, n| pairs::<16>(a, b, n, |x, y| x + y),
        Phaddd => |a, b, n| pairs::<32>(a, b, n, |x, y| x + y),
        Phaddsw => |a, b, n| pairs::<16>(a, b, n, |x, y| saturate_signed::<16>(x + y)),
        Phsubw => |a, b, n| pairs::<16>(a, b, n, |x, y| x - y),
        Phsubd => |a, b, n| pairs::<32>(a, b, n, |x, y| x - y),
        Phsubsw => |a, b, n| pairs::<16>(a, b, n, |x, y| saturate_signed::<16>(x - y)),
        Phminposuw => |_, b, _| {
            let (index, least) =
                (0..8).map(|i| (i, lane::<16>(b, i))).min_by_key(|(_, x)| *x).unwrap_or_default();
            u128::from(least) | u128::from(index) << 16
        },
        _ => return None,
    })
}

/// Combines neighbours in `a`, then neighbours in `b`.
fn pairs<const BITS: u32>(a: u128, b: u128, bytes: u32, f: fn(i64, i64) -> i64) -> u128 {
    let half = bytes * 8 / BITS / 2;
    build::<BITS>(|i| {
        let (from, i) = if i < half { (a, i) } else { (b, (i - half) % half) };
        f(signed::<BITS>(lane::<BITS>(from, 2 * i)), signed::<BITS>(lane::<BITS>(from, 2 * i + 1))) as u64
    })
}

/// A widening of the low lanes.
pub type Widen = fn(u128) -> u128;

/// PMOVSX and PMOVZX: bytes of source used, and the widening.
pub fn widen(op: Mnemonic) -> Option<(usize, Widen)> {
    fn sign<const FROM: u32, const TO: u32>(v: u128) -> u128 {
        build::<TO>(|i| signed::<FROM>(lane::<FROM>(v, i)) as u64)
    }
    fn zero<const FROM: u32, const TO: u32>(v: u128) -> u128 {
        build::<TO>(|i| lane::<FROM>(v, i))
    }
    Some(match op {
        Pmovsxbw => (8, sign::<8, 16>),
        Pmovsxbd => (4, sign::<8, 32>),
        Pmovsxbq => (2, sign::<8, 64>),
        Pmovsxwd => (8, sign::<16, 32>),
        Pmovsxwq => (4, sign::<16, 64>),
        Pmovsxdq => (8, sign::<32, 64>),
        Pmovzxbw => (8, zero::<8, 16>),
        Pmovzxbd => (4, zero::<8, 32>),
        Pmovzxbq => (2, zero::<8, 64>),
        Pmovzxwd => (8, zero::<16, 32>),
        Pmovzxwq => (4, zero::<16, 64>),
        Pmovzxdq => (8, zero::<32, 64>),
        _ => return None,
    })
}
