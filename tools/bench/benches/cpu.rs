//! Guest instructions per second of the interpreter alone.

mod common;

use common::CpuTime;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vmtape_bench::Micro;

const INSTRUCTIONS: u64 = 10_000_000;

fn interpreter(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("interpreter");
    group.throughput(Throughput::Elements(INSTRUCTIONS)).sample_size(10);
    let guests = [("sieve", Micro::sieve()), ("calls", Micro::calls()), ("registers", Micro::registers())];
    for (name, guest) in guests {
        let mut guest = guest.expect("assembles");
        group.bench_function(name, |b| b.iter(|| assert!(guest.run(INSTRUCTIONS))));
    }
    group.finish();
}

criterion_group!(name = benches; config = Criterion::default().with_measurement(CpuTime); targets = interpreter);
criterion_main!(benches);
