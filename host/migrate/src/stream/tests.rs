//! What is written is read; what is torn, bent or foreign is an error.

use super::*;
use proptest::prelude::*;
use vmtape_arch::state::StateKind;

fn records() -> Vec<Record> {
    let page = |byte| [byte; 4096];
    vec![
        Record::Offer(Offer {
            epoch: 3,
            guest: "builtin:io".into(),
            vcpus: 2,
            blocks: vec![vmtape_machine::Block { slot: 0, pages: 7 }],
            ..Offer::default()
        }),
        Record::Note("from here".into()),
        Record::Cpuid { vcpu: 1, entries: vec![Default::default(); 3] },
        Record::Pages(vec![
            Run { slot: 0, first: 2, pages: Pages::Zero(5) },
            Run { slot: 1, first: 9, pages: Pages::Bytes(vec![page(1), page(2)]) },
        ]),
        Record::Slots(vec![vmtape_abi::MemoryRegion { gpa: 1 << 32, size: 1 << 20, ..Default::default() }]),
        Record::State { vcpu: 0, kind: StateKind::REGS, bytes: vec![7; 144] },
        Record::Devices { version: 1, bytes: vec![1, 2, 3] },
        Record::Books { version: 1, bytes: Vec::new() },
        Record::End { pages: 7 },
        Record::Refused { epoch: 3, why: "too wide".into() },
        Record::Discard { slot: 1, runs: vec![(1, 2), (9, 1)] },
        Record::Request { slot: 1, page: 8 },
        Record::Go { epoch: 3 },
    ]
}

fn written() -> Vec<u8> {
    let mut writer = Writer::new();
    records().iter().flat_map(|record| writer.record(record)).collect()
}

/// Everything that a reader finds in pieces of so many bytes.
fn read(bytes: &[u8], pieces: usize) -> Result<Vec<Record>, StreamError> {
    let (mut reader, mut found) = (Reader::new(), Vec::new());
    for piece in bytes.chunks(pieces.max(1)) {
        reader.push(piece);
        while let Some(section) = reader.section()? {
            found.push(Record::decode(&section)?);
        }
    }
    reader.finish()?;
    Ok(found)
}

#[test]
fn what_is_written_is_read_however_it_is_cut_into_pieces() {
    for pieces in [1, 7, 4096, usize::MAX / 2] {
        assert_eq!(read(&written(), pieces).unwrap(), records(), "{pieces}");
    }
}

#[test]
fn a_stream_of_somebody_else_is_none() {
    assert_eq!(read(b"", 1), Err(StreamError::Torn("nothing: not a byte has come")));
    assert!(matches!(read(b"QEVM\0\0\0\x03", 3), Err(StreamError::Foreign(_))));
    let mut other = written();
    other[8] += 1;
    assert_eq!(read(&other, 100), Err(StreamError::Version(2)));
}

#[test]
fn who_does_not_know_a_mandatory_section_refuses_and_drops_an_optional_one() {
    let kind = SectionKind(0x7777);
    let section = |mandatory| Writer::new().section(kind, mandatory, b"later");
    assert_eq!(read(&section(true), 9), Err(StreamError::Unknown { kind, number: 0 }));
    assert_eq!(read(&section(false), 9).unwrap(), [Record::Dropped { kind, number: 0 }]);
    let state =
        |mandatory| Writer::new().section(SectionKind::STATE, mandatory, &[0, 0, 0, 0, 0x99, 0, 0, 0]);
    assert!(read(&state(true), 9).is_err());
    assert_eq!(read(&state(false), 9).unwrap(), [Record::Dropped { kind: SectionKind::STATE, number: 0 }]);
}

#[test]
fn sections_that_come_twice_or_not_at_all_are_seen() {
    let mut writer = Writer::new();
    let sections: Vec<_> = records().iter().map(|record| writer.record(record)).collect();
    let with = |order: &[usize]| order.iter().flat_map(|at| sections[*at].clone()).collect::<Vec<_>>();
    for order in [&[0, 1, 1][..], &[0, 2], &[0, 2, 1]] {
        assert!(matches!(read(&with(order), 50), Err(StreamError::Order { .. })), "{order:?}");
    }
}

proptest! {
    /// Wherever a stream ends, its reader says so, unless it ends behind a section.
    #[test]
    fn a_torn_stream_is_an_error(end in 0..written().len()) {
        let mut writer = Writer::new();
        let ends: Vec<_> = records()
            .iter()
            .scan(0, |sum, record| { *sum += writer.record(record).len(); Some(*sum) })
            .collect();
        let whole = ends.contains(&end);
        prop_assert_eq!(read(&written()[..end], 64).is_ok(), whole);
    }

    /// Any bit that is another one is seen.
    #[test]
    fn a_bent_stream_is_an_error(at in 0..written().len(), bit in 0..8u8) {
        let mut bytes = written();
        bytes[at] ^= 1 << bit;
        prop_assert!(read(&bytes, 1000).is_err());
    }

    /// A payload that its sender has made up does no harm.
    #[test]
    fn any_payload_gets_an_answer(
        kind in prop::sample::select(SectionKind::NAMED.iter().map(|(kind, _)| *kind).collect::<Vec<_>>()),
        payload in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..400),
    ) {
        let _ = read(&Writer::new().section(kind, true, &payload), 33);
    }

    #[test]
    fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&[&MAGIC[..], &bytes].concat(), 17);
    }
}
