//! Tapes of released format versions stay readable, event by event.
//!
//! `VMTAPE_BLESS=1 cargo test -p vmtape_traces --test golden` writes the files of the current schema anew, and of no other: once
//! a schema is released, its files never change again.

mod common;

use common::PageTableTest;
use std::{env, fs, path::PathBuf};
use vmtape_arch::{
    cpuid::CpuidEntry,
    event::Event as Injected,
    exit::{Exit, Resume, ResumeKind},
    host::{Silicon, Vendor},
    level::{Dimension, Level, Place},
    note::{Note, NoteKind, RawNote},
    query::Query,
};
use vmtape_traces::{
    Event, Metadata, Options, Tape,
    event::{
        Control, Data, End, EntryEvent, EntryOutcome, ExitEvent, Fault, InputSource, Milestone, NO_VCPU,
        PcpuEvent, PcpuKind, Registers,
    },
    format,
    ioctl::{Pages, RingEntries, RingEntry},
    text::Printer,
    writer::Stream,
};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

const CPUID: CpuidEntry =
    CpuidEntry { function: 0x8000_0008, index: 0, flags: 0, eax: 0x3024, ebx: 1, ecx: 2, edx: 3, pad: 0 };

fn metadata() -> Metadata {
    Metadata {
        origin: "vmtape".to_owned(),
        backend: "example".to_owned(),
        options: vec![("kvm".to_owned(), "v6.12".to_owned())],
        silicon: Some(Silicon {
            vendor: Vendor::AMD,
            phys_bits: 48,
            host_levels: 4,
            ept_levels: 0,
            gbpages: true.into(),
            ept_ad: false.into(),
            ept_advanced: false.into(),
            apicv: false.into(),
            nrips: true.into(),
            decode_assists: true.into(),
            backing_shift: 21,
            rmw_reads_first: false.into(),
            encryption_bits: 0,
            vgif: false.into(),
            vls: false.into(),
            vnmi: false.into(),
        }),
        guest: "page-tables".to_owned(),
        command_line: "a b".to_owned(),
        memory: 64 << 20,
        vcpus: 1,
        cpuid: vec![CPUID],
        machine: b"opaque".to_vec(),
        notes: vec![("why".to_owned(), "golden".to_owned())],
    }
}

/// A golden tape: its files' name, the schema that it was written in, and what is on it.
struct Golden {
    name: &'static str,
    schema: u32,
    events: Vec<Event>,
}

fn schema_1() -> Golden {
    Golden { name: "v1", schema: 1, events: first_events() }
}

/// As recordings tell it that do not say why.
const IDLE: End = End::Idle { reason: String::new() };

fn schema_2() -> Golden {
    let mut events = first_events();
    let (icount, entries) = (2_000_000, vec![CPUID]);
    let control = |control| Event::Control { icount, control };
    events.extend([
        control(Control::CheckExtension { cap: 185, result: 1 }),
        control(Control::GetCpuid { vcpu: 1, entries: entries.clone(), result: 0 }),
        control(Control::GetSupportedCpuid { entries, result: 0 }),
        control(Control::GetMsr { vcpu: 1, index: 0x277, data: 0x0007_0406_0007_0406, result: 0 }),
        control(Control::Query { query: Query::LAST_VMENTRY_CPU, vcpu: 1, value: u64::MAX, result: -25 }),
        Event::Milestone(Milestone { icount, exits: 60, hash: 0xfedc_ba98_7654_3210 }),
        Event::End { icount, exits: 60, end: IDLE },
    ]);
    Golden { name: "v1-schema2", schema: 2, events }
}

