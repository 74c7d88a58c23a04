//! The events of an exit's handling, as one machine told them twice.

use crate::exempt;
use std::collections::{BTreeMap, BTreeSet};
use vmtape_arch::{
    exit::{Resume, ResumeKind},
    level::Place,
    note::Note,
};
use vmtape_traces::{Event, ExitGroup, Rest, event::RegisterChanges};

/// What the handlers did about the last exit.
#[derive(Default)]
pub(super) struct Answer {
    /// What came before the last exit began: silicon's walk, entries, other exits.
    pub before: Vec<Note>,
    /// Whose each of them is.
    pub before_of: Vec<u32>,
    /// Where in `before` the entry begins that ended a halt, and whether the machine knows why it ended.
    pub woken: Option<(usize, bool)>,
    pub notes: Vec<Note>,
    /// Whose each of them is.
    pub notes_of: Vec<u32>,
    /// As `ExitGroup::places`.
    pub places: Vec<(usize, Place)>,
    /// How many of them came before the end of the handling.
    pub handled: usize,
    pub resume: Option<Resume>,
    pub changes: RegisterChanges,
}

impl Answer {
    /// What entries told before the exit, and whose it is, without that which ended a halt: it stands elsewhere on the tape.
    fn entered(&self) -> impl Iterator<Item = (u32, &Note)> {
        let woken = self.woken.map_or(0..0, |(at, _)| {
            let behind = self.before.get(at..).unwrap_or_default();
            let end = behind.iter().position(|note| matches!(note, Note::Entry { .. }));
            at..end.map_or(self.before.len(), |end| at + end + 1)
        });
        let all = self.before_of.iter().copied().zip(&self.before).enumerate();
        all.filter(move |(n, (_, note))| !woken.contains(n) && is_of_entry(note)).map(|(_, told)| told)
    }

    /// Begins anew, in the memory that it has.
    pub fn clear(&mut self) {
        self.before.clear();
        self.before_of.clear();
        self.woken = None;
        self.notes.clear();
        self.notes_of.clear();
        self.places.clear();
        (self.handled, self.resume, self.changes) = (0, None, RegisterChanges::NONE);
    }
}

/// What is to be said of two tellings.
pub(super) enum Compared {
    Equal,
    /// Only by what silicon did between exits ([`exempt::SILICON_BITS`]).
    Exempt,
    /// The first events that differ, expected and actual.
    Different(Box<[Option<Event>; 2]>),
}

/// Whether the tape ends between an exit that goes on and its entry: what that gives the guest is on no tape.
pub(super) fn is_cut(group: &ExitGroup) -> bool {
    let entered = has_entry(&group.notes);
    let goes_on = group.resume.is_some_and(|resume| resume.kind == ResumeKind::RESUME);
    goes_on && !entered && !group.is_halted()
}

/// The notes that entries of a vCPU told which no exit came before, and that wait for the next exit: of an entry after a halt
/// some stand with the exit that halted.
#[derive(Default)]
pub(super) struct Waiting {
    notes: BTreeMap<u32, Vec<Note>>,
    /// vCPUs of whose last exit the tape has no entry.
    cut: BTreeSet<u32>,
}

impl Waiting {
    /// Those that stand with an exit that halts.
    pub fn keep(&mut self, group: &ExitGroup) {
        if group.is_halted() && group.handled < group.notes.len() {
            self.notes.insert(group.exit.vcpu, group.notes[group.handled..].to_vec());
        }
        match is_cut(group) {
            true => _ = self.cut.insert(group.exit.vcpu),
            false if self.cut.is_empty() => {}
            false => _ = self.cut.remove(&group.exit.vcpu),
        }
    }

    pub fn cut(&self) -> Vec<u32> {
        self.cut.iter().copied().collect()
    }

