//! `trace.dat` files give the tape of the text that tracefs printed of the same recording.

mod common;

use common::dat::{self, Item, Shape};
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

/// Two CPUs, two machines, a long wait, an event that nobody knows, and a gap.
fn items() -> Vec<Item> {
    let event = |cpu, time, data| Item::Event { cpu, time, data };
    let mut items = Vec::new();
    for i in 0..400 {
        let at = 5_000_000_000 + i * 7_000;
        items.push(event(0, at, dat::exit(186, 0, 0x1000 + i, 0xfee0_0000)));
        items.push(event(1, at + 400, dat::fpu(187, (i & 1) as u32)));
        items.push(event(0, at + 1_600, dat::entry(186, 0, 0x1002 + i)));
        items.push(event(1, at + 2_500, dat::exit(290, 0, 0x2000 + i, 0x1000)));
    }
    items.push(Item::Lost { cpu: 1, events: 77 });
    let late = 5_000_000_000u64 + (1 << 31);
    items.push(event(0, late, dat::other(3, "ab", -2)));
    items.push(event(1, late, dat::entry(290, 0, 0x2002)));
    items.push(event(1, late + 1, dat::other(3, "something longer", 9)));
    items
}

/// What tracefs prints of them.
fn text() -> String {
    let comm = |pid| match pid {
        186 => "CPU 0/KVM",
        187 => "vmm",
        290 => "other vmm",
        _ => "<...>",
    };
    let mut items = items();
    items.sort_by_key(|item| match item {
        Item::Event { cpu, time, .. } => (*time, *cpu),
        Item::Lost { .. } => (5_000_000_000 + (1 << 31), 1),
    });
    let mut text = String::new();
    for item in items {
        let (cpu, time, data) = match item {
            Item::Event { cpu, time, data } => (cpu, time, data),
            Item::Lost { cpu, events } => {
                text += &format!("CPU:{cpu} [LOST {events} EVENTS]\n");
                continue;
            }
        };
        let word = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
        let half = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
        let body = match half(0) as u16 {
            dat::EXIT => format!(
                "kvm_exit: vcpu {} reason npf rip {:#x} info1 {:#018x} info2 {:#018x} intr_info 0x00000000 error_code 0x00000000",
                half(56),
                word(16),
                word(32),
                word(40),
            ),
            dat::ENTRY => format!("kvm_entry: vcpu {}, rip {:#x}", half(8), word(16)),
            dat::FPU => format!("kvm_fpu: {}", if half(8) == 1 { "load" } else { "unload" }),
            _ if half(12) == 9 => "something_new: something longer|0x0009 9  more".to_owned(),
            _ => "something_new: ab    |0x00fe -2  less".to_owned(),
        };
        let (pid, micros) = (half(4), (time + 500) / 1000);
        text += &format!(
            "{}-{pid} [{cpu:03}] ..... {}.{:06}: {body}\n",
            comm(pid),
            micros / 1_000_000,
            micros % 1_000_000
        );
    }
    text
}

fn comms() -> BTreeMap<u32, &'static str> {
    BTreeMap::from([(186, "CPU 0/KVM"), (187, "vmm"), (290, "other vmm")])
}

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