fn schema_3() -> Golden {
    let mut events = schema_2().events;
    let icount = 3_000_000;
    let control = |control| Event::Control { icount, control };
    let pages = Pages::parse("3+5-9").unwrap();
    let l2 = Place { level: Level::L2, dimension: Dimension::NESTED };
    let step = Note::SiliconStep { gpa: 0x5000, before: 0x6001, after: 0x6021, level: 3 };
    let inject = Injected { valid: true.into(), vector: 0x20, ..Injected::default() };
    events.extend([
        control(Control::EnableCap { cap: 192, flags: 0, arg: 65_536, result: 0 }),
        control(Control::GetDirtyLog { slot: 1, pages: pages.clone(), result: 0 }),
        control(Control::ClearDirtyLog { slot: 1, first_page: 0, num_pages: 64, set: pages, result: -22 }),
        control(Control::HarvestDirtyRing { vcpu: 0, entries: ring(), result: 0 }),
        control(Control::ResetDirtyRings { result: 2 }),
        Event::Pcpu(PcpuEvent { icount, kind: PcpuKind::LOAD, cpu: 2, vcpu: 0, result: -16 }),
        Event::Fault(Fault {
            icount,
            vcpu: 0,
            point: 7,
            occurrence: 9,
            since_exit: 2,
            a: 1,
            b: u64::MAX,
            answer: 3,
            ..Fault::default()
        }),
        Event::Exit(Box::new(ExitEvent {
            icount,
            rip: 0x10_0000,
            exit: Exit { level: Level::L2, ..Exit::default() },
            ..ExitEvent::default()
        })),
        Event::Note { vcpu: 0, place: l2, note: step },
        Event::resume(0, Resume::GUEST),
        Event::Entry(Box::new(EntryEvent {
            icount,
            rip: 0x10_0002,
            rflags: 0x202,
            interruptibility: 1,
            reads: vec![(0x2000, vec![1, 2, 3, 4, 5, 6, 7, 8]), (0x3000, vec![9])],
            outcome: EntryOutcome { inject, windows: 1, ..EntryOutcome::default() },
            ..EntryEvent::default()
        })),
        Event::Moment { vcpu: 0, icount, rip: Some(0x10_0004) },
        Event::Line { vcpu: 0, text: "kvm_nested_vmenter: a line".to_owned() },
        Event::Moment { vcpu: 0, icount, rip: None },
        Event::Line { vcpu: 0, text: "kvm_fpu: load".to_owned() },
        Event::Devices { icount, accesses: 12, hash: 0x0f1e_2d3c_4b5a_6978 },
        Event::End { icount, exits: 61, end: IDLE },
    ]);
    Golden { name: "v1-schema3", schema: 3, events }
}

fn ring() -> RingEntries {
    vec![RingEntry { slot: 1, offset: 5 }, RingEntry { slot: 1 << 16, offset: 6 }]
}

/// Every kind of event that schema 1 has, and every kind of note.
fn first_events() -> Vec<Event> {
    let mut events = PageTableTest::exits(2026, 60);
    let end = events.pop().unwrap();
    let Event::End { icount, .. } = end else { panic!("a test ends") };
    let note = |kind: NoteKind| {
        let note =
            Note::from_raw(RawNote { kind, place: Place::L1, pad: 0, args: [0x11, 0x1, 0x1, 0x101, 0, 0] });
        // As it will be read: with the words that its kind has.
        Event::Note { vcpu: 0, place: Place::L1, note: Note::from_raw(note.to_raw()) }
    };
    // The kinds that there were when the version was released.
    events.extend((1..=32).chain(64..=66).map(|kind| note(NoteKind(kind))));
    events.extend([
        Event::Registers(Registers { vcpu: 0, mask: 1 << 27 | 1, values: vec![1, 2, 3] }),
        Event::Read { hpa: 0x1000, data: Data::U32(7) },
        Event::Read { hpa: 0x1004, data: Data::Bytes(vec![1, 2, 3]) },
        Event::resume(0, Resume { data: [1, 2, 3, 4, 5, 6], ..Resume::new(ResumeKind::MEMORY_FAULT) }),
        Event::Input { icount, source: InputSource::RANDOM, value: u64::MAX },
        Event::Control { icount, control: Control::SetCpuid { vcpu: 0, entries: vec![CPUID], result: -22 } },
        Event::Control { icount, control: Control::SetMsr { vcpu: 0, index: 0x10, data: 5, result: 0 } },
        Event::StateHash { icount, exits: 60, hash: 0x0123_4567_89ab_cdef },
        Event::Line { vcpu: NO_VCPU, text: "kvm_set_irq: gsi 4 level 0 source 0".to_owned() },
    ]);
    for end in [
        End::DebugExit { status: 1 },
        End::Shutdown { reason: "triple fault".to_owned() },
        IDLE,
        End::Fatal { vcpu: 1, resume: Resume::errno(-14), reason: "EFAULT".to_owned() },
        End::Limit { what: "exits".to_owned() },
        End::NoProgress { vcpu: 0, repeats: 1000, reason: "equal exits".to_owned() },
        End::Cut,
    ] {
        events.push(Event::End { icount: icount + 1, exits: 60, end });
    }
    events
}

