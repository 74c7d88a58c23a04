//! Runs of a campaign per second and core: plans over two short built-in guests under `vmx`, closer looks included. And runs of these
//! guests alone, from a snapshot.

mod common;

use common::CpuTime;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vmtape_abi::{Backend, Plugin, VmConfig};
use vmtape_faults::{Source, campaign::Campaign};
use vmtape_machine::{
    GuestImage, Live, MachineSpec, hosts,
    model::{CpuOption, silicon_cpuid},
};
use vmtape_replay::{
    Error,
    faults::{Bed, Quick},
    player::{Budget, Player},
};
use vmtape_vmx::Vmx;

/// Runs of one iteration.
const RUNS: u64 = 1000;
const GUESTS: [&str; 2] = ["hello", "touch,access=write"];

fn create(spec: &MachineSpec) -> Result<Box<dyn Backend>, Error> {
    let config = VmConfig { silicon: spec.silicon, options: spec.options.clone() };
    let refused = |reason| Error::Refused { backend: spec.backend.clone(), reason };
    Vmx::create(&config).map(|vm| Box::new(vm) as Box<dyn Backend>).map_err(refused)
}

fn specification(guest: &str) -> MachineSpec {
    let silicon = hosts::find("intel-46").expect("a named host");
    let vm = Vmx::create(&VmConfig { silicon, options: Vec::new() }).expect("vmx fits its host");
    let model = CpuOption::parse("max").expect("a CPU model");
    let bytes = vmtape_guests::image(guest).expect("a built-in guest");
    MachineSpec {
        memory: 64 << 20,
        cpuid: model.cpuid(&silicon, &vm.supported_cpuid(&silicon_cpuid(&silicon))),
        cpu: "max".to_owned(),
        host: "intel-46".to_owned(),
        backend: "vmx".to_owned(),
        options: vm.resolved(),
        ..MachineSpec::new(GuestImage { name: guest.to_owned(), bytes }, silicon)
    }
}

const CAMPAIGN: &str =
    "seed = 1\nplans = 1000\nguests = [\"hello\", \"touch,access=write\"]\n[[machine]]\nbackend = \"vmx\"";

fn runs(c: &mut Criterion<CpuTime>) {
    let campaign: Campaign = toml::from_str(CAMPAIGN).expect("a campaign");
    let description = Vmx::describe();
    let points = vmtape_replay::faults::points(&description.fault_points);
    let mut beds = GUESTS.map(|guest| {
        let bed = Bed::new(specification(guest), Default::default(), &create, &description);
        Quick::new(bed.expect("the guest runs")).expect("it runs again")
    });
    let jobs: Vec<_> = (0..RUNS)
        .filter_map(|index| campaign.job(index, false, |_| &points))
        .map(|job| (GUESTS.iter().position(|guest| *guest == job.guest), Source::from(job.plan)))
        .collect();
    let mut group = c.benchmark_group("faults");
    group.throughput(Throughput::Elements(RUNS)).sample_size(10);
    group.bench_function("runs", |b| {
        b.iter(|| {
            for (guest, source) in &jobs {
                beds[guest.expect("one of them")].run(source).expect("a verdict");
            }
        });
    });
    group.finish();
}

/// Runs of the same guests from where their machines were built.
fn again(c: &mut Criterion<CpuTime>) {
    let mut players = GUESTS.map(|guest| {
        let inputs = Box::new(Live::new(0));
        let player = Player::new(specification(guest), inputs, Budget::default(), &create, false);
        let mut player = player.expect("a machine");
        let start = player.snapshot().expect("a snapshot");
        (player, start)
    });
    let mut group = c.benchmark_group("snapshots");
    group.throughput(Throughput::Elements(GUESTS.len() as u64)).sample_size(10);
    group.bench_function("runs", |b| {
        b.iter(|| {
            for (player, start) in &mut players {
                player.rewind(start, Box::new(Live::new(0))).expect("the way back");
                player.advance(u64::MAX, u64::MAX).expect("the run");
                assert!(player.end.is_some());
            }
        });
    });
    group.finish();
}

criterion_group!(name = benches; config = Criterion::default().with_measurement(CpuTime); targets = runs, again);
criterion_main!(benches);
