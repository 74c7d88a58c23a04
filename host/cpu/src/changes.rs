//! A digest of everything that ever happened to memory.
//!
//! It is the sum, modulo 2^128, over all writes and the aligned quadwords that they touch, of (after - before) times a weight
//! that hangs on the quadword and on the instruction. Within one instruction the differences telescope, so that it does
//! not matter who writes (the program, a page walk, KVM's emulator), in which pieces, and what is there in between: memory
//! is told as it was between any two instructions, and no more. Two machines whose memory was equal at first and whose
//! digests are equal had equal memory after every instruction, but for a chance of one in 2^64.
//!
//! It costs about as much as the store itself, so it is kept only on demand.

use std::cell::Cell;
use vmtape_jit::WEIGHTS;

/// Bytes of a quadword.
pub(crate) const WORD: usize = 8;

/// The digest so far.
#[derive(Default)]
pub(crate) struct Changes {
    sum: Cell<u128>,
    kept: Cell<bool>,
}

impl Changes {
    pub(crate) fn sum(&self) -> u128 {
        self.sum.get()
    }

    /// After changes that compiled code has counted.
    pub(crate) fn set(&self, sum: u128) {
        self.sum.set(sum);
    }

    pub(crate) fn keep(&self) {
        self.kept.set(true);
    }

    pub(crate) fn forget(&self) {
        self.sum.set(0);
        self.kept.set(false);
    }

    /// Whether somebody wants it.
    #[inline(always)]
    pub(crate) fn are_kept(&self) -> bool {
        self.kept.get()
    }

    /// Up to eight bytes at an address were changed by an instruction.
    #[inline(always)]
    pub(crate) fn add<const N: usize>(&self, address: u64, before: [u8; N], after: [u8; N], icount: u64) {
        let (before, after) = (zero_extend(before), zero_extend(after));
        let (word, at) = (address / WORD as u64, address as usize % WORD);
        let shift = at as u32 * u8::BITS;
        self.add_word(word, before << shift, after << shift, icount);
        if at + N > WORD {
            let shift = u64::BITS - shift;
            self.add_word(word + 1, before >> shift, after >> shift, icount);
        }
    }

    #[inline(always)]
    fn add_word(&self, word: u64, before: u64, after: u64, icount: u64) {
        let weight = u128::from(weight(word, icount));
        let sum = self.sum.get().wrapping_add(u128::from(after) * weight);
        self.sum.set(sum.wrapping_sub(u128::from(before) * weight));
    }
}

#[inline(always)]
fn zero_extend<const N: usize>(bytes: [u8; N]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|n| if n < N { bytes[n] } else { 0 }))
}

/// See: wyhash, Wang Yi, final version 4: `wymix` of two numbers, with its first two secrets.
#[inline(always)]
fn weight(word: u64, icount: u64) -> u64 {
    let product = u128::from(word ^ WEIGHTS[0]) * u128::from(icount ^ WEIGHTS[1]);
    product as u64 ^ (product >> u64::BITS) as u64
}
