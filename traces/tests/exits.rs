//! Exits put together from the events of several vCPUs.

use vmtape_arch::{
    exit::{Exit, Resume, ResumeKind},
    level::Place,
    note::Note,
};
use vmtape_traces::{Event, Exits, event::ExitEvent};

fn exit(vcpu: u32, icount: u64, ends: ResumeKind) -> [Event; 2] {
    let exit = ExitEvent { vcpu, icount, rip: 0x1000, exit: Exit::default() };
    [Event::Exit(Box::new(exit)), Event::resume(vcpu, Resume::new(ends))]
}

fn enter(vcpu: u32) -> Event {
    let note = Note::Entry { rip: 0x1001, intr_info: 0, error_code: 0 };
    Event::Note { vcpu, place: Place::L1, note }
}

/// vCPU 1 halts, vCPU 0 exits and wakes it.
#[test]
fn exits_come_in_their_order_and_what_follows_a_halt_before_the_next_one() {
    let wakes = Event::Note {
        vcpu: 1,
        place: Place::L1,
        note: Note::InjVirq { vector: 0x20, soft: false, reinjected: false },
    };
    let mut events = exit(1, 10, ResumeKind::BLOCKED).to_vec();
    events.extend(exit(0, 20, ResumeKind::RESUME));
    events.extend([enter(0), wakes, enter(1)]);
    events.extend(exit(1, 30, ResumeKind::RESUME));
    events.push(enter(1));
    let groups: Vec<_> = Exits::new(events.into_iter().map(Ok), 0).map(Result::unwrap).collect();
    assert_eq!(groups.iter().map(|group| group.exit.icount).collect::<Vec<_>>(), [10, 20, 30]);
    assert_eq!(groups.iter().map(|group| group.number).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(groups.iter().map(|group| group.notes.len()).collect::<Vec<_>>(), [0, 1, 1]);
    assert!(matches!(groups[2].before[..], [Note::InjVirq { .. }, Note::Entry { .. }]));
}
