//! One exit after the other, held against a host: each kind of evidence has a file.

mod cpuid;
mod instruction;
mod memory;
mod msr;
mod registers;

use super::{faults, found::Found, slots::Slot, target::Target};
use crate::{
    check::{
        finding::{Finding, Severity},
        footprint::{Kind, Place},
        tables::Entry,
    },
    exempt,
};
use std::collections::BTreeMap;
use vmtape_arch::{
    PAGE_SHIFT,
    cpuid::{CpuidEntry, find},
    exit::reason_name,
    level::Level,
    note::Note,
    paging::Pte,
};
use vmtape_traces::ExitGroup;

/// What is to be said of an exit.
pub enum Answer {
    /// The host does the same about it.
    Alike,
    /// The host takes another exit, of which the guest sees nothing.
    Otherwise { here: String, there: String },
    /// The guest sees a difference.
    Differs,
    /// The host has no part in it.
    Exempt(&'static str),
    /// It does not tell enough.
    Open(String),
}

const NESTED: &str = "exits of a guest's guest, or about one: both levels' tables would have to be known";
/// What is left open and has to do with widths.
pub const OF_WIDTH: [&str; 3] = [NESTED, memory::NO_ADDRESS, memory::NO_WALK];

/// A trace's guest on a host.
pub struct Judge<'t> {
    target: &'t Target,
    /// What the guest's CPUID instructions gave it.
    table: Vec<CpuidEntry>,
    /// Events that were judged.
    pub events: u64,
    found: BTreeMap<String, Found>,
    /// Findings of the exit at hand: (the sentence, the guest sees it).
    now: Vec<(String, bool)>,
    exit: Option<u64>,
}

impl<'t> Judge<'t> {
    pub fn new(target: &'t Target, table: Vec<CpuidEntry>) -> Self {
        Self { target, table, events: 0, found: BTreeMap::new(), now: Vec::new(), exit: None }
    }

    /// MAXPHYADDR of the guest, where it has asked for it.
    pub fn guest_phys_bits(&self) -> Option<u8> {
        find(&self.table, 0x8000_0008, 0).map(|leaf| leaf.eax as u8)
    }

    /// The findings, the first first.
    pub fn into_found(self) -> Vec<Found> {
        let mut found: Vec<_> = self.found.into_values().collect();
        found.sort_by_key(|found| found.finding.exit.unwrap_or(0));
        found
    }

    /// Where the last exit was, for what was found at it first.
    pub fn is_at(&mut self, vcpu: u32, rip: u64, time: u64) {
        for (sentence, _) in &self.now {
            if let Some(found) = self.found.get_mut(sentence).filter(|found| found.times == 1) {
                (found.vcpu, found.rip, found.time) = (vcpu, rip, time);
            }
        }
    }

    pub fn exit(&mut self, group: &ExitGroup) -> Answer {
        self.now.clear();
        self.exit = Some(group.number);
        let exit = &group.exit.exit;
        let nested = |note: &Note| {
            matches!(
                note,
                Note::NestedVmenter { .. } | Note::NestedVmexit { .. } | Note::NestedVmexitInject { .. }
            )
        };
        if exit.level != Level::L1 || group.notes.iter().any(nested) {
            return Answer::Open(NESTED.into());
        }
        if exempt::is_host_exit(exit) {
            return Answer::Exempt(exempt::HOST_SCHEDULING.name);
        }
        let (mut judged, mut open) = (false, None);
        for note in &group.notes {
            match self.note(note) {
                None => {}
                Some(Ok(())) => judged = true,
                Some(Err(why)) => open = Some(why),
            }
        }
        let answer = match faults::of(group) {
            Some(fault) => self.fault(group, fault),
            None => self.instruction(group, judged),
        };
        if self.now.iter().any(|(_, seen)| *seen) {
            return Answer::Differs;
        }
        match (answer, open) {
            (Answer::Alike | Answer::Open(_), Some(why)) => Answer::Open(why.into()),
            (answer, _) => answer,
        }
    }

    /// An event outside exits.
    pub fn loose(&mut self, note: &Note) -> Result<(), &'static str> {
        (self.exit, _) = (None, self.now.clear());
        match (self.note(note), note) {
            (Some(judged), _) => judged,
            (None, Note::PageFault { .. }) => {
                Err("page faults without their exit, of which nothing tells whether the address is physical")
            }
            _ => Ok(()),
        }
    }

    /// A memory slot that a line tells of.
    pub fn slot(&mut self, slot: Slot) -> bool {
        (self.exit, _) = (None, self.now.clear());
        self.reach(&Place::slot(slot.gpa, slot.size));
        true
    }

    fn find(&mut self, finding: Finding) {
        let seen = finding.severity != Severity::Caution;
        let key = finding.sentence.clone();
        self.now.push((key.clone(), seen));
        let found = self.found.entry(key).or_insert_with(|| {
            let finding = Finding { exit: finding.exit.or(self.exit), ..finding };
            Found { finding, times: 0, vcpu: 0, rip: 0, time: 0 }
        });
        found.times += 1;
    }

    fn reach(&mut self, place: &Place) {
        self.events += 1;
        let place = Place { exit: self.exit, ..place.clone() };
        self.target.reach(&place).into_iter().for_each(|finding| self.find(finding));
    }

    /// An event. `None`: there is nothing of a host in it. Err: it does not tell enough.
    fn note(&mut self, note: &Note) -> Option<Result<(), &'static str>> {
        match *note {
            Note::Mmio { gpa, .. } | Note::FastMmio { gpa } => self.reach(&Place::device(gpa, 0)),
            Note::HandleMmioPageFault { gfn, .. } | Note::MarkMmioSpte { gfn, .. } => {
                self.reach(&Place::device(gfn << PAGE_SHIFT, 0));
            }
            Note::SpteRequested { gfn, level, .. } => {
                let size = 1u64 << (PAGE_SHIFT + 9 * u32::from(level.clamp(1, 5) - 1));
                let first = (gfn << PAGE_SHIFT) & !(size - 1);
                self.reach(&Place { kind: Kind::Page, ..Place::slot(first, size) });
            }
            Note::PagingElement { pte, level } if Pte::from_bits(pte).p() => {
                self.reach(&Place::entry(Entry { level, at: 0, value: pte }, self.exit).nowhere());
            }
            Note::Cpuid { function, index, eax, ebx, ecx, edx, found, .. } => {
                let entry = CpuidEntry { function, index, eax, ebx, ecx, edx, ..CpuidEntry::default() };
                let told = if found { self.leaf(&entry) } else { Ok(()) };
                self.events += u64::from(told.is_ok());
                return Some(told);
            }
            Note::Msr { write, index, exception, .. } => {
                let told = self.msr(write, index, exception);
                self.events += u64::from(told.is_ok());
                return Some(told);
            }
            Note::Cr { write: true, number, value } => self.control_register(number, value),
            Note::Cr { .. } | Note::Hypercall { .. } => self.events += 1,
            _ => return None,
        }
        Some(Ok(()))
    }
}

fn name(group: &ExitGroup) -> String {
    let exit = &group.exit.exit;
    reason_name(exit.isa, exit.reason)
        .map_or_else(|| format!("{} {:#x}", exit.isa, exit.reason), str::to_owned)
}
