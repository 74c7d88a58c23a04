//! Faults: addresses, and the walks that led to them.

use super::{Answer, Judge, name};
use crate::{
    check::{
        finding::{Finding, Pin, Severity, Subject},
        footprint::{Kind, Place},
        tables::Entry,
    },
    evidence::faults::{self, Fault},
};
use vmtape_arch::note::Note;
use vmtape_traces::ExitGroup;

const RESERVED: &str = "KVM commit 3edd68399dc1: KVM_CAP_SMALLER_MAXPHYADDR";
pub(super) const NO_ADDRESS: &str =
    "faults without their address: neither kvm_page_fault nor kvm_mmio was traced";
pub(super) const NO_WALK: &str = "page faults without their walk: kvm_mmu_paging_element was not traced";

impl Judge<'_> {
    pub(super) fn fault(&mut self, group: &ExitGroup, fault: Fault) -> Answer {
        match fault {
            Fault::Below { gpa: None, .. } => return Answer::Open(NO_ADDRESS.into()),
            Fault::Below { gpa: Some(gpa), device } => {
                let kind = if device { Kind::Device } else { Kind::Page };
                self.reach(&Place { kind, ..Place::device(gpa, group.number) });
            }
            Fault::Page => {
                let walked = group.notes.iter().any(|note| matches!(note, Note::PagingElement { .. }));
                let mapped = group.notes.iter().any(tells_gpa);
                if faults::meets_reserved_bits(group) {
                    if !walked {
                        return Answer::Open(NO_WALK.into());
                    }
                    self.illegal_entry(group);
                } else if !walked && !mapped {
                    return Answer::Open(NO_WALK.into());
                }
            }
        }
        match faults::there(group, fault, self.target) {
            Some(there) => Answer::Otherwise { here: name(group), there },
            None => Answer::Alike,
        }
    }

    /// The walk ended at reserved bits where the trace was made. They are reserved there too if that processor, or a KVM that
    /// hides its width, has them so.
    fn illegal_entry(&mut self, group: &ExitGroup) {
        let last = group.notes.iter().rev().find_map(|note| match *note {
            Note::PagingElement { pte, level } => Some(Entry { level, at: 0, value: pte }),
            _ => None,
        });
        let Some(entry) = last else { return };
        let place = Place::entry(entry, Some(group.number)).nowhere();
        let silicon = self.target.passport.silicon.phys_bits;
        let (bits, narrowest) = (place.bits(), self.guest_phys_bits().unwrap_or(0));
        let of_address = self.guest_phys_bits().is_some_and(|guest| bits > guest);
        if !of_address || bits > silicon || self.target.hides_width {
            return;
        }
        let sentence = format!(
            "bits {}:{narrowest} of paging entries are reserved for the guest and not for {}, whose KVM does not hide it: \
             an entry that faults in the trace does not fault there",
            silicon - 1,
            self.target.name()
        );
        let finding = Finding::new(Severity::Breaks, Subject::ReservedBits, sentence, RESERVED);
        let pin = Pin::HideWidth(self.target.name().to_owned());
        self.find(finding.at(Some(&place)).pin(pin));
    }
}

/// Whether an event tells which guest physical address a page fault came to.
fn tells_gpa(note: &Note) -> bool {
    matches!(
        note,
        Note::SpteRequested { .. }
            | Note::HandleMmioPageFault { .. }
            | Note::MarkMmioSpte { .. }
            | Note::Mmio { .. }
    )
}
