//! Random values that like boundaries.

use crate::silicon::DATA_SIZE;
use rand_pcg::{Pcg64, rand_core::Rng};

/// One of `n` numbers from zero.
pub fn range(rng: &mut Pcg64, n: u64) -> u64 {
    rng.next_u64() % n
}

/// True in `percent` of all cases.
pub fn chance(rng: &mut Pcg64, percent: u64) -> bool {
    range(rng, 100) < percent
}

/// One of the elements.
pub fn pick<T: Copy>(rng: &mut Pcg64, from: &[T]) -> T {
    from[range(rng, from.len() as u64) as usize]
}

/// An integer: small, a power of two or near one, sign-extended from some width, or anything.
pub fn value(rng: &mut Pcg64) -> u64 {
    let bit = 1u64 << range(rng, 64);
    match range(rng, 12) {
        0 => 0,
        1 => u64::MAX,
        2 => bit,
        3 => bit - 1,
        4 => !bit,
        5 => bit.wrapping_neg(),
        6 => range(rng, 256),
        7 => rng.next_u64() as i8 as u64,
        8 => rng.next_u64() as i16 as u64,
        9 => rng.next_u64() as i32 as u64,
        _ => rng.next_u64(),
    }
}

/// An encoding with `fraction` stored bits below `exponent` bits: zeros, denormals, infinities, NaNs, numbers near one,
/// near the ends of the range, or anything.
fn float(rng: &mut Pcg64, fraction: u32, exponent: u32) -> u64 {
    let top = (1u64 << exponent) - 1;
    let bias = top >> 1;
    let low = (1u64 << fraction) - 1;
    let noise = rng.next_u64() & low;
    let significand = pick(rng, &[0, 1, low, 1 << (fraction - 1), low >> 1, noise, noise]);
    let biased = match range(rng, 10) {
        0 => 0,
        1 => top,
        2 => 1,
        3 => top - 1,
        4 | 5 => bias + range(rng, 64),
        6 => bias.wrapping_sub(range(rng, 64)) & top,
        7 => bias / 2 + range(rng, 8),
        8 => bias + bias / 2 - range(rng, 8),
        _ => range(rng, top + 1),
    };
    range(rng, 2) << (fraction + exponent) | biased << fraction | significand
}

pub fn single(rng: &mut Pcg64) -> u64 {
    float(rng, 23, 8)
}

pub fn double(rng: &mut Pcg64) -> u64 {
    float(rng, 52, 11)
}

/// A double-extended encoding in 16 bytes, unsupported ones included.
pub fn extended(rng: &mut Pcg64) -> [u8; 16] {
    let narrow = float(rng, 47, 15);
    let integer_bit = u64::from(narrow >> 47 & 0x7fff != 0) ^ u64::from(chance(rng, 4));
    let significand = integer_bit << 63
        | match range(rng, 4) {
            0 => (narrow & ((1 << 47) - 1)) << 16,
            1 => 0,
            2 => 1 << range(rng, 63),
            _ => rng.next_u64() >> 1,
        };
    let value = u128::from(significand) | u128::from(narrow >> 47) << 64;
    value.to_le_bytes()
}

/// Sixteen bytes: integers, singles, doubles or noise.
pub fn vector(rng: &mut Pcg64) -> [u64; 2] {
    match range(rng, 8) {
        0..3 => [single(rng) | single(rng) << 32, single(rng) | single(rng) << 32],
        3..6 => [double(rng), double(rng)],
        6 => [value(rng), value(rng)],
        _ => [rng.next_u64(), rng.next_u64()],
    }
}

/// Content for the data pages.
pub fn pages(rng: &mut Pcg64) -> [u8; DATA_SIZE] {
    let mut pages = [0; DATA_SIZE];
    rng.fill_bytes(&mut pages);
    pages
}
