//! The format keeps what it is given, and notices whatever happened to the file.

mod common;

use common::{PageTableTest, any_event, tape_of};
use proptest::prelude::*;
use std::{fs, os::unix::fs::symlink, process::Command, time::Duration};
use vmtape_traces::{
    Cause, Event, Metadata, Options, Tape, Writer, ahead,
    event::{Control, End, ExitEvent, Milestone},
    writer,
};

fn read(bytes: Vec<u8>) -> Vec<Event> {
    let tape = Tape::from_bytes(bytes).unwrap();
    tape.verify().unwrap();
    assert!(tape.damage().is_none());
    tape.events().map(Result::unwrap).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..Default::default() })]

    #[test]
    fn any_events_survive(events in prop::collection::vec(any_event(), 0..200)) {
        // Absolute counts are kept relative to each other, so the order of the file is the order of the stream.
        prop_assert_eq!(read(tape_of(&events)), events);
    }
}

#[test]
fn a_long_stream_survives_and_is_found_by_exit_and_by_icount() {
    let events = PageTableTest::exits(1, 40_000);
    let bytes = tape_of(&events);
    let tape = Tape::from_bytes(bytes.clone()).unwrap();
    assert_eq!(read(bytes), events);
    let exits: Vec<_> =
        events.iter().filter_map(|e| if let Event::Exit(e) = e { Some(e) } else { None }).collect();
    assert_eq!(tape.totals().unwrap().exits, exits.len() as u64);
    for number in [0, 1, 16383, 16384, 16385, 39_999] {
        let mut from = tape.events_from_exit(number).unwrap();
        assert_eq!(from.clock().exits, number);
        assert_eq!(from.next().unwrap().unwrap(), Event::Exit(exits[number as usize].clone()));
        assert_eq!(from.clock().exits, number + 1);
        let mut from = tape.events_from_icount(exits[number as usize].icount).unwrap();
        assert_eq!(from.next().unwrap().unwrap(), Event::Exit(exits[number as usize].clone()));
    }
    assert!(tape.events_from_exit(1 << 40).unwrap().next().is_none());
}

#[test]
fn the_writer_thread_writes_what_the_stream_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tape");
    let events = PageTableTest::exits(2, 20_000);
    let (head, tail) = events.split_at(events.len() / 2);
    for _ in 0..2 {
        let mut writer =
            Writer::create(&path, &Metadata::default(), &[("g", b"x")], Options::default()).unwrap();
        head.iter().for_each(|e| writer.push(e.clone()));
        writer.checkpoint("vm", vec![1; 100_000]);
        tail.iter().for_each(|e| writer.push(e.clone()));
        assert!(writer::partial(&path).exists());
        let summary = writer.finish().unwrap();
        assert_eq!(summary.bytes, fs::metadata(&path).unwrap().len());
        assert!(!writer::partial(&path).exists());
    }
    assert!(fs::read(&path).unwrap() == fs::read(folder.path().join("a.tape.old")).unwrap());
    let tape = Tape::open_whole(&path).unwrap();
    assert!(tape.events().map(Result::unwrap).eq(events.iter().cloned()));
    let checkpoint = tape.checkpoint_before(u64::MAX).unwrap();
    assert_eq!(tape.checkpoint(checkpoint).unwrap(), ("vm".to_owned(), vec![1; 100_000]));
    assert!(tape.events_from(checkpoint.chunk).map(Result::unwrap).eq(tail.iter().cloned()));
    assert_eq!(tape.images().unwrap(), [("g".to_owned(), b"x".to_vec())]);
}

#[test]
fn a_tape_replaces_no_device() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path(), "/dev/null".as_ref()] {
        let error = Writer::create(path, &Metadata::default(), &[], Options::default()).err().unwrap();
        assert!(error.to_string().contains("no regular file"), "{error}");
        assert!(!writer::partial(path).exists());
    }
}

