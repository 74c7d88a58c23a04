//! kvm-unit-tests' `sieve` under the `vmx` backend: guest instructions per second, with and without a tape. The tape's
//! writer has a thread of its own, whose time does not count.

mod common;

use common::CpuTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use std::{cell::RefCell, ops::ControlFlow, path::PathBuf, rc::Rc};
use vmtape_abi::{Backend, Plugin, VmConfig};
use vmtape_machine::{
    GuestImage, Limits, Live, Machine, MachineSpec, Recorder, hosts,
    model::{CpuOption, silicon_cpuid},
};
use vmtape_replay::spec::{self, Budget};
use vmtape_traces::{Event, Options, Writer};
use vmtape_vmx::Vmx;

/// Instructions of one iteration.
const STRETCH: u64 = 20_000_000;
/// Boot, and the first sieve without paging.
const BEGINNING: u64 = 50_000_000;

/// Writes the tape as `vmtape record` does.
#[derive(Clone)]
struct Taping(Rc<RefCell<Writer>>);

impl Recorder for Taping {
    fn event(&mut self, event: Event) -> ControlFlow<()> {
        self.0.borrow_mut().push(event);
        ControlFlow::Continue(())
    }
}

fn specification(image: PathBuf) -> (MachineSpec, Box<dyn Backend>) {
    let bytes = std::fs::read(&image).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
    let silicon = hosts::find("intel-46").expect("a named host");
    let backend = Vmx::create(&VmConfig { silicon, options: Vec::new() }).expect("vmx fits its host");
    let model = CpuOption::parse("max").expect("a CPU model");
    let spec = MachineSpec {
        memory: 256 << 20,
        cpuid: model.cpuid(&silicon, &backend.supported_cpuid(&silicon_cpuid(&silicon))),
        cpu: "max".to_owned(),
        host: "intel-46".to_owned(),
        backend: "vmx".to_owned(),
        options: backend.resolved(),
        ..MachineSpec::new(GuestImage { name: "sieve".to_owned(), bytes }, silicon)
    };
    (spec, Box::new(backend))
}

fn measure(
    group: &mut BenchmarkGroup<'_, CpuTime>,
    name: &str,
    image: PathBuf,
    tape: impl FnOnce(&MachineSpec) -> Option<Box<dyn Recorder>>,
) {
    let (spec, backend) = specification(image);
    let recorder = tape(&spec);
    let inputs = Box::new(Live::new(spec.seed));
    let mut machine = Machine::new(spec, backend, inputs, recorder).expect("the guest loads");
    let mut until = BEGINNING;
    machine.advance(&Limits { instructions: until, ..Limits::default() });
    group.bench_function(name, |b| {
        b.iter(|| {
            until += STRETCH;
            machine.advance(&Limits { instructions: until, ..Limits::default() });
            assert!(machine.icount() >= until, "the guest ended");
        });
    });
}

fn sieve(c: &mut Criterion<CpuTime>) {
    let Some(folder) = std::env::var_os("VMTAPE_KUT").map(PathBuf::from) else {
        eprintln!("SKIPPED: the sieve benchmark needs VMTAPE_KUT, kvm-unit-tests' x86 folder");
        return;
    };
    let image = folder.join("sieve.flat");
    let mut group = c.benchmark_group("sieve");
    group.throughput(Throughput::Elements(STRETCH)).sample_size(10);
    measure(&mut group, "run", image.clone(), |_| None);
    let scratch = tempfile::tempdir().expect("a temporary folder");
    measure(&mut group, "record", image, |machine| {
        let metadata = spec::metadata(machine, &Budget::default()).expect("a header");
        let path = scratch.path().join("sieve.tape");
        let writer = Writer::create(&path, &metadata, &spec::images(machine), Options::default());
        let writer = writer.expect("a tape that can be written");
        Some(Box::new(Taping(Rc::new(RefCell::new(writer)))))
    });
    group.finish();
}

criterion_group!(name = benches; config = Criterion::default().with_measurement(CpuTime); targets = sieve);
criterion_main!(benches);
