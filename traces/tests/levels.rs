//! Events of a guest's guest, built by hand: the tape, its text, its JSON and its counts keep the level and the dimension.

mod common;

use common::{PageTableTest, tape_of};
use vmtape_arch::{
    exit::{Isa, NpfInfo, Resume, StimulusKind, SvmExitCode},
    level::{Dimension, Level, Place},
    msr::{MsrAccess, ReachedPat},
    note::Note,
};
use vmtape_traces::{
    Event, Exits, Tape,
    event::{End, ExitEvent},
    export,
    import::{self, Source},
    stat::stat,
    text::Printer,
};

const L2: Place = Place { level: Level::L2, dimension: Dimension::GUEST };
const NESTED: Place = Place { dimension: Dimension::NESTED, ..L2 };
/// A level and a dimension that this build has no names for.
const UNKNOWN: Place = Place { level: Level(3), dimension: Dimension(9) };

/// A nested page fault of L2, whose handling walks L1's nested tables, and an MSR that L1 passes through to L2.
fn events() -> Vec<Event> {
    let note = |place, note| Event::Note { vcpu: 0, place, note };
    let msr = |passed, host_initiated| Note::Msr {
        write: false,
        index: 0xc000_0080,
        data: 0x1d01,
        exception: false,
        host_initiated,
        passed,
        pat: if host_initiated { ReachedPat::HPAT } else { ReachedPat::GPAT },
    };
    let mut event = ExitEvent { vcpu: 0, icount: 1000, rip: 0x40_1000, ..Default::default() };
    event.exit.isa = Isa::SVM;
    event.exit.reason = SvmExitCode::NPF.0;
    event.exit.level = Level::L2;
    event.exit.stimulus = StimulusKind::ACCESS;
    event.exit.info1 = NpfInfo::new().with_code(6).with_table(true).into_bits();
    event.exit.info2 = 0x2004;
    event.exit.gpa = 0x2004;
    vec![
        Event::Exit(Box::new(event)),
        note(L2, Note::PageFault { address: 0x2004, code: 0x2_0000_0006 }),
        note(NESTED, Note::PagetableWalk { address: 0x2004, pferr: 6 }),
        note(NESTED, Note::PagingElement { pte: 0x8_1007, level: 4 }),
        note(L2, Note::SiliconStep { gpa: 0x2004, before: 7, after: 0x27, level: 2 }),
        note(NESTED, Note::SiliconStep { gpa: 0x8_1000, before: 7, after: 0x27, level: 3 }),
        note(UNKNOWN, Note::Rule { id: 7 }),
        note(UNKNOWN, Note::SetDirty { gpa: 0x2000 }),
        note(L2, msr(true, false)),
        note(Place::L1, msr(false, true)),
        Event::resume(0, Resume::GUEST),
        note(L2, Note::Entry { rip: 0x40_1000, intr_info: 0, error_code: 0 }),
        Event::End { icount: 1001, exits: 1, end: End::Idle { reason: String::new() } },
    ]
}

fn tape() -> Tape {
    Tape::from_bytes(tape_of(&events())).unwrap()
}

fn read(tape: &Tape) -> Vec<Event> {
    tape.events().map(Result::unwrap).collect()
}

fn text(events: &[Event]) -> String {
    let mut printer = Printer::new(Vec::new()).unwrap();
    events.iter().for_each(|event| printer.event(event).unwrap());
    String::from_utf8(printer.finish().unwrap()).unwrap()
}

#[test]
fn a_tape_keeps_levels_and_dimensions() {
    assert_eq!(read(&tape()), events());
}

#[test]
fn groups_know_where_each_note_belongs() {
    let groups: Vec<_> = Exits::new(events().into_iter().map(Ok), 0).map(Result::unwrap).collect();
    let [group] = &groups[..] else { panic!("one exit") };
    let expected: Vec<_> = events()
        .iter()
        .filter_map(|e| if let Event::Note { place, .. } = e { Some(*place) } else { None })
        .collect();
    let found: Vec<_> = (0..group.notes.len()).map(|index| group.place(index)).collect();
    assert_eq!(found, expected);
    let access = MsrAccess {
        value: 0x1d01,
        index: 0xc000_0080,
        write: false,
        exception: false,
        host_initiated: false,
        passed: true,
        level: Level::L2,
        pat: ReachedPat::GPAT,
        pad: [0; 6],
    };
    assert_eq!(group.notes[7].msr_access(group.place(7).level), Some(access));
    assert!(
        group.notes[8].msr_access(Level::L1).is_some_and(|access| access.host_initiated && !access.passed)
    );
    assert_eq!(group.notes[0].msr_access(Level::L1), None);
}

#[test]
fn text_says_the_level_where_it_is_not_l1_and_reads_back() {
    let text = text(&events());
    assert!(text.contains("kvm_mmu_paging_element: pte 81007 level 4 @L2 nested\n"), "{text}");
    assert!(text.contains("kvm_msr: msr_read c0000080 = 0x1d01 (passed) (gPAT) @L2\n"), "{text}");
    assert!(text.contains("kvm_msr: msr_read c0000080 = 0x1d01 (host) (hPAT)\n"), "{text}");
    assert!(text.contains(" of L2 "), "{text}");
    let mut back = Vec::new();
    let summary = import::events(&Source::Text(text.clone()), &mut |event| {
        back.push(event);
        Ok(())
    });
    assert!(summary.unwrap().accounts_for_all());
    assert_eq!(back, events(), "{text}");
}

#[test]
fn where_everything_is_l1s_nothing_is_said() {
    let events = PageTableTest::exits(5, 100);
    assert!(!text(&events).contains('@'));
    let mut out = Vec::new();
    let tape = Tape::from_bytes(tape_of(&events)).unwrap();
    export::json_lines(&tape, &mut out).unwrap();
    assert!(!String::from_utf8(out).unwrap().contains("dimension"));
    assert!(stat(&tape, None).unwrap().exits_by_nested_level.is_empty());
}

#[test]
fn json_and_counts_say_the_level() {
    let mut out = Vec::new();
    export::json_lines(&tape(), &mut out).unwrap();
    let lines: Vec<serde_json::Value> =
        String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let element = lines.iter().find(|line| line["event"] == "kvm_mmu_paging_element").unwrap();
    assert_eq!((&element["of"], &element["dimension"]), (&"L2".into(), &"nested".into()));
    assert_eq!(stat(&tape(), None).unwrap().exits_by_nested_level["L2"], 1);
}
