//! Any bit of any entry of KVM's tables may be another one: what follows is the guest's and KVM's business, and never this program's.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use vmtape_abi::VmConfig;
use vmtape_backends::LoadedPlugin;
use vmtape_conformance::{BACKENDS, program, tail, vmtape};
use vmtape_machine::{Live, MachineSpec, Scripted};
use vmtape_replay::{
    Error,
    player::{Budget, Player},
    spec,
};
use vmtape_traces::Tape;

/// A guest on its machine, and how long it runs without faults.
struct Bench {
    plugin: LoadedPlugin,
    machine: MachineSpec,
    budget: Budget,
}

impl Bench {
    fn new(folder: &Path, backend: &str, line: &[&str]) -> Result<Self> {
        let fixed = ["record", "-q", "-m", "64M", "-b", backend, "-o", "a.tape"];
        let recorded = vmtape(folder, &[&fixed, line].concat())?;
        ensure!(folder.join("a.tape").exists(), "{backend} {line:?}: {}", tail(&recorded));
        let library =
            format!("libvmtape_{}.so", backend.split(',').next().unwrap_or_default().replace('-', "_"));
        let plugin = LoadedPlugin::load(&program()?.parent().context("a folder")?.join(library))?;
        let tape = Tape::open(&folder.join("a.tape"))?;
        let totals = tape.totals()?;
        let rows = &plugin.description.fault_points;
        let points = rows.iter().map(|row| (row.id, row.name.clone())).collect();
        let machine = MachineSpec { fault_points: points, ..spec::machine(&tape)? };
        let budget = Budget {
            instructions: 2 * totals.icount + 10_000,
            exits: 2 * totals.exits + 2_000,
            ..Budget::default()
        };
        Ok(Self { plugin, machine, budget })
    }

    /// Runs the guest with an answer at one occurrence of a point; whether it came to that.
    fn run(&self, point: &str, occurrence: u64, answer: u64) -> Result<bool> {
        let rows = &self.plugin.description.fault_points;
        let point = rows.iter().find(|row| row.name == point).context("no such point")?.id;
        let fault = Scripted { point, vcpu: None, occurrence, answer, insn: 0 };
        let create = |machine: &MachineSpec| {
            let config = VmConfig { silicon: machine.silicon, options: machine.options.clone() };
            self.plugin.create(&config).map_err(Error::Other)
        };
        let inputs = Live::new(self.machine.seed).with_faults(Box::new(vec![fault]));
        let mut player = Player::new(self.machine.clone(), Box::new(inputs), self.budget, &create, true)?;
        let mut fired = false;
        while player.end.is_none() {
            player.advance(u64::MAX, u64::MAX)?;
            fired |= player.take_events().iter().any(|event| matches!(event, vmtape_traces::Event::Fault(_)));
        }
        Ok(fired)
    }

    /// Every bit of the first entries that a point meets; how many there were.
    fn every_bit(&self, point: &str, most: u64, bits: &[u32]) -> Result<u64> {
        for n in 1..=most {
            for bit in bits {
                let reached =
                    self.run(point, n, 1 << bit).with_context(|| format!("{point} #{n}, bit {bit}"))?;
                if !reached {
                    return Ok(n - 1);
                }
            }
        }
        Ok(most)
    }
}

/// Leaves and links as KVM stores them.
const STORED: [&str; 2] = ["spte-flip", "link-flip"];

#[test]
fn any_bit_of_any_stored_entry_may_be_bent() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let all = Vec::from_iter(0..64);
    for backend in BACKENDS {
        for backing in ["--backing=4K", "--backing=2M"] {
            let bench = Bench::new(folder.path(), backend, &[backing, "builtin:touch,access=write"])?;
            for point in STORED {
                let named = || format!("{backend} {backing}");
                let entries = bench.every_bit(point, 10, &all).with_context(named)?;
                ensure!(entries >= 2, "{}: {point} was asked {entries} times", named());
            }
        }
    }
    Ok(())
}

/// Silicon reads other bits than KVM has stored, at every level of a walk.
#[test]
fn any_bit_may_be_read_wrongly() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let all = Vec::from_iter(0..64);
    for (backend, point) in
        [("vmx", "nested-entry-flip"), ("svm-npt", "nested-entry-flip"), ("svm", "shadow-entry-flip")]
    {
        let bench = Bench::new(folder.path(), backend, &["--backing=4K", "builtin:hello"])?;
        let read = bench.every_bit(point, 8, &all).context(backend)?;
        ensure!(read == 8, "{backend}: {point} was asked {read} times");
    }
    Ok(())
}

/// Present, writable, the page size, an address, KVM's own bits and the highest one.
const TELLING: [u32; 12] = [0, 1, 2, 7, 9, 10, 11, 12, 21, 30, 51, 63];

/// What KVM does to entries later meets the bent ones: pages are protected and split for dirty logging, a slot goes, a guest changes
/// its own tables, and has a guest of its own.
#[test]
fn a_bent_entry_is_met_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let log = [
        "builtin:dirty,pages=3,rounds=300",
        "--memory-region=slot=0,gpa=0,size=64M,flags=1,insn=500",
        "--get-dirty-log=0,insn=1500",
        "--memory-region=slot=0,gpa=0,size=64M,flags=0,insn=2500",
        "--memory-region=slot=1,gpa=0x1000000000,size=2M,insn=2600",
        "--memory-region=slot=1,gpa=0x1000000000,size=0,insn=2700",
    ];
    for backend in ["vmx", "svm", "svm-npt", "vmx,ept=0", "svm-npt,tdp_mmu=0"] {
        for line in [&log[..], &["--backing=4K", "builtin:stale"], &["builtin:luggage,rounds=5"]] {
            let Ok(bench) = Bench::new(folder.path(), backend, line) else { continue };
            for point in STORED {
                bench.every_bit(point, 6, &TELLING).with_context(|| format!("{backend} {line:?}"))?;
            }
        }
    }
    let nested = ["--cpu=max,+svm", "builtin:nested-touch"];
    let bench = Bench::new(folder.path(), "svm-npt", &nested)?;
    for point in STORED {
        bench.every_bit(point, 10, &TELLING).context("a nested guest")?;
    }
    Ok(())
}
