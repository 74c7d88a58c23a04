//! Vectors as lanes of equal width. A 64-bit MMX operand is the low half; what the high half computes is dropped.

/// `x` as a signed number of `BITS` bits.
pub fn signed<const BITS: u32>(x: u64) -> i64 {
    (x << (64 - BITS)) as i64 >> (64 - BITS)
}

/// Lane `index` of `v`.
pub fn lane<const BITS: u32>(v: u128, index: u32) -> u64 {
    (v >> (index * BITS)) as u64 & (u64::MAX >> (64 - BITS))
}

/// `value` placed as lane `index`.
pub fn place<const BITS: u32>(value: u64, index: u32) -> u128 {
    ((value & (u64::MAX >> (64 - BITS))) as u128) << (index * BITS)
}

/// `v` with lane `index` replaced.
pub fn replace<const BITS: u32>(v: u128, index: u32, value: u64) -> u128 {
    v & !place::<BITS>(u64::MAX, index) | place::<BITS>(value, index)
}

/// A vector whose lane `i` is `f(i)`.
#[inline]
pub fn build<const BITS: u32>(mut f: impl FnMut(u32) -> u64) -> u128 {
    (0..128 / BITS).fold(0, |v, i| v | place::<BITS>(f(i), i))
}

/// Combines lanes, unsigned.
#[inline]
pub fn zip<const BITS: u32>(a: u128, b: u128, f: impl Fn(u64, u64) -> u64) -> u128 {
    build::<BITS>(|i| f(lane::<BITS>(a, i), lane::<BITS>(b, i)))
}

/// Combines lanes, signed.
#[inline]
pub fn zip_signed<const BITS: u32>(a: u128, b: u128, f: impl Fn(i64, i64) -> i64) -> u128 {
    zip::<BITS>(a, b, |x, y| f(signed::<BITS>(x), signed::<BITS>(y)) as u64)
}

/// All ones where `f` holds.
#[inline]
pub fn mask<const BITS: u32>(a: u128, b: u128, f: impl Fn(i64, i64) -> bool) -> u128 {
    zip_signed::<BITS>(a, b, |x, y| -(f(x, y) as i64))
}

/// Clamps to a signed number of `BITS` bits.
pub fn saturate_signed<const BITS: u32>(x: i64) -> i64 {
    x.clamp(-(1 << (BITS - 1)), (1 << (BITS - 1)) - 1)
}

/// Clamps to an unsigned number of `BITS` bits.
pub fn saturate_unsigned<const BITS: u32>(x: i64) -> i64 {
    x.clamp(0, (1 << BITS) - 1)
}
