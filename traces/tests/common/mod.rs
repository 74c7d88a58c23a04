//! Events for the tests: arbitrary ones, and a stream like that of a page-table test under shadow paging.
#![allow(dead_code, reason = "no test file uses all of it")]

pub mod dat;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use vmtape_arch::{
    access::{Access, AccessKind},
    exit::{Exit, Isa, Resume, StimulusKind, SvmExitCode},
    level::Place,
    note::{Note, NoteKind},
    sensitive::{Sensitive, SensitiveKind},
};
use vmtape_traces::{
    Event, Metadata, Options,
    event::{Control, Data, End, ExitEvent, Registers},
    flat::{Clock, Flat, tag},
    writer::Stream,
};

/// Any event that a tape can hold: words that are an event.
pub fn any_event() -> impl Strategy<Value = Event> {
    let words = prop_oneof![Just(0), Just(1), 0..300u64, any::<u64>(), Just(0x4000bc), Just(1 << 63)];
    let tags = prop_oneof![
        (1..=12u64),
        Just(tag::MOMENT),
        (0..NoteKind::NAMED.len()).prop_map(|n| tag::NOTE + u64::from(NoteKind::NAMED[n].0.0)),
        Just(tag::NOTE + 0x1234_5678),
    ];
    let blob = prop_oneof![Just(vec![]), prop::collection::vec(b' '..b'~', 0..80)];
    (tags, prop::collection::vec(words, 62), blob).prop_filter_map(
        "words of no event",
        |(tag, words, blob)| {
            // The number of words depends on the kind: take the first that fits.
            (1..=words.len()).find_map(|count| {
                let mut words = words[..count].to_vec();
                if tag == tag::ENTRY {
                    words.iter_mut().skip(11).take(2).for_each(|w| *w &= 0x1_0001);
                }
                if matches!(tag, tag::LINE | tag::RESUME | tag::EXIT) {
                    words[0] &= 3;
                }
                if tag == tag::END || tag == tag::CONTROL || tag == tag::READ {
                    let (kind, most) = match tag {
                        tag::END => (2, 7),
                        tag::CONTROL => (1, 8),
                        _ => (1, 3),
                    };
                    *words.get_mut(kind)? %= most;
                    words.iter_mut().skip(kind + 1).for_each(|w| *w &= 0xffff_ffff);
                }
                let blob = if tag == tag::CONTROL { vec![7; blob.len() / 32 * 32] } else { blob.clone() };
                let blob = if tag == tag::REGISTERS || tag == tag::ENTRY { vec![] } else { blob };
                Flat { tag, words, blob }.event(&mut Clock::default()).ok()
            })
        },
    )
}

/// A tape of these events, in memory.
pub fn tape_of(events: &[Event]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let metadata = Metadata {
        origin: "test".to_owned(),
        backend: "none".to_owned(),
        options: vec![("kvm".to_owned(), "v6.12".to_owned())],
        guest: "synthetic".to_owned(),
        ..Default::default()
    };
    let mut stream = Stream::new(&mut bytes, "(memory)", Options::default()).unwrap();
    stream.metadata(&metadata).unwrap();
    stream.image("guest", b"an image").unwrap();
    for event in events {
        stream.event(event).unwrap();
    }
    stream.finish().unwrap();
    bytes
}

/// A guest that tests page tables under shadow paging: per case a few writes of entries (write-protected, emulated),
/// INVLPG, sometimes a control register, and one or two page faults with their walks.
pub struct PageTableTest {
    rng: Pcg64,
    icount: u64,
    case: u64,
    ptes: [u64; 4],
    events: Vec<Event>,
}

const TABLES: [u64; 4] = [0x40c000, 0x44_0000, 0x44_1000, 0x44_2000];
const GVA: u64 = 0x1234_0000_0000;

impl PageTableTest {
    pub fn new(seed: u64) -> Self {
        let ptes = [TABLES[1] | 0x27, TABLES[2] | 0x27, TABLES[3] | 0x27, 0x200_0000 | 0x67];
        Self { rng: Pcg64::seed_from_u64(seed), icount: 1_000_000, case: 0, ptes, events: Vec::new() }
    }

    /// Events with at least so many exits.
    pub fn exits(seed: u64, count: usize) -> Vec<Event> {
        let mut test = Self::new(seed);
        let mut exits = 0;
        test.events.push(Event::Control {
            icount: 0,
            control: Control::SetMemoryRegion {
                slot: 0,
                flags: 0,
                gpa: 0,
                size: 256 << 20,
                hpa: 0,
                result: 0,
            },
        });
        while exits < count {
            let before = test.events.len();
            test.one_case();
            exits += test.events[before..].iter().filter(|e| matches!(e, Event::Exit(_))).count();
        }
        let end = End::DebugExit { status: 1 };
        test.events.push(Event::End { icount: test.icount, exits: exits as u64, end });
        test.events
    }

    fn note(&mut self, note: Note) {
        self.events.push(Event::Note { vcpu: 0, place: Place::L1, note });
    }

    fn exit(&mut self, rip: u64, exit: Exit) {
        self.icount += 40 + u64::from(self.rng.random::<u8>() % 4) * 3;
        let event = ExitEvent { vcpu: 0, icount: self.icount, rip, exit };
        self.events.push(Event::Exit(Box::new(event)));
    }

    fn resume(&mut self, rip: u64) {
        self.events.push(Event::resume(0, Resume::GUEST));
        self.note(Note::Entry { rip, intr_info: 0, error_code: 0 });
    }

    fn registers(&mut self, mask: u32, values: &[u64]) {
        self.events.push(Event::Registers(Registers { vcpu: 0, mask, values: values.to_vec() }));
    }

