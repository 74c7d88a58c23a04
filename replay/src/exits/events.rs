//! The events of an exit's handling, as one machine told them twice.

use crate::exempt;
use vmtape_arch::{
    exit::{Resume, ResumeKind},
    level::Place,
    note::Note,
};
use vmtape_traces::{Event, ExitGroup, event::RegisterChanges};

/// What the handlers did about the last exit.
#[derive(Default)]
pub(super) struct Answer {
    /// What came before the last exit began: silicon's walk, entries, other exits.
    pub before: Vec<Note>,
    /// Where in `before` the entry begins that ended a halt, and whether the machine knows why it ended.
    pub woken: Option<(usize, bool)>,
    pub notes: Vec<Note>,
    /// As `ExitGroup::places`.
    pub places: Vec<(usize, Place)>,
    /// How many of them came before the end of the handling.
    pub handled: usize,
    pub resume: Option<Resume>,
    pub changes: RegisterChanges,
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
    let entered = group.notes.iter().any(|note| matches!(note, Note::Entry { .. }));
    let goes_on = group.resume.is_some_and(|resume| resume.kind == ResumeKind::RESUME);
    goes_on && !entered && !group.is_halted()
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
    let Some((first, other)) = first_difference(&expected, &actual, open) else { return Compared::Equal };
    let told = |events: &[Event]| {
        let told = events.iter().filter(|event| !exempt::is_of_silicon_between_exits(event));
        told.cloned().collect::<Vec<_>>()
    };
    if first_difference(&told(&expected), &told(&actual), open).is_none() {
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