/// What stands in the place of the temporary file is left alone, and nobody is made to wait.
#[test]
fn a_tape_is_recorded_to_no_link_or_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let create = |name: &str| Writer::create(&path(name), &Metadata::default(), &[], Options::default());
    fs::write(path("precious"), "precious").unwrap();
    symlink("precious", path("a.tape.partial")).unwrap();
    symlink("absent", path("b.tape.partial")).unwrap();
    assert!(Command::new("mkfifo").arg(path("c.tape.partial")).status().unwrap().success());
    for name in ["a.tape", "b.tape", "c.tape"] {
        let error = create(name).err().unwrap();
        assert!(matches!(error.cause, Cause::InTheWay), "{error}");
        assert!(error.to_string().contains(&format!("{name}.partial")), "{error}");
    }
    assert!(fs::read(path("precious")).unwrap() == b"precious" && !path("absent").exists());
    symlink("loop", path("loop")).unwrap();
    assert!(matches!(create("loop").err().unwrap().cause, Cause::Io(_)));
    assert!(path("loop").is_symlink());
}

#[test]
fn a_tape_has_one_writer_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tape");
    let create = || Writer::create(&path, &Metadata::default(), &[], Options::default());
    let events = PageTableTest::exits(3, 500);
    let mut first = create().unwrap();
    events.iter().for_each(|e| first.push(e.clone()));
    assert!(matches!(create().err().unwrap().cause, Cause::Busy));
    first.finish().unwrap();
    assert!(Tape::open_whole(&path).unwrap().events().map(Result::unwrap).eq(events));
    // Whoever ended, however it ended, is in nobody's way.
    drop(create().unwrap());
    create().unwrap().finish().unwrap();
}

#[test]
fn a_tape_opens_while_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tape");
    let events = PageTableTest::exits(3, 40_000);
    let mut writer = Writer::create(&path, &Metadata::default(), &[], Options::default()).unwrap();
    let mut seen = 0;
    for batch in events.chunks(4096) {
        batch.iter().for_each(|event| writer.push(event.clone()));
        let tape = Tape::open(&writer::partial(&path)).unwrap();
        seen = seen.max(tape.chunks().len());
        assert!(tape.damage().is_some());
        let events_so_far = tape.totals().unwrap().events as usize;
        let read = tape.events().map_while(Result::ok);
        assert!(read.eq(events.iter().take(events_so_far).cloned()));
    }
    assert!(seen > 2, "{seen} chunks were seen");
}

/// What is flushed ahead of a chunk is written over by the chunk: who has opened the tape in between does not notice.
#[test]
fn an_open_tape_stays_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tape");
    let events = PageTableTest::exits(3, 3_000);
    let options = Options { flush_every: Some(Duration::ZERO), ..Options::default() };
    let mut writer = Writer::create(&path, &Metadata::default(), &[], options).unwrap();
    let mut opened = Vec::new();
    for batch in events.chunks(400) {
        batch.iter().for_each(|event| writer.push(event.clone()));
        writer.flush_if_due();
        let tape = Tape::open(&writer::partial(&path)).unwrap();
        let so_far = tape.totals().unwrap().events as usize;
        opened.push((tape, so_far));
    }
    writer.finish().unwrap();
    for (tape, so_far) in opened {
        assert!(tape.events().map(Result::unwrap).eq(events[..so_far].iter().cloned()));
    }
}

#[test]
fn a_dropped_recording_opens_and_says_how_far_it_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tape");
    let events = PageTableTest::exits(3, 5_000);
    let mut writer = Writer::create(&path, &Metadata::default(), &[], Options::default()).unwrap();
    events.iter().for_each(|e| writer.push(e.clone()));
    drop(writer);
    assert!(!path.exists());
    let tape = Tape::open(&writer::partial(&path)).unwrap();
    assert!(matches!(tape.damage().unwrap().cause, Cause::NoEnd));
    let Some(Event::End { icount, exits, .. }) = events.last() else { panic!() };
    let totals = tape.totals().unwrap();
    assert_eq!((totals.icount, totals.exits, totals.events), (*icount, *exits, events.len() as u64));
    assert!(tape.events().map(Result::unwrap).eq(events));
    assert!(Tape::open_whole(&writer::partial(&path)).is_err());
}

