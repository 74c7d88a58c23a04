//! The words of a digest.

use vmtape_arch::event::Event;
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
    Inject,
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

    /// An event on its way to the guest.
    pub(super) fn push_event(&mut self, event: &Event) {
        let code = u64::from(event.error_code) << 32 | u64::from(event.has_error_code.is_set()) << 24;
        let what = u64::from(event.kind.0) << 16 | u64::from(event.insn_len) << 8 | u64::from(event.vector);
        self.push(Place::Inject, 0, code | what);
    }

    /// Of what was pushed since the last one. `None`: nothing.
    pub(super) fn take_digest(&mut self) -> Option<u64> {
        if self.0.is_empty() {
            return None;
        }
        let digest = xxh3_64(self.0.as_bytes());
        self.0.clear();
        Some(digest)
    }
}
