//! What may go wrong between a write and the VMM that is to hear of it, in the ioctls of dirty logging.

use crate::{fault_points::FaultPoint, mmu::Mmu, slots::Slot};
use vmtape_abi::{ALL_VCPUS, Errno, Host};

impl Mmu {
    /// KVM protects before it takes the snapshot, and in between a vCPU writes a page: the page, which this round tells of, but
    /// which can be written unseen from then on.
    pub(super) fn race_with_snapshot(&mut self, slot: &Slot, host: &mut dyn Host) -> Option<u64> {
        let page = self.fault(ALL_VCPUS, FaultPoint::PROTECT_BEFORE_SNAPSHOT, slot.id.into(), 0, host)?;
        let page = page.min((slot.size >> 12) - 1);
        if let Some(bitmap) = self.dirty.bitmaps.get_mut(&slot.id) {
            bitmap.set(page);
        }
        Some(page)
    }

    /// The bitmap on its way to userspace: an error comes after the pages are cleared, and so loses them.
    pub(super) fn copy_to_user(
        &self,
        slot: &Slot,
        mut bits: Vec<u64>,
        host: &mut dyn Host,
    ) -> Result<Vec<u64>, Errno> {
        let (id, words) = (slot.id.into(), bits.len() as u64);
        if let Some(answer) = self.fault(ALL_VCPUS, FaultPoint::GET_DIRTY_LOG_EFAULT, id, words, host) {
            return Err(FaultPoint::errno(answer));
        }
        for (at, word) in (0..).zip(&mut bits) {
            if self.fault(ALL_VCPUS, FaultPoint::DIRTY_WORD_DROPPED, id, at, host).is_some() {
                *word = 0;
            }
        }
        Ok(bits)
    }
}
