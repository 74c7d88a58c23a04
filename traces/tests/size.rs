//! How small event chunks are, and that encoding them is fast enough to hide behind a recording.

mod common;

use common::{PageTableTest, tape_of};
use std::time::Instant;
use vmtape_traces::{
    Event, Tape,
    format::{align, header::ChunkKind},
};

/// What the project promises for tapes of a million exits, stimulus included.
const BYTES_PER_EXIT: f64 = 16.0;

#[test]
fn a_page_table_test_is_small() {
    let events = PageTableTest::exits(7, 100_000);
    let exits = events.iter().filter(|e| matches!(e, Event::Exit(_))).count();
    let start = Instant::now();
    let bytes = tape_of(&events);
    let encode = start.elapsed();
    let tape = Tape::from_bytes(bytes).unwrap();
    let start = Instant::now();
    assert_eq!(tape.events().map(Result::unwrap).count(), events.len());
    let decode = start.elapsed();
    let chunks = tape.chunks().iter().filter(|c| c.kind == ChunkKind::EVENTS.0);
    let stored: u64 = chunks.clone().map(|c| 64 + align(c.length)).sum();
    let raw: u64 = chunks.map(|c| c.uncompressed).sum();
    let per_exit = stored as f64 / exits as f64;
    println!(
        "{exits} exits, {} events: {per_exit:.2} bytes per exit ({:.2} before zstd), encoded in {:.0} ns, decoded in {:.0} ns per event",
        events.len(),
        raw as f64 / exits as f64,
        encode.as_nanos() as f64 / events.len() as f64,
        decode.as_nanos() as f64 / events.len() as f64,
    );
    assert!(per_exit <= BYTES_PER_EXIT);
}