fn write(events: &[Event]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut stream = Stream::new(&mut bytes, "golden", Options::default()).unwrap();
    stream.metadata(&metadata()).unwrap();
    stream.image("kernel", b"\x7fELF").unwrap();
    for (n, event) in events.iter().enumerate() {
        if n == 200 {
            stream.checkpoint("machine", vec![0xa5; 5000]).unwrap();
        }
        stream.event(event).unwrap();
    }
    stream.finish().unwrap();
    bytes
}

fn text(tape: &Tape) -> String {
    let mut printer = Printer::new(Vec::new()).unwrap();
    tape.events().for_each(|event| printer.event(&event.unwrap()).unwrap());
    String::from_utf8(printer.finish().unwrap()).unwrap()
}

impl Golden {
    fn file(&self, ending: &str) -> PathBuf {
        golden(&format!("{}.{ending}", self.name))
    }

    /// Writes the files anew where somebody asks for it, and where this program still writes the schema.
    fn bless(&self) {
        if env::var_os("VMTAPE_BLESS").is_none() || self.schema != format::SCHEMA {
            return;
        }
        let bytes = write(&self.events);
        fs::write(self.file("txt"), text(&Tape::from_bytes(bytes.clone()).unwrap())).unwrap();
        fs::write(self.file("tape"), bytes).unwrap();
    }

    fn check(&self) -> Tape {
        let tape = Tape::open_whole(&self.file("tape")).unwrap();
        assert_eq!((tape.version(), tape.schema()), (1, self.schema));
        assert_eq!(tape.metadata(), &metadata());
        assert_eq!(tape.images().unwrap(), [("kernel".to_owned(), b"\x7fELF".to_vec())]);
        let checkpoint = tape.checkpoints().next().unwrap();
        assert_eq!(tape.checkpoint(checkpoint).unwrap(), ("machine".to_owned(), vec![0xa5; 5000]));
        let expected = fs::read_to_string(self.file("txt")).unwrap();
        assert!(text(&tape) == expected, "the golden tape {} reads differently", self.name);
        let read: Vec<_> = tape.events().map(Result::unwrap).collect();
        let differs = self.events.iter().zip(&read).position(|(a, b)| a != b);
        assert_eq!(differs.map(|at| (&read[at], &self.events[at])), None);
        assert_eq!(read.len(), self.events.len());
        tape
    }
}

#[test]
fn schema_1_is_readable() {
    let tape = schema_1().check();
    assert!(tape.milestones().is_empty());
}

#[test]
fn schema_2_is_readable() {
    let tape = schema_2().check();
    assert_eq!(tape.milestones().len(), 1);
}

#[test]
fn schema_3_is_readable() {
    schema_3().bless();
    schema_3().check();
}

#[test]
fn released_schemas_are_not_written_anew() {
    let golden = [schema_1(), schema_2(), schema_3()];
    let current: Vec<_> = golden.iter().filter(|golden| golden.schema == format::SCHEMA).collect();
    assert_eq!(current.len(), 1, "the current schema has a golden tape");
}

#[test]
fn equal_events_give_equal_bytes() {
    let events = schema_3().events;
    assert!(write(&events) == write(&events));
}
