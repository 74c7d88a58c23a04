//! Faults of the MMU's own: what a fault plan does to entries, and how KVM fares with one that is bent.

use crate::{
    fault_points::FaultPoint,
    mmu::Mmu,
    shadow::Position,
    spte::Format,
    tdp::{ept::ept_misconfigured, npt::npt_paging},
    walk::{Mode, Paging},
};
use vmtape_abi::{Errno, Host};
use vmtape_arch::paging::{EptEntry, Pte};

impl Mmu {
    /// Asks a fault point, in runs that have faults.
    pub fn fault(&self, vcpu: u32, point: FaultPoint, a: u64, b: u64, host: &mut dyn Host) -> Option<u64> {
        if self.armed { point.ask(vcpu, a, b, host) } else { None }
    }

    /// An entry that was just stored is not what KVM wanted to store.
    pub(crate) fn damage(
        &mut self,
        vcpu: u32,
        point: FaultPoint,
        gfn: u64,
        sptep: u64,
        spte: u64,
        host: &mut dyn Host,
    ) {
        if let Some(flipped) = self.fault(vcpu, point, gfn, spte, host) {
            self.pages.write(sptep, spte ^ flipped);
        }
    }

    /// The entries of silicon's tables for an address, each with its level, from the root to the lowest one.
    fn way(&self, vcpu: u32, address: u64) -> Vec<(u8, u64)> {
        let mmu = self.context(vcpu);
        if self.is_tdp_mmu(vcpu) {
            let Some(root) = mmu.root else { return Vec::new() };
            return self.tdp_entries(root.hpa, mmu.root_role.level(), address >> 12);
        }
        let below = |at: &Position| self.shadow_next(*at, address);
        let positions = std::iter::successors(self.shadow_start(vcpu, address), below);
        positions.map(|at| (at.level, self.pages.read(at.sptep))).collect()
    }

    /// Whether a large page of two-dimensional paging maps an address, in a run that has faults.
    pub fn maps_large(&self, vcpu: u32, gpa: u64) -> bool {
        self.armed && self.is_tdp_mmu(vcpu) && self.way(vcpu, gpa).last().is_some_and(|(level, _)| *level > 1)
    }

    /// The lowest entry for an address links to what is no page of KVM's. KVM would go on with whatever lies there (struct
    /// kvm_mmu_page is found through the frame), and ends in an oops, or in KVM_BUG_ON where it looks.
    /// See: KVM mmu/spte.h to_shadow_page(), mmu/mmu.c pte_list_remove()
    pub(crate) fn refuse_astray(&self, vcpu: u32, address: u64, host: &mut dyn Host) -> Result<(), Errno> {
        if !self.armed {
            return Ok(());
        }
        let format = self.config.format;
        match self.way(vcpu, address).last() {
            Some((level, spte)) if format.is_present(*spte) && !format.is_last(*spte, *level) => {
                host.log(2, &format!("kvm: an entry for {address:#x} leads to no page table: {spte:#x}"));
                Err(Errno::EIO)
            }
            _ => Ok(()),
        }
    }

    /// `get_mmio_spte`: an entry on the way to an address has reserved bits and is not a mark of MMIO.
    pub(crate) fn damaged(&self, vcpu: u32, address: u64) -> Option<u64> {
        let format = self.config.format;
        let way = self.way(vcpu, address);
        // "Skip reserved bits checks on the terminal leaf if it's not a valid SPTE."
        let mut present = way.into_iter().filter(|(_, spte)| format.is_present(*spte));
        present.find(|(level, spte)| self.is_reserved(vcpu, *spte, *level)).map(|(_, spte)| spte)
    }

    /// `is_rsvd_spte`.
    fn is_reserved(&self, vcpu: u32, spte: u64, level: u8) -> bool {
        if let Format::Ept { .. } = self.config.format {
            return ept_misconfigured(EptEntry::from_bits(spte), level, &self.config);
        }
        let mode = match self.context(vcpu).root_role.level() {
            5 => Mode::Level5,
            4 => Mode::Level4,
            _ => Mode::Pae,
        };
        let paging = Paging { mode, ..npt_paging(&self.config, 0, 4) };
        paging.is_reserved(Pte::from_bits(spte), level)
    }
}
