//! What was found at an exit.

use super::{
    replayed::{Replayed, Woken},
    view::View,
};
use crate::{
    report::Row,
    signature::{self, Signature},
    state::Difference,
    text::{event_kind, event_text, note_line},
};
use vmtape_arch::note::Note;
use vmtape_traces::{
    Event, ExitGroup, Metadata,
    event::{Control, EntryEvent, EntryOutcome, Fault, RegisterChanges},
    text::fault_text,
};

/// What was found at an exit.
pub(super) struct Found {
    pub group: ExitGroup,
    /// What differs, as signatures have it and in a sentence.
    pub what: (String, String),
    pub rows: Vec<Row>,
    /// The first difference, unless it is one between events of one machine.
    pub difference: Option<Difference>,
}

impl Found {
    /// An entry before the exit, of which something else came.
    pub fn of_entry(group: &ExitGroup, entry: &EntryEvent, actual: &EntryOutcome) -> Self {
        let whose = match entry.vcpu == group.exit.vcpu {
            true => "the entry before it".to_owned(),
            false => format!("an entry of vCPU {} before it", entry.vcpu),
        };
        let (expected, actual) = (entry.outcome.to_string(), actual.to_string());
        Self {
            group: group.clone(),
            what: ("entry>entry".into(), format!("{whose}: {actual} instead of {expected}")),
            rows: vec![Row::new("entry", expected, actual)],
            difference: None,
        }
    }

    /// The entry before the exit, which ended a halt and gave the guest something else.
    pub fn of_woken(group: &ExitGroup, woken: &Woken) -> Self {
        let lines = |notes: &[Note]| match notes {
            [] => "nothing".to_owned(),
            notes => notes.iter().map(|note| note_line(note, 0, 0)).collect::<Vec<_>>().join("; "),
        };
        let (expected, actual) = (lines(&woken.expected), lines(&woken.actual));
        Self {
            group: group.clone(),
            what: ("entry>entry".into(), format!("the entry after the halt: {actual} instead of {expected}")),
            rows: vec![Row::new("entry", expected, actual)],
            difference: None,
        }
    }

    /// Events of the tape's own machine that it does not repeat.
    pub fn of_events(group: &ExitGroup, expected: Option<&Event>, actual: Option<&Event>) -> Self {
        if let (
            Some(Event::Resume { resume, changes, .. }),
            Some(Event::Resume { resume: other, changes: actual, .. }),
        ) = (expected, actual)
            && resume == other
        {
            return Self::of_changes(group, *changes, *actual);
        }
        let words = |event: Option<&Event>| event.map_or("nothing".to_owned(), event_text);
        let kind = |event: Option<&Event>| event.map_or("nothing".to_owned(), event_kind);
        let what = format!("{}>{}", kind(expected), kind(actual));
        let (expected, actual) = (words(expected), words(actual));
        Self {
            group: group.clone(),
            what: (what, format!("{actual} instead of {expected}")),
            rows: vec![Row::new("event", expected, actual)],
            difference: None,
        }
    }

    /// The handling, or the entry before it, left something else in registers than on the tape.
    fn of_changes(group: &ExitGroup, expected: RegisterChanges, actual: RegisterChanges) -> Self {
        let who = if expected.entry == actual.entry { "the handling" } else { "the entry before it" };
        let what = format!("{who} changes registers otherwise (digest {actual} instead of {expected})");
        Self {
            group: group.clone(),
            what: ("registers>registers".into(), what),
            rows: vec![Row::new("digest of changed registers", expected.to_string(), actual.to_string())],
            difference: None,
        }
    }

    /// What all handlings and entries up to an exit left in registers, though each of them looked like the tape's.
    pub fn of_chain(group: &ExitGroup, vcpu: u32) -> Self {
        let what = format!("an entry or handling of vCPU {vcpu} before it changes registers otherwise");
        Self {
            what: ("registers>registers".into(), what),
            rows: vec![Row::new("digest of all changed registers", "the tape's", "another one")],
            ..Self::of_differences(group, Vec::new())
        }
    }

    /// Ioctls that gave something else.
    pub fn of_differences(group: &ExitGroup, differences: Vec<Difference>) -> Self {
        let difference = differences.first().cloned();
        let what = difference.as_ref().map(|first| (first.name(), first.text())).unwrap_or_default();
        let rows = differences.iter().flat_map(Difference::rows).collect();
        Self { group: group.clone(), what, rows, difference }
    }

    /// A fault that was injected on the tape, and that this machine has no place for.
    pub fn of_missed_fault(group: &ExitGroup, fault: &Fault, names: &Metadata) -> Self {
        let text = fault_text(fault, names);
        Self {
            what: ("fault>nothing".into(), format!("nobody asks for the fault {text}")),
            rows: vec![Row::new("fault", text, "not asked for")],
            ..Self::of_differences(group, Vec::new())
        }
    }

    /// What two sides made of an exit; `None`: the same.
    pub fn of_views(replayed: &Replayed, group: &ExitGroup, expected: &View, actual: &View) -> Option<Self> {
        let guest = replayed.guest_width();
        let differences = expected.differences(actual, guest);
        (!differences.is_empty() || expected.outcome.word() != actual.outcome.word()).then(|| Self {
            what: signature::what(&differences, &expected.outcome, &actual.outcome, guest),
            ..Self::of_differences(group, differences)
        })
    }

    pub fn signature(&self) -> Signature {
        Signature::new(&self.what.0, if self.is_ioctl() { signature::NOWHERE } else { self.group.exit.rip })
    }

    pub fn is_ioctl(&self) -> bool {
        matches!(self.difference, Some(Difference::Ioctl { .. }))
    }
}

/// What the VMM did around an exit.
pub(super) fn taped(group: &ExitGroup) -> Vec<Control> {
    group.controls_before.iter().chain(&group.controls).cloned().collect()
}