#[test]
fn a_long_stretch_with_few_exits_is_kept_as_it_goes() {
    let exit = |n: u64| {
        let exit = vmtape_arch::exit::Exit::default();
        Event::Exit(Box::new(ExitEvent { vcpu: 0, icount: n << 27, rip: n, exit }))
    };
    let bytes = tape_of(&(0..10).map(exit).collect::<Vec<_>>());
    let tape = Tape::from_bytes(bytes.clone()).unwrap();
    let last = tape.chunks().last().unwrap();
    // Relative to the exit before the chunk.
    assert_eq!((last.first_exit, last.events), (9, 1));
    let cut = Tape::from_bytes(bytes[..last.offset as usize].to_vec()).unwrap();
    assert_eq!(cut.totals().unwrap().exits, 9);
}

/// What a damaged tape still gives: a prefix of the events, or an error; never anything else.
fn check_damaged(bytes: Vec<u8>, events: &[Event]) -> bool {
    let Ok(tape) = Tape::from_bytes(bytes) else { return true };
    let mut good = 0;
    let mut failed = false;
    for event in tape.events() {
        match event {
            Ok(event) => {
                assert_eq!(&event, &events[good]);
                good += 1;
            }
            Err(error) => {
                assert!(error.to_string().starts_with("(memory): "), "{error}");
                failed = true;
            }
        }
    }
    if tape.damage().is_some() {
        assert!(failed || tape.totals().unwrap().events == good as u64);
    }
    failed || tape.damage().is_some() || tape.verify().is_err() || tape.images().is_err()
}

