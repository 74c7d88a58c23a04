//! Whatever is written while a slot logs stands in what its VMM fetches next: on every backend, with bitmaps and rings, by
//! whichever way memory is written. The truth is the host's: it knows the epoch of each page's last write.
//!
//! A log may tell of more. See: KVM tools/testing/selftests/kvm/dirty_log_test.c, whose oracle is one-sided too

use anyhow::{Context, Result, ensure};
use std::{collections::BTreeSet, path::Path};
use vmtape_abi::VmConfig;
use vmtape_backends::LoadedPlugin;
use vmtape_conformance::{program, tail, vmtape};
use vmtape_machine::{
    Limits, Live, Machine,
    vmm::{Action, Step, When},
};
use vmtape_replay::spec;
use vmtape_traces::{
    Tape,
    event::{Control, End},
    ioctl::Pages,
};

const CAP_MANUAL_DIRTY_LOG_PROTECT2: u32 = 168;
const CAP_DIRTY_LOG_RING: u32 = 192;
const LOG_DIRTY_PAGES: u32 = 1;
/// Where the guest has left its boot behind.
const BEGIN: u64 = 20_000;

/// Every way in which KVM sees writes.
const BACKENDS: [&str; 7] =
    ["vmx", "vmx,pml=off", "vmx,eptad=off", "vmx,tdp_mmu=off", "vmx,ept=off", "svm", "svm-npt"];
const GUESTS: [&str; 3] = [
    "builtin:dirty,pages=1100,rounds=3",
    "builtin:dirty,pages=300,rounds=6,order=random,by=all",
    "builtin:matrix",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// KVM_GET_DIRTY_LOG clears what it gives.
    Legacy,
    /// KVM_CLEAR_DIRTY_LOG does.
    Manual,
    /// ... and the log begins with every page.
    InitiallySet,
    Ring,
}

impl Protocol {
    const ALL: [Self; 4] = [Self::Legacy, Self::Manual, Self::InitiallySet, Self::Ring];

    fn capability(self) -> Option<Step> {
        let (cap, arg) = match self {
            Self::Legacy => return None,
            Self::Manual => (CAP_MANUAL_DIRTY_LOG_PROTECT2, 1),
            Self::InitiallySet => (CAP_MANUAL_DIRTY_LOG_PROTECT2, 3),
            Self::Ring => (CAP_DIRTY_LOG_RING, 0x4000),
        };
        Some(Step { at: When::Create, action: Action::EnableCap { flags: 0, arg, cap } })
    }

    /// What a VMM does in each round.
    fn fetch(self, machine: &mut Machine, pages: u32) {
        if self == Self::Ring {
            machine.control(&Action::HarvestDirtyRing { vcpu: 0 }.control());
            machine.control(&Action::ResetDirtyRings {}.control());
            return;
        }
        let got = machine.control(&Action::GetDirtyLog { slot: 0 }.control());
        if let (Self::Manual | Self::InitiallySet, Control::GetDirtyLog { pages: set, .. }) = (self, got) {
            machine.control(&Control::ClearDirtyLog {
                num_pages: pages,
                first_page: 0,
                slot: 0,
                set,
                result: 0,
            });
        }
    }
}

/// A machine of a recording, with other memory behind it and a capability enabled.
fn machine(folder: &Path, backend: &str, large: bool, protocol: Protocol) -> Result<Machine> {
    let mut machine = spec::machine(&Tape::open(&folder.join("a.tape"))?)?;
    machine.silicon.backing_shift = if large { 21 } else { 12 };
    machine.script.extend(protocol.capability());
    let name = backend.split(',').next().unwrap_or_default();
    let library = format!("libvmtape_{}.so", name.replace('-', "_"));
    let plugin = LoadedPlugin::load(&program()?.parent().context("a folder")?.join(library))?;
    let config = VmConfig { silicon: machine.silicon, options: machine.options.clone() };
    let vm = plugin.create(&config).map_err(anyhow::Error::msg)?;
    Ok(Machine::new(machine, vm, Box::new(Live::new(0)), None)?)
}

/// The pages that the ioctls from the `first` on have told, and whether all of them succeeded.
fn told(machine: &Machine, first: usize) -> Result<BTreeSet<u64>> {
    let mut pages = BTreeSet::new();
    for (_, control) in &machine.controls()[first..] {
        ensure!(control.result() >= 0, "{control}");
        match control {
            Control::GetDirtyLog { pages: set, .. } => pages.extend(set.iter()),
            Control::HarvestDirtyRing { entries, .. } => {
                pages.extend(entries.iter().map(|entry| entry.offset))
            }
            _ => {}
        }
    }
    Ok(pages)
}

fn check(mut machine: Machine, protocol: Protocol) -> Result<usize> {
    let upto = |instructions| Limits { instructions, ..Limits::default() };
    machine.advance(&upto(BEGIN));
    let region = machine.memory().slots()[0];
    let log = Control::SetMemoryRegion {
        slot: region.slot,
        gpa: region.gpa,
        size: region.size,
        flags: LOG_DIRTY_PAGES,
        hpa: region.hpa,
        result: 0,
    };
    ensure!(machine.control(&log).result() == 0);
    let pages = (region.size >> 12) as u32;
    let (mut random, mut checked, mut rounds) = (1u64, 0, 0);
    loop {
        let (mark, first) = (machine.memory().mark(), machine.controls().len());
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let end = machine.advance(&upto(machine.icount() + 1 + (random >> 40) % 20_000));
        let written: BTreeSet<u64> = {
            let memory = machine.memory();
            memory.written_since(mark).filter_map(|page| memory.gpa(page)).map(|gpa| gpa >> 12).collect()
        };
        protocol.fetch(&mut machine, pages);
        let told = told(&machine, first)?;
        let lost: Vec<_> = written.difference(&told).collect();
        ensure!(lost.is_empty(), "round {rounds}: pages {lost:x?} are lost");
        (checked, rounds) = (checked + written.len(), rounds + 1);
        if !matches!(end, End::Limit { .. }) || rounds >= 60 {
            return Ok(checked);
        }
    }
}

#[test]
fn what_is_written_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        for guest in GUESTS {
            let recorded = vmtape(folder.path(), &["record", "-q", "-b", backend, "-o", "a.tape", guest])?;
            ensure!(recorded.status.success(), "{backend} {guest}: {}", tail(&recorded));
            for (protocol, large) in Protocol::ALL.into_iter().flat_map(|p| [(p, false), (p, true)]) {
                let what = || format!("{backend}, {guest}, {protocol:?}, large pages {large}");
                let checked = check(machine(folder.path(), backend, large, protocol)?, protocol);
                ensure!(checked.with_context(what)? > 100, "{}: too few writes to say anything", what());
            }
        }
    }
    Ok(())
}

#[test]
fn pages_are_those_of_the_bitmap() {
    let set = Pages::of_bitmap(&[0b1011]);
    assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 3]);
}
