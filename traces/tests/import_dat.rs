//! `trace.dat` files give the tape of the text that tracefs printed of the same recording.

mod common;

use common::dat::{self, Item, Shape, comms, items, text};
use flate2::{Compression, write::GzEncoder};
use std::{collections::BTreeMap, env, fs, io::Write, path::PathBuf};
use vmtape_traces::{
    Event,
    import::{self, Source, Summary},
};

fn events(source: &Source) -> Result<(Vec<Event>, Summary), import::Error> {
    let mut events = Vec::new();
    let summary = import::events(source, &mut |event| {
        events.push(event);
        Ok(())
    })?;
    Ok((events, summary))
}

/// Recordings below VMTAPE_RECORDINGS that exist as both.
fn recordings() -> Vec<PathBuf> {
    let mut folders: Vec<_> = env::var_os("VMTAPE_RECORDINGS").map(PathBuf::from).into_iter().collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with("trace.dat")) {
                found.push(entry);
            }
        }
    }
    found
}

/// A line that the kernel prints with what a file does not have: addresses that it hashes, or names of constants.
fn comparable(event: &Event) -> bool {
    !matches!(event, Event::Line { text, .. } if text.contains("sptep"))
}

#[test]
fn dat_and_text_are_the_same() {
    for dat in recordings() {
        let text = dat.with_file_name("trace.txt.gz");
        let (theirs, of_text) = events(&Source::Path(text)).unwrap();
        let (ours, summary) = events(&Source::Path(dat.clone())).unwrap();
        assert_eq!(summary.unreadable, 0, "{}", dat.display());
        let different = theirs.iter().zip(&ours).find(|(a, b)| comparable(a) && a != b);
        assert_eq!(different, None, "{}", dat.display());
        assert_eq!(
            (summary.exits, summary.decoded, summary.kept),
            (of_text.exits, of_text.decoded, of_text.kept)
        );
        assert_eq!(ours.len(), theirs.len());
    }
}

const SHAPES: [Shape; 3] = [
    Shape { version: 6, zstd: false, clock: "local" },
    Shape { version: 7, zstd: false, clock: "mono" },
    Shape { version: 7, zstd: true, clock: "local" },
];

fn written(bytes: &[u8], name: &str) -> (tempfile::TempDir, Source) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    (folder, Source::Path(path))
}

#[test]
fn every_shape_gives_the_tape_of_its_text() {
    let (theirs, of_text) = events(&Source::Text(text())).unwrap();
    assert_eq!(
        (of_text.exits, of_text.vms, of_text.lost_events, of_text.kept["something_new"]),
        (800, 2, 77, 2)
    );
    for shape in SHAPES {
        let file = dat::file(shape, &comms(), &items());
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&file).unwrap();
        for bytes in [file, packed.finish().unwrap()] {
            let (_folder, source) = written(&bytes, "any name");
            let (ours, summary) = events(&source).unwrap();
            let different = theirs.iter().zip(&ours).find(|(a, b)| a != b);
            assert_eq!(different, None, "{shape:?}");
            assert_eq!(ours.len(), theirs.len());
            assert_eq!((summary.exits, summary.vms, summary.lost_events), (800, 2, 77));
            assert_eq!((summary.decoded, summary.kept), (of_text.decoded.clone(), of_text.kept.clone()));
        }
    }
}

#[test]
fn a_clock_that_counts() {
    let items = [Item::Event { cpu: 0, time: 123_456_789, data: dat::entry(7, 0, 0x1000) }];
    for shape in SHAPES {
        let file = dat::file(Shape { clock: "x86-tsc", ..shape }, &BTreeMap::new(), &items);
        let (_folder, source) = written(&file, "trace.dat");
        let (events, summary) = events(&source).unwrap();
        assert!(summary.ticks);
        assert!(matches!(events[0], Event::Moment { vcpu: 0, icount: 123_456_789, .. }), "{:?}", events[0]);
    }
}

/// Cut anywhere, a file is refused by name, or what was before the cut is read; nothing panics and nothing is made up.
#[test]
fn cut_files() {
    let (whole, _) = events(&Source::Text(text())).unwrap();
    for shape in SHAPES {
        let file = dat::file(shape, &comms(), &items());
        for at in (10..file.len()).step_by(97) {
            let (_folder, source) = written(&file[..at], "trace.dat");
            match events(&source) {
                Ok((events, _)) => assert!(events.len() <= whole.len(), "{shape:?} cut at {at}"),
                Err(error) => assert!(error.to_string().contains("trace.dat"), "{error}"),
            }
        }
    }
}

#[test]
fn versions_and_codecs_that_nobody_knows() {
    for (bytes, what) in [
        (&b"\x17\x08\x44tracing8\0\0\x08\0\x10\0\0"[..], "version 8"),
        (b"\x17\x08\x44tracing7\0\0\x08\0\x10\0\0lzma\x001\0", "lzma"),
        (b"\x17\x08\x44tracing7\0\0\x08\0\x10\0\0none\0\0\xff\xff\xff\xff\xff\xff\xff\x7f", "ends within"),
        (b"\x17\x08\x44tracing6\0\x02\x08\0\x10\0\0", "byte order 2"),
    ] {
        let (_folder, source) = written(bytes, "trace.dat");
        let error = events(&source).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("trace.dat"), "{error}");
    }
}
