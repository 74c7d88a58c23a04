//! The fuzz targets on a corpus and its mutations, for a moment; VMTAPE_FUZZ_FACTOR makes it longer.

mod common;

use common::{
    PageTableTest,
    dat::{self, Item},
    tape_of,
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use std::{collections::BTreeMap, env};
use vmtape_traces::{codec::Encoder, flat::Clock, fuzz};

/// Flips, cuts, repeats and overwrites bytes.
fn mutate(rng: &mut Pcg64, bytes: &mut Vec<u8>) {
    for _ in 0..1 + rng.random::<u8>() % 4 {
        if bytes.is_empty() {
            return;
        }
        let at = rng.random::<u64>() as usize % bytes.len();
        match rng.random::<u8>() % 4 {
            0 => bytes[at] ^= 1 << (rng.random::<u8>() % 8),
            1 => bytes[at] = [0, 0x7f, 0x80, 0xff, 0xfd][rng.random::<u8>() as usize % 5],
            2 => bytes.truncate(at),
            _ => {
                let end = (at + 1 + rng.random::<u8>() as usize).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

fn run(seed: u64, corpus: &[Vec<u8>], rounds: usize, target: fn(&[u8])) {
    let mut rng = Pcg64::seed_from_u64(seed);
    let factor = env::var("VMTAPE_FUZZ_FACTOR").map_or(1, |factor| factor.parse().unwrap());
    for bytes in corpus {
        target(bytes);
        for _ in 0..rounds * factor {
            let mut mutant = bytes.clone();
            mutate(&mut rng, &mut mutant);
            target(&mutant);
        }
    }
}

#[test]
fn tapes() {
    let corpus = [tape_of(&[]), tape_of(&PageTableTest::exits(1, 50))];
    run(1, &corpus, 1000, fuzz::tape);
}

#[test]
fn columns() {
    let mut encoder = Encoder::new(Clock::default());
    PageTableTest::exits(2, 30).iter().for_each(|event| encoder.push(event));
    let columns = encoder.finish();
    let mut bytes = columns.ops;
    for column in columns.columns {
        bytes.push(0xfd);
        bytes.push(if column.tag < 16 { column.tag as u8 } else { (column.tag - 0x100) as u8 + 16 });
        bytes.push(column.word);
        bytes.extend(column.bytes);
    }
    run(2, &[bytes], 4000, fuzz::columns);
}

#[test]
fn trace_text() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/v1.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<_> = text.lines().map(|line| line.as_bytes().to_vec()).collect();
    let (head, tail) = lines.split_at(lines.len() - 80);
    let corpus: Vec<_> = head[..40].iter().chain(tail).cloned().collect();
    run(3, &corpus, 200, fuzz::trace_text);
}

#[test]
fn trace_files() {
    let event = |cpu, time, data| Item::Event { cpu, time, data };
    let items = [
        event(0, 1_000, dat::exit(7, 0, 0x1000, 0x2000)),
        event(1, 1_001, dat::other(8, "name", 3)),
        Item::Lost { cpu: 0, events: 3 },
        event(0, 1 << 30, dat::entry(7, 0, 0x1002)),
    ];
    let shape = |version, zstd| dat::Shape { version, zstd, clock: "local" };
    let comms = BTreeMap::from([(7, "CPU 0/KVM")]);
    let corpus =
        [shape(6, false), shape(7, false), shape(7, true)].map(|shape| dat::file(shape, &comms, &items));
    run(4, &corpus, 1500, fuzz::trace_file);
}