    /// vCPUs that were entered after their halt.
    pub fn woken(&self) -> Vec<u32> {
        self.notes.iter().filter(|(_, notes)| has_entry(notes)).map(|(vcpu, _)| *vcpu).collect()
    }

    /// All that come before an exit of one vCPU, by vCPU: those of other vCPUs as well. `woken`: what ended its halt is looked at
    /// elsewhere.
    pub fn before(&mut self, group: &ExitGroup, woken: bool) -> Vec<(u32, Vec<Note>)> {
        if woken {
            self.notes.remove(&group.exit.vcpu);
        }
        let others = group.others.iter().map(|other| (other.vcpu, &other.before[..]));
        self.of(others.chain([(group.exit.vcpu, &group.before[group.earlier.0..])]))
    }

    /// All that come behind the last exit.
    pub fn behind(&mut self, rest: &Rest) -> Vec<(u32, Vec<Note>)> {
        let mut all = self.of(rest.entered.iter().map(|other| (other.vcpu, &other.before[..])));
        let left = std::mem::take(&mut self.notes).into_iter();
        all.extend(left.filter(|(_, notes)| has_entry(notes)).map(|(vcpu, mut notes)| {
            notes.retain(is_of_entry);
            (vcpu, notes)
        }));
        all
    }

    fn of<'n>(&mut self, told: impl Iterator<Item = (u32, &'n [Note])>) -> Vec<(u32, Vec<Note>)> {
        let mut all = Vec::new();
        for (vcpu, notes) in told {
            let mut expected = self.notes.remove(&vcpu).unwrap_or_default();
            expected.extend_from_slice(notes);
            expected.retain(is_of_entry);
            if !expected.is_empty() {
                all.push((vcpu, expected));
            }
        }
        all
    }
}

fn has_entry(notes: &[Note]) -> bool {
    notes.iter().rev().any(|note| matches!(note, Note::Entry { .. }))
}

/// Not what the guest did by itself, MSRs that silicon let it have among it, nor devices.
fn is_of_entry(note: &Note) -> bool {
    !matches!(
        note,
        Note::SiliconStep { .. }
            | Note::MemoryType { .. }
            | Note::Rule { .. }
            | Note::Msr { passed: true, .. }
    )
}

/// Entries that no exit came before, by vCPU, and what the machine told of them: the first events that differ.
pub(super) fn compare_before(expected: &[(u32, Vec<Note>)], answer: &Answer) -> Compared {
    if expected.is_empty() && answer.before.is_empty() {
        return Compared::Equal;
    }
    let mut vcpus: Vec<u32> =
        expected.iter().map(|(vcpu, _)| *vcpu).chain(answer.before_of.clone()).collect();
    vcpus.sort_unstable();
    vcpus.dedup();
    let mut found = Compared::Equal;
    for vcpu in vcpus {
        let event = |note: &Note| Event::Note { vcpu, place: Place::L1, note: *note };
        let expected = expected.iter().filter(|(of, _)| *of == vcpu).flat_map(|(_, notes)| notes);
        let expected: Vec<Event> = expected.map(event).collect();
        let actual = answer.entered().filter(|(of, _)| *of == vcpu);
        let actual: Vec<Event> = actual.map(|(_, note)| event(note)).collect();
        match differ(&expected, &actual, false) {
            Compared::Equal => {}
            different @ Compared::Different(_) => return different,
            exempt @ Compared::Exempt => found = exempt,
        }
    }
    found
}

