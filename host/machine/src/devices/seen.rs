//! What a guest's devices saw, as a number: on the tape, whether an access left the guest or not.

use super::Devices;
use serde::{Deserialize, Serialize};
use vmtape_abi::{BusOp, BusSpace};
use vmtape_arch::PAGE_SHIFT;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// All accesses so far, in order, with the instruction, the address, and what was written or read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub accesses: u64,
    /// Over each access and the hash before it.
    pub hash: u64,
}

impl Devices {
    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// Takes note of an access that a device has answered, or nobody.
    ///
    /// The local APIC is left out: silicon that virtualizes it does so without an access.
    pub(crate) fn see(&mut self, vcpu: u32, op: &BusOp, claimed: bool, icount: u64) {
        let is_memory = match op.space {
            BusSpace::KERNEL_PIO if claimed => false,
            BusSpace::KERNEL_MMIO if claimed => true,
            BusSpace::USER_PIO => false,
            BusSpace::USER_MMIO => true,
            _ => return,
        };
        if is_memory && op.address >> PAGE_SHIFT == self.apic_base(vcpu).frame() {
            return;
        }
        let data = op.data & u64::MAX >> (64 - 8 * u32::from(op.size.clamp(1, 8)));
        let what = u64::from(op.size) << 2 | u64::from(op.write.is_set()) << 1 | u64::from(is_memory);
        let words = [icount, u64::from(vcpu) << 32 | what, op.address, data];
        let mut bytes = [0; 32];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        let hash = xxh3_64_with_seed(&bytes, self.seen.hash);
        self.seen = Seen { accesses: self.seen.accesses + 1, hash };
    }
}