    fn one_case(&mut self) {
        self.case += 1;
        // Each case changes one bit of one entry or another, as a Gray code does; a new frame every few hundred.
        let level = self.case.trailing_zeros() as usize % 4;
        self.ptes[level] ^=
            [1, 2, 4, 0x20, 0x40, 1 << 51, 1 << 36, 1 << 63][self.rng.random::<u8>() as usize % 8];
        for level in 0..4 {
            if level == 3 || self.rng.random::<u8>() % 4 == 0 {
                self.write_entry(level);
            }
        }
        self.invlpg();
        if self.rng.random::<u8>() % 8 == 0 {
            self.write_cr(if self.case & 8 == 0 { 0 } else { 4 });
        }
        self.page_fault();
    }

    fn write_entry(&mut self, level: usize) {
        let gpa = TABLES[level] + (GVA >> (39 - 9 * level) & 0x1ff) * 8;
        let rip = 0x40_1a20 + level as u64 * 0x33;
        self.exit(rip, page_fault_exit(gpa, 3, AccessKind::WRITE));
        self.registers(0x1b_0008, &[self.ptes[level], 0x8005_0033, 0x40_b000, 0x20, 0x400]);
        self.note(Note::PageFault { address: gpa, code: 3 });
        self.note(Note::EmulateInsn { rip, csbase: 0, len: 3, insn: 0x18_8948, mode: 4, failed: false });
        self.note(Note::PagetableWalk { address: gpa, pferr: 2 });
        for (n, pte) in [0x40_c027, 0x40_d027, 0x2001e7].into_iter().enumerate() {
            self.events.push(Event::Read { hpa: 0x40_b000 + n as u64 * 0x1000, data: Data::U64(pte) });
            self.note(Note::PagingElement { pte, level: 4 - n as u8 });
        }
        self.events.push(Event::Read { hpa: gpa, data: Data::U64(self.ptes[level]) });
        self.resume(rip + 3);
    }

    fn invlpg(&mut self) {
        let insn = Sensitive { kind: SensitiveKind::INVLPG, len: 3, address: GVA, ..Default::default() };
        let exit = Exit {
            isa: Isa::SVM,
            reason: SvmExitCode::INVLPG.0,
            stimulus: StimulusKind::SENSITIVE,
            insn,
            ..Default::default()
        };
        self.exit(0x40_1b00, exit);
        self.note(Note::EmulateInsn {
            rip: 0x40_1b00,
            csbase: 0,
            len: 3,
            insn: 0x38_010f,
            mode: 4,
            failed: false,
        });
        self.resume(0x40_1b03);
    }

    fn write_cr(&mut self, number: u8) {
        let value = 0x8000_0033 | u64::from(self.rng.random::<bool>()) << 16;
        let insn = Sensitive {
            kind: SensitiveKind::CR_WRITE,
            len: 3,
            number: number.into(),
            value,
            ..Default::default()
        };
        let reason = SvmExitCode::WRITE_CR0.0 + u32::from(number);
        let exit =
            Exit { isa: Isa::SVM, reason, stimulus: StimulusKind::SENSITIVE, insn, ..Default::default() };
        self.exit(0x40_1c10 + u64::from(number), exit);
        self.note(Note::Cr { write: true, number, value });
        self.resume(0x40_1c13 + u64::from(number));
    }

    fn page_fault(&mut self) {
        let code = 4 * u64::from(self.rng.random::<bool>()) + 2 * u64::from(self.rng.random::<bool>());
        let kind = if code & 2 != 0 { AccessKind::WRITE } else { AccessKind::READ };
        let gva = GVA + u64::from(self.rng.random::<u8>() % 2) * 0x1000;
        self.exit(0x40_1d00, page_fault_exit(gva, code, kind));
        self.note(Note::PageFault { address: gva, code });
        self.note(Note::PagetableWalk { address: gva, pferr: code as u32 });
        let mut present = true;
        for (level, table) in TABLES.into_iter().enumerate() {
            let (pte, gpa) = (self.ptes[level], table + (gva >> (39 - 9 * level) & 0x1ff) * 8);
            self.events.push(Event::Read { hpa: gpa, data: Data::U64(pte) });
            self.note(Note::PagingElement { pte, level: 4 - level as u8 });
            if pte & 1 == 0 {
                present = false;
                break;
            }
        }
        if present {
            self.note(Note::SpteRequested { gfn: self.ptes[3] >> 12 & 0xff_ffff, pfn: 0x107e00, level: 1 });
            self.note(Note::SetSpte { gfn: 0x2000, spte: 0x107e_0000 | self.ptes[3] & 0xfff, level: 1 });
            self.resume(0x40_1d00);
        } else {
            let error_code = code as u32;
            self.note(Note::WalkerError { pferr: error_code });
            self.events.push(Event::resume(0, Resume::GUEST));
            let vector = vmtape_arch::exception::Vector::PF;
            self.note(Note::InjException { vector, has_error: true, error_code, reinjected: false });
            self.note(Note::Entry { rip: 0x40_1d00, intr_info: 0, error_code: 0 });
        }
    }
}

fn page_fault_exit(gva: u64, code: u64, kind: AccessKind) -> Exit {
    Exit {
        isa: Isa::SVM,
        reason: SvmExitCode::EXCP_PF.0,
        info1: code,
        info2: gva,
        gva,
        stimulus: StimulusKind::ACCESS,
        access: Access { gva, kind, user: (code & 4 != 0).into(), size: 8, ..Default::default() },
        ..Default::default()
    }
}