/// The same machine: every event of the exit must be equal. `ended`: so has the replayed machine's run.
pub(super) fn compare(group: &ExitGroup, answer: &Answer, ended: bool) -> Compared {
    let alike = answer.resume == group.resume && answer.changes == group.changes;
    if alike && answer.notes == group.notes && answer.places == group.places {
        return Compared::Equal;
    }
    // A vCPU that halts enters when it is woken, which is after other vCPUs' exits; a tape may end before an entry.
    let halted = group.is_halted();
    let entered = group.notes.last().is_some_and(|note| matches!(note, Note::Entry { .. }));
    let open = ended || halted || !entered;
    let kept = if halted { group.handled } else { group.notes.len() };
    let vcpu = group.exit.vcpu;
    let end = |resume: Option<Resume>, changes| Some(Event::Resume { vcpu, resume: resume?, changes });
    let (told, done) = (end(group.resume, group.changes), end(answer.resume, answer.changes));
    let expected = events(group, &group.notes[..kept], &group.places, group.handled, told);
    let actual = events(group, &answer.notes, &answer.places, answer.handled, done);
    differ(&expected, &actual, open)
}

/// What is to be said of two lists of events. `open`: one of them may end earlier.
fn differ(expected: &[Event], actual: &[Event], open: bool) -> Compared {
    let Some((first, other)) = first_difference(expected, actual, open) else { return Compared::Equal };
    let told = |events: &[Event]| {
        let told = events.iter().filter(|event| !exempt::is_of_silicon_between_exits(event));
        told.cloned().collect::<Vec<_>>()
    };
    if first_difference(&told(expected), &told(actual), open).is_none() {
        return Compared::Exempt;
    }
    Compared::Different(Box::new([first.cloned(), other.cloned()]))
}

/// What an entry gives the guest: the rest of its notes is made wherever what woke the vCPU came from.
pub(super) fn given(notes: &[Note]) -> Vec<Note> {
    let entry = notes.iter().position(|note| matches!(note, Note::Entry { .. }));
    let notes = &notes[..entry.map_or(notes.len(), |entry| entry + 1)];
    let is_given =
        |note: &&Note| matches!(note, Note::InjVirq { .. } | Note::InjException { .. } | Note::Entry { .. });
    notes.iter().filter(is_given).copied().collect()
}

/// What was done about an exit, in order.
fn events(
    group: &ExitGroup,
    notes: &[Note],
    places: &[(usize, Place)],
    handled: usize,
    end: Option<Event>,
) -> Vec<Event> {
    let vcpu = group.exit.vcpu;
    let place = |index| places.iter().find(|(of, _)| *of == index).map_or(Place::L1, |(_, place)| *place);
    let note = |(index, note): (usize, &Note)| Event::Note { vcpu, place: place(index), note: *note };
    let mut events: Vec<_> = notes.iter().enumerate().map(note).collect();
    if let Some(end) = end {
        events.insert(handled.min(events.len()), end);
    }
    events
}

/// The first events that differ. `open`: the entry that would have followed is on one side only.
fn first_difference<'e>(
    expected: &'e [Event],
    actual: &'e [Event],
    open: bool,
) -> Option<(Option<&'e Event>, Option<&'e Event>)> {
    let differ = expected.iter().zip(actual).position(|(a, b)| a != b);
    let lengths = expected.len() != actual.len() && !open;
    let at = differ.or_else(|| lengths.then(|| expected.len().min(actual.len())))?;
    Some((expected.get(at), actual.get(at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_arch::msr::ReachedPat;

    /// Of silicon and of a guest that writes an MSR without an exit a machine that is fed exits tells nothing.
    #[test]
    fn what_the_guest_does_by_itself_is_no_part_of_an_entry() {
        let msr = |passed| Note::Msr {
            write: true,
            index: 0x49,
            data: 0,
            exception: false,
            host_initiated: false,
            passed,
            pat: ReachedPat::ONLY,
        };
        let entry = Note::Entry { rip: 0x1000, intr_info: 0, error_code: 0 };
        let group = ExitGroup { before: vec![msr(true), entry], ..ExitGroup::default() };
        assert_eq!(Waiting::default().before(&group, false), [(0, vec![entry])]);
        let told = ExitGroup { before: vec![msr(false), entry], ..ExitGroup::default() };
        assert_eq!(Waiting::default().before(&told, false), [(0, vec![msr(false), entry])]);
    }
}
