//! The words of a digest.

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::IntoBytes;

/// What a word of the digest is.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Value = 1,
    Change,
    Msr,
    Fpu,
    FpuChange,
    Rest,
}

/// Words on their way into a digest, little-endian: none, for most exits.
#[derive(Clone, Debug, Default)]
pub(super) struct Words(Vec<u64>);

impl Words {
    pub(super) fn push(&mut self, place: Place, number: usize, value: u64) {
        self.0.extend([((place as u64) << 32 | number as u64).to_le(), value.to_le()]);
    }

    pub(super) fn push_change(&mut self, place: Place, number: usize, change: u64) {
        if change != 0 {
            self.push(place, number, change);
        }
    }

    /// Of what was pushed since the last one. Zero: nothing.
    pub(super) fn take_digest(&mut self) -> u16 {
        if self.0.is_empty() {
            return 0;
        }
        let digest = xxh3_64(self.0.as_bytes()) as u16;
        self.0.clear();
        digest.max(1)
    }
}
