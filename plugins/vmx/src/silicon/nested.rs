//! The two-dimensional walk: the guest's own tables with the CPU's width, every address in them through EPT.
//!
//! See: SDM vol. 3C 29.3.3 EPT-Induced VM Exits

use super::ept::{self, EptFault, EptMemory, EptSilicon, EptTranslation, GpaAccess, Rights};
use vmtape_abi::Host;
use vmtape_arch::{
    access::AccessKind,
    exit::EptQualification,
    paging::Eptp,
};
use vmtape_kvm_mmu::walk::{Leaf, Tables, Update};

/// An EPT exit on its way out of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EptExit {
    Violation { gpa: u64, qualification: EptQualification, wide: bool },
    Misconfiguration { gpa: u64 },
}

/// The guest's paging structures as the CPU reaches them.
pub struct GuestTables<'a, M: EptMemory + ?Sized> {
    pub silicon: EptSilicon,
    pub eptp: Eptp,
    /// Advanced exit information: qualification bits 11:9.
    pub advanced: bool,
    pub memory: &'a mut M,
    pub host: &'a mut dyn Host,
    /// Where the final address was found to be.
    pub found: Option<EptTranslation>,
}

impl<M: EptMemory + ?Sized> GuestTables<'_, M> {
    fn reach(&mut self, gpa: u64, access: GpaAccess, leaf: Option<Leaf>) -> Result<EptTranslation, EptExit> {
        let result = ept::translate(&self.silicon, self.eptp, gpa, access, self.memory);
        result.map_err(|fault| match fault {
            EptFault::Misconfiguration => EptExit::Misconfiguration { gpa },
            EptFault::Violation(rights) => self.violation(gpa, access, rights, leaf, false),
            EptFault::WideGpa => self.violation(gpa, access, Rights::default(), leaf, true),
        })
    }

    /// See: SDM vol. 3C Table 28-7. Exit Qualification for EPT Violations
    fn violation(&self, gpa: u64, access: GpaAccess, rights: Rights, leaf: Option<Leaf>, wide: bool) -> EptExit {
        let advanced = leaf.filter(|_| self.advanced).map(|leaf| leaf.acc);
        let qualification = EptQualification::new()
            .with_read(access.read)
            .with_write(access.write)
            .with_fetch(access.fetch)
            .with_perm_r(rights.r)
            .with_perm_w(rights.w)
            .with_perm_x(rights.x)
            .with_gva_valid(true)
            .with_gva_translated(leaf.is_some())
            .with_gva_user(advanced.is_some_and(|acc| acc.user()))
            .with_gva_writable(advanced.is_some_and(|acc| acc.write()))
            .with_gva_nx(advanced.is_some_and(|acc| !acc.exec()));
        EptExit::Violation { gpa, qualification, wide }
    }
}

impl<M: EptMemory + ?Sized> Tables for GuestTables<'_, M> {
    type Stop = EptExit;

    fn read(&mut self, address: u64, size: u8) -> Result<Option<u64>, EptExit> {
        // With EPT's accessed and dirty flags every access to a guest paging structure counts as a write.
        // See: SDM vol. 3C 29.3.5 Accessed and Dirty Flags for EPT
        let access = if self.eptp.ad() { GpaAccess::READ_WRITE } else { GpaAccess::READ };
        let hpa = self.reach(address, access, None)?.hpa;
        Ok(match size {
            4 => self.host.read_u32(hpa).map(u64::from),
            _ => self.host.read_u64(hpa),
        })
    }

    fn update(&mut self, address: u64, old: u64, new: u64, size: u8) -> Result<Update, EptExit> {
        let hpa = self.reach(address, GpaAccess::READ_WRITE, None)?.hpa;
        Ok(match self.host.cmpxchg(hpa, old, new, size) {
            Some(true) => Update::Done,
            Some(false) => Update::Changed,
            None => Update::ReadOnly,
        })
    }

    fn translate(&mut self, address: u64, kind: AccessKind, leaf: Leaf) -> Result<(), EptExit> {
        let access = match kind {
            AccessKind::WRITE => GpaAccess::WRITE,
            AccessKind::FETCH => GpaAccess::FETCH,
            _ => GpaAccess::READ,
        };
        self.found = Some(self.reach(address, access, Some(leaf))?);
        Ok(())
    }
}
