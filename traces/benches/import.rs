//! Bytes per second of an import: tracefs text and `trace.dat`, to events and to a tape.
//!
//! The text is a recording of the real KVM. The `trace.dat` is written for this: exits, entries and events of one CPU.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/common/dat.rs"]
mod dat;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dat::{Item, Shape};
use flate2::read::MultiGzDecoder;
use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};
use vmtape_traces::{
    Options,
    import::{self, Source},
};

fn text() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings/npt1/setjmp/trace.txt.gz");
    let mut text = Vec::new();
    MultiGzDecoder::new(File::open(path).expect("the recording"))
        .read_to_end(&mut text)
        .expect("a whole recording");
    text
}

fn trace_dat() -> Vec<u8> {
    let event = |time, data| Item::Event { cpu: 0, time, data };
    let items: Vec<_> = (0..60_000u64)
        .flat_map(|i| {
            let at = 1_000_000_000 + i * 3_000;
            let rip = 0x1000 + i % 512;
            let exit = event(at, dat::exit(186, 0, rip, 0xfee0_0000 + i % 64 * 0x1000));
            [exit, event(at + 900, dat::fpu(186, 1)), event(at + 1_900, dat::entry(186, 0, rip))]
        })
        .collect();
    dat::file(Shape { version: 7, zstd: false, clock: "local" }, &dat::comms(), &items)
}

fn imports(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in [("tracefs text", text()), ("trace.dat", trace_dat())] {
        let trace = folder.path().join(name);
        fs::write(&trace, &bytes).expect("a trace");
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(bytes.len() as u64)).sample_size(10);
        let source = Source::Path(trace.clone());
        group.bench_function("events", |b| {
            b.iter(|| import::events(&source, &mut |_| Ok(())).expect("an import"))
        });
        let tape = folder.path().join("a.tape");
        group.bench_function("tape", |b| {
            b.iter(|| import::to_tape(&trace, &tape, Options::default()).expect("an import"));
        });
        group.finish();
    }
}

criterion_group!(benches, imports);
criterion_main!(benches);
