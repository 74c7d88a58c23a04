//! What a side did about a taped exit, as far as the guest can see it.

use super::replayed::{Handling, Replayed};
use crate::{
    explain::{self, Outcome},
    observer::{Entry, Observation},
    seen::{Seen, visible},
    state::Difference,
};
use vmtape_arch::{PAGE_SHIFT, note::Note, paging::Pte};
use vmtape_traces::{ExitGroup, event::Data};

/// What a side did about an exit.
pub struct View {
    pub outcome: Outcome,
    seen: Vec<Seen>,
    /// Registers that the exit set, where notes tell them.
    registers: Vec<(&'static str, u64)>,
    /// The guest's entries on the way to the address in question: where they are, and what they hold at the end.
    entries: Vec<(u64, u64)>,
    vcpu: u32,
}

impl View {
    /// What a tape alone tells; `None`: it has no exit there. Where the guest's entries lie is not on it.
    pub fn of_group(group: Option<&ExitGroup>) -> Self {
        let nothing = ExitGroup::default();
        let group = group.unwrap_or(&nothing);
        Self::new(explain::outcome(&Observation::of(group), false), group, &group.notes, Vec::new())
    }

    /// What the tape has. The replayed machine knows where the guest's entries are.
    pub(super) fn of_tape(replayed: &Replayed, group: &ExitGroup) -> Self {
        let taped = |entry: Entry| Some((entry.gpa?, taped_entry(replayed, group, &entry)?));
        let entries = places(replayed, group).into_iter().filter_map(taped).collect();
        Self::new(explain::outcome(&Observation::of(group), false), group, &group.notes, entries)
    }

    /// What a replayed machine did.
    pub(super) fn of_replayed(replayed: &Replayed, group: &ExitGroup, handling: &Handling) -> Self {
        let answer = replayed.answer();
        let told = ExitGroup {
            exit: group.exit,
            notes: answer.notes.clone(),
            resume: answer.resume,
            ..ExitGroup::default()
        };
        let mut observations = Observation::of(&told);
        if let Handling::Fault(fault) = handling {
            observations.push(Observation::Fault(*fault));
        }
        let mut view = match handling {
            Handling::Ended { alike: true } => Self::of_tape(replayed, group),
            _ => Self::new(
                explain::outcome(&observations, *handling == Handling::Endless),
                group,
                &answer.notes,
                Vec::new(),
            ),
        };
        if let Handling::Fault(fault) = handling {
            view.seen.push(Seen::exception(fault.vector, fault.has_error_code.is_set(), fault.error_code));
        }
        let held = |entry: Entry| Some((entry.gpa?, entry.after));
        view.entries = places(replayed, group).into_iter().filter_map(held).collect();
        view
    }

    fn new(outcome: Outcome, group: &ExitGroup, notes: &[Note], entries: Vec<(u64, u64)>) -> Self {
        Self {
            outcome,
            seen: visible(notes).filter_map(Seen::of).collect(),
            registers: visible(notes).flat_map(registers).collect(),
            entries,
            vcpu: group.exit.vcpu,
        }
    }

    /// What differs, the most telling first.
    pub fn differences(&self, other: &Self, guest_width: u8) -> Vec<Difference> {
        let mut differences = Vec::new();
        // Of an instruction that goes on natively silicon has still to set accessed and dirty bits.
        if ![&self.outcome, &other.outcome].contains(&&Outcome::Completes) {
            let held =
                |gpa: u64| other.entries.iter().find(|(other, _)| *other == gpa).map(|(_, value)| *value);
            let pairs = self.entries.iter().filter_map(|&(gpa, expected)| Some((gpa, expected, held(gpa)?)));
            let entries = pairs.map(|(gpa, expected, actual)| Difference::Memory { gpa, expected, actual });
            differences.extend(entries.filter(|entry| entry.accessed_dirty().is_some()));
        }
        let pairs = self.registers.iter().zip(&other.registers);
        differences.extend(pairs.filter(|(a, b)| a.0 == b.0 && a.1 != b.1).map(|(a, b)| {
            Difference::Register { vcpu: self.vcpu, name: a.0.to_owned(), expected: a.1, actual: b.1 }
        }));
        if self.seen != other.seen {
            differences.push(Difference::Seen { expected: self.seen.clone(), actual: other.seen.clone() });
        }
        differences.sort_by_key(|difference| difference.rank(guest_width));
        differences
    }
}

/// What an exit's notes say of registers, in the order in which machines are compared.
fn registers(note: &Note) -> Vec<(&'static str, u64)> {
    match *note {
        Note::Cpuid { eax, ebx, ecx, edx, .. } => [("RAX", eax), ("RCX", ecx), ("RDX", edx), ("RBX", ebx)]
            .map(|(name, value)| (name, value.into()))
            .into(),
        Note::Msr { write: false, data, .. } => vec![("RAX", data & 0xffff_ffff), ("RDX", data >> 32)],
        _ => Vec::new(),
    }
}

/// The guest's entries for the address that the exit is about, in memory's order.
fn places(replayed: &Replayed, group: &ExitGroup) -> Vec<Entry> {
    let (Some(gva), Some(state)) =
        (explain::address_of(&group.exit.exit), replayed.machine.state(group.exit.vcpu))
    else {
        return Vec::new();
    };
    let mut entries = explain::tables(&replayed.machine, state, gva);
    entries.sort_by_key(|entry| entry.gpa);
    entries
}

/// What an entry holds when a taped exit is over: as it was read first, with the bits that silicon and KVM set in it. What the
/// tape's reader knows from before is not read again on it, but the walks tell.
pub(super) fn taped_entry(replayed: &Replayed, group: &ExitGroup, entry: &Entry) -> Option<u64> {
    let (place, level) = (entry.gpa?, entry.level);
    let hpa = replayed.machine.memory().hpa(place)?;
    let notes = || group.before.iter().chain(&group.notes);
    let read = group.reads.iter().find_map(|(at, data)| match data {
        Data::U64(value) if *at == hpa => Some(*value),
        _ => None,
    });
    // KVM may walk for the instruction too.
    let about = explain::address_of(&group.exit.exit).map(|gva| gva >> PAGE_SHIFT);
    let walked = || {
        let mut walk = None;
        notes().find_map(|note| match *note {
            Note::SiliconStep { gpa, before, .. } if gpa == place => Some(before),
            Note::PagetableWalk { address, .. } => {
                walk = Some(address >> PAGE_SHIFT);
                None
            }
            Note::PagingElement { pte, level: of } if of == level && walk == about => Some(pte),
            _ => None,
        })
    };
    let first = Pte::from_bits(read.or_else(walked)?);
    let last = notes().fold(first, |pte, note| match *note {
        Note::SiliconStep { gpa, after, .. } if gpa == place => Pte::from_bits(after),
        Note::SetAccessed { gpa } if gpa == place => pte.with_a(true),
        Note::SetDirty { gpa } if gpa == place => pte.with_d(true),
        _ => pte,
    });
    Some(last.into_bits())
}
