//! Memory that follows a guest: pages whose contents have not arrived.

use super::Services;
use vmtape_abi::MemoryStatus;
use vmtape_arch::{PAGE_SIZE, memory::Supply};

/// A page of a block, and what it holds.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub slot: u32,
    pub page: u64,
    pub bytes: [u8; PAGE_SIZE as usize],
}

/// Brings pages from where a guest has come from.
pub trait Pager {
    /// Asks for a page, and gives what has arrived: that page and others, or not.
    fn fetch(&mut self, slot: u32, page: u64) -> Vec<Arrived>;
}

impl Services {
    /// Pages of a block are elsewhere; they are waited for.
    pub(crate) fn pages_follow(&mut self, hpa: u64) {
        self.memory.remote.insert(hpa);
        self.memory.absent.take(hpa..hpa + PAGE_SIZE, Supply::DEMAND);
    }

    /// Has a page come from where it is.
    pub(crate) fn fetch(&mut self, hpa: u64) -> MemoryStatus {
        let Some((slot, page)) = self.memory.block_page(hpa) else { return MemoryStatus::REFUSED };
        let Some(mut pager) = self.pager.take() else { return MemoryStatus::MISSING };
        let arrived = pager.fetch(slot, page);
        self.pager = Some(pager);
        arrived.iter().for_each(|page| self.arrive(page));
        if self.memory.remote.contains(&hpa) { MemoryStatus::MISSING } else { MemoryStatus::READY }
    }

    /// A page that is here already may hold more than it had.
    fn arrive(&mut self, arrived: &Arrived) {
        let Some(hpa) = self.memory.page_of_block(arrived.slot, arrived.page) else { return };
        if !self.memory.remote.remove(&hpa) {
            return;
        }
        let before = self.ram().changes();
        self.ram().write(hpa, &arrived.bytes);
        let change = self.ram().changes().wrapping_sub(before);
        self.memory.uncounted = self.memory.uncounted.wrapping_add(change);
        self.memory.absent.put(hpa..hpa + PAGE_SIZE);
    }
}
