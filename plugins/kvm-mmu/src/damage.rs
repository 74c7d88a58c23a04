//! Faults of the MMU's own: what a fault plan does to entries.

use crate::{
    fault_points::FaultPoint,
    mmu::{Config, Mmu},
    spte::Format,
};
use vmtape_abi::Host;
use vmtape_arch::paging::bits;

impl Mmu {
    /// Asks a fault point, in runs that have faults.
    pub fn fault(&self, vcpu: u32, point: FaultPoint, a: u64, b: u64, host: &mut dyn Host) -> Option<u64> {
        if self.armed { point.ask(vcpu, a, b, host) } else { None }
    }

    /// A leaf that was just stored is not what KVM wanted to store.
    pub(crate) fn damage(&mut self, vcpu: u32, gfn: u64, sptep: u64, spte: u64, host: &mut dyn Host) {
        if let Some(flipped) = self.fault(vcpu, FaultPoint::SPTE_FLIP, gfn, spte, host) {
            self.pages.write(sptep, spte ^ flipped);
        }
    }

    /// `is_rsvd_spte`: a present entry that silicon refuses, and that is not a mark of MMIO.
    pub(crate) fn is_damaged(&self, spte: u64) -> bool {
        let Config { format, host_width, .. } = self.config;
        let width = match format {
            Format::Ept { .. } => host_width,
            Format::X86 { width } => width,
        };
        format.is_present(spte) && spte & bits(width.into(), 51) != 0
    }
}