#[test]
fn every_cut_is_noticed() {
    let events = PageTableTest::exits(4, 60);
    let bytes = tape_of(&events);
    for length in 0..bytes.len() {
        assert!(check_damaged(bytes[..length].to_vec(), &events), "cut at {length}");
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let events = PageTableTest::exits(5, 60);
    let bytes = tape_of(&events);
    assert!(!check_damaged(bytes.clone(), &events));
    for at in 0..bytes.len() {
        for change in [1, 0x10, 0x80, 0xff] {
            let mut bent = bytes.clone();
            bent[at] ^= change;
            assert!(check_damaged(bent, &events), "byte {at} changed by {change:#x}");
        }
    }
}

#[test]
fn other_files_are_called_what_they_are() {
    for (bytes, what) in
        [(&b""[..], "not a tape"), (b"\x7fELF", "not a tape"), (b"\x89VMTAPE\n", "cut short")]
    {
        let error = Tape::from_bytes(bytes.to_vec()).err().unwrap().to_string();
        assert!(error.contains(what), "{error}");
    }
    let mut newer = tape_of(&[Event::End { icount: 0, exits: 0, end: End::Idle { reason: String::new() } }]);
    newer[8] = 2;
    let crc = crc32fast::hash(&newer[..60]);
    newer[60..64].copy_from_slice(&crc.to_le_bytes());
    let error = Tape::from_bytes(newer).err().unwrap().to_string();
    assert!(error.contains("format version 2 is newer"), "{error}");
}

#[test]
fn exits_come_as_wholes() {
    let events = PageTableTest::exits(6, 1000);
    let tape = Tape::from_bytes(tape_of(&events)).unwrap();
    let mut exits = tape.exits();
    let (mut count, mut notes, mut reads) = (0, 0, 0);
    for exit in exits.by_ref().map(Result::unwrap) {
        assert_eq!(exit.number, count);
        assert_eq!(exit.controls_before.len(), usize::from(count == 0), "the memory slot");
        assert!(exit.before.is_empty() && exit.resume.is_some() && exit.handled < exit.notes.len());
        count += 1;
        notes += exit.notes.len();
        reads += exit.reads.len();
    }
    assert_eq!(exits.other.len(), 1);
    let of = |wanted: fn(&Event) -> bool| events.iter().filter(|e| wanted(e)).count();
    assert_eq!(count as usize, of(|e| matches!(e, Event::Exit(_))));
    assert_eq!(notes, of(|e| matches!(e, Event::Note { .. })));
    assert_eq!(reads, of(|e| matches!(e, Event::Read { .. })));
    assert_eq!(tape.exits_from(700).unwrap().next().unwrap().unwrap().number, 700);
}

#[test]
fn two_tapes_are_compared_by_their_index() {
    let milestone =
        |n: u64, hash| Event::Milestone(Milestone { icount: 1_000_000 + n * 1000, exits: n * 10, hash });
    let with = |hash: fn(u64) -> u64, seed| -> Tape {
        let mut events = PageTableTest::exits(7, 40_000);
        // The last chunk differs.
        events.extend(PageTableTest::exits(seed, 10_000));
        events.extend((0..50).map(|n| milestone(n, hash(n))));
        Tape::from_bytes(tape_of(&events)).unwrap()
    };
    let (a, b) = (with(|n| n, 8), with(|n| if n < 33 { n } else { !n }, 9));
    let (alike, differs) = a.alike_until(&b);
    assert_eq!((alike.unwrap().hash, differs.unwrap().hash), (32, 33));
    assert_eq!(a.alike_until(&a), (a.milestones().last().copied(), None));
    let chunk = a.first_difference(&b);
    assert_eq!(a.chunks()[chunk].first_exit, 2 * 16384);
    let different = a.events_from(chunk).zip(b.events_from(chunk));
    assert!(different.into_iter().any(|(a, b)| a.unwrap() != b.unwrap()));
    let common = a.last_common(&b);
    assert!(common < chunk, "the last chunk before it, so that what is counted there is known");
    let first = |tape: &Tape, chunk| tape.events_from(chunk).next().unwrap().unwrap();
    assert_eq!(first(&a, common), first(&b, b.last_common(&a)));
    assert_eq!(a.chunks()[common].first_exit, 16384);
    assert_eq!(a.first_difference(&a), a.chunks().len());
}

#[test]
fn exits_decoded_ahead_are_those_of_the_iterator() {
    let mut events = PageTableTest::exits(9, 3000);
    let control =
        |cap| Event::Control { icount: 3_000_000, control: Control::CheckExtension { cap, result: 1 } };
    // Between two exits, and within one.
    let entry = events.iter().rposition(|e| matches!(e, Event::Resume { .. })).unwrap();
    events.insert(entry + 1, control(2));
    let exit = events.iter().rposition(|e| matches!(e, Event::Exit(_))).unwrap();
    events.insert(exit, control(1));
    let tape = Tape::from_bytes(tape_of(&events)).unwrap();
    let expected: Vec<_> = tape.exits().map(Result::unwrap).collect();
    let last = expected.last().unwrap();
    assert_eq!((last.controls_before.len(), last.controls.len()), (1, 1));
    let found = ahead::with_exits(&tape, 0, 0, |exits| {
        let mut found = Vec::new();
        while let Some(exit) = exits.next_exit().unwrap() {
            found.push(exit.clone());
        }
        found
    });
    assert!(found == expected);
    // Who stops listening ends the decoder.
    assert_eq!(ahead::with_exits(&tape, 0, 0, |exits| exits.next_exit().unwrap().unwrap().number), 0);
}

#[test]
fn what_is_decoded_ahead_of_a_damaged_chunk_is_given_out_first() {
    let bytes = tape_of(&PageTableTest::exits(10, 40_000));
    let whole = Tape::from_bytes(bytes.clone()).unwrap();
    let last = whole.chunks().iter().rfind(|chunk| chunk.events != 0).unwrap();
    let mut damaged = bytes;
    damaged[last.offset as usize + 80] ^= 1;
    let tape = Tape::from_bytes(damaged).unwrap();
    let (count, error) = ahead::with_exits(&tape, 0, 0, |exits| {
        let mut count = 0;
        loop {
            match exits.next_exit() {
                Ok(Some(_)) => count += 1,
                Ok(None) => return (count, None),
                Err(error) => return (count, Some(error.to_string())),
            }
        }
    });
    // The exit that the chunk before ends in is still open there.
    assert!(last.first_exit - count <= 1, "{count}");
    assert!(error.unwrap().contains("checksum"));
}
