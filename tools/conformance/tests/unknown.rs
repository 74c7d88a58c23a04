//! Exits that are fed without their guest show what they show beside it, and never more than a run of the guest: what a tape
//! does not tell is counted as unknown, and never guessed.
//!
//! The oracle for what tapes tell is the guest itself, which runs on the tape's machine and lends all of its registers and memory
//! before each exit. The oracle for what exits show is the run of the guest on both machines.

use anyhow::{Context, Result};
use std::{collections::BTreeMap, path::Path};
use vmtape_abi::{Backend, Description, VmConfig};
use vmtape_backends::LoadedPlugin;
use vmtape_conformance::{bench::plugin, tail, vmtape};
use vmtape_machine::{MachineSpec, vmm::When};
use vmtape_replay::{Error, Report, across::Sides, exits, report::Verdict, spec};
use vmtape_traces::Tape;

const NARROW: &str = "max,-pku,phys-bits=36";
/// Backends, with a host for each.
const MACHINES: [[&str; 2]; 5] = [
    ["vmx", "intel-48"],
    ["vmx,allow_smaller_maxphyaddr=on", "intel-48"],
    ["vmx,ept=off", "intel-48"],
    ["svm", "amd-48"],
    ["svm-npt", "amd-48"],
];

struct Bench {
    folder: tempfile::TempDir,
    plugins: BTreeMap<String, LoadedPlugin>,
}

impl Bench {
    fn new() -> Result<Self> {
        let load = |name: &str| -> Result<(String, LoadedPlugin)> { Ok((name.to_owned(), plugin(name)?)) };
        let plugins = vmtape_conformance::BACKENDS.iter().map(|name| load(name)).collect::<Result<_>>()?;
        Ok(Self { folder: tempfile::tempdir()?, plugins })
    }

    fn create(&self, machine: &MachineSpec) -> Result<Box<dyn Backend>, Error> {
        let config = VmConfig { silicon: machine.silicon, options: machine.options.clone() };
        let created = self.plugins[&machine.backend].create(&config);
        created.map_err(|reason| Error::Refused { backend: machine.backend.clone(), reason })
    }

    fn record(&self, [backend, host]: [&str; 2], guest: &str, most: &str) -> Result<Tape> {
        let line = ["record", "-q", "-b", backend, "--host", host, "--cpu", NARROW, "--max-insns", most];
        let recorded = vmtape(self.folder.path(), &[&line[..], &["-o", "a.tape", guest]].concat())?;
        let path = self.folder.path().join("a.tape");
        let tape = Tape::open_whole(&path).with_context(|| tail(&recorded))?;
        std::fs::remove_file(path)?;
        Ok(tape)
    }

    /// The tape's guest on another machine.
    fn elsewhere(&self, guest: &MachineSpec, on: [&str; 2]) -> Result<MachineSpec> {
        let other = spec::machine(&self.record(on, "builtin:hello", "1")?)?;
        let MachineSpec { backend, options, silicon, host, .. } = other;
        Ok(MachineSpec { backend, options, silicon, host, ..guest.clone() })
    }

    /// All that exits show, by the tape alone or beside the guest, and what a run shows first.
    fn compare(&self, tape: &Tape, actual: &MachineSpec) -> Result<([Report; 2], Report)> {
        let description = Description::default();
        let expected = spec::machine(tape)?;
        let create = |machine: &MachineSpec| self.create(machine);
        let sides = Sides {
            way: None,
            tape,
            actual: actual.clone(),
            expected,
            create: &create,
            expected_plugin: &description,
            plugin: &description,
            context: 0,
            at: When::Start,
            explain: false,
            reproduce: String::new(),
            inputs: None,
        };
        let fed = |beside| -> Result<Report> {
            let mut report = Report::new("", "", "");
            let method = exits::Method { same: false, go_on: true, beside };
            exits::replay(&sides, method, &mut report, &mut |_| {})?;
            Ok(report)
        };
        let mut run = Report::new("", "", "");
        let fed = [fed(false)?, fed(true)?];
        sides.compare(&mut run, &mut |_| {})?;
        Ok((fed, run))
    }
}

/// Exits that were not judged.
fn unjudged(report: &Report) -> u64 {
    let between = |what: &&String| what.starts_with("instructions between exits");
    report.unknown.iter().filter(|(what, _)| !between(what)).map(|(_, count)| count).sum()
}

fn occurrences(report: &Report) -> BTreeMap<String, u64> {
    let named = |found: &vmtape_replay::report::Occurrence| {
        let at = found.divergence.expected_exit.unwrap_or_default();
        (format!("{} first at exit {at}", found.divergence.signature), found.times)
    };
    report.occurrences.iter().map(named).collect()
}

/// Compares guests on all pairs of machines. Gives how many comparisons had everything to judge by and found something.
fn hold(guests: &[&str], most: &str) -> Result<u32> {
    let bench = Bench::new()?;
    let (mut telling, mut wrong) = (0, Vec::new());
    for guest in guests {
        for from in MACHINES {
            let tape = bench.record(from, guest, most)?;
            let machine = spec::machine(&tape)?;
            for to in MACHINES.into_iter().filter(|to| *to != from) {
                let actual = bench.elsewhere(&machine, to)?;
                let ([told, known], run) = bench.compare(&tape, &actual)?;
                let what = format!("{guest}, {} to {}", from[0], to[0]);
                assert_ne!(told.verdict, Verdict::Same, "{what}: the guest did not run");
                wrong.extend(disagreement(&told, &known, &run).map(|why| format!("{what}: {why}")));
                telling += u32::from(unjudged(&told) == 0 && !told.occurrences.is_empty());
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(telling)
}

/// `told`: by the tape alone; `known`: beside the guest.
fn disagreement(told: &Report, known: &Report, run: &Report) -> Option<String> {
    let (few, all) = (occurrences(told), occurrences(known));
    if unjudged(told) == 0 && few != all {
        return Some(format!("by the tape {few:?}, beside the guest {all:?}"));
    }
    // Where exits could not be judged, fewer of them show something, and not more.
    let missing: u64 = all.values().sum::<u64>().saturating_sub(few.values().sum());
    if missing > unjudged(told) {
        return Some(format!(
            "by the tape {few:?} with {} unknown, beside the guest {all:?}",
            unjudged(told)
        ));
    }
    let first = |report: &Report| report.divergence.as_ref().map_or(u64::MAX, |found| found.icount);
    (first(told) < first(run)).then(|| {
        let found = told.divergence.as_ref().map(|found| (found.icount, found.signature.to_string()));
        format!("exits show {found:?}, a run nothing until {}", first(run))
    })
}

#[test]
fn what_exits_show_does_not_depend_on_who_remembers() -> Result<()> {
    assert!(
        hold(
            &["builtin:illegal", "builtin:bar", "builtin:late", "builtin:vectoring", "builtin:role"],
            "100000"
        )? > 5
    );
    Ok(())
}

#[test]
#[ignore = "takes minutes: every built-in guest with one vCPU"]
fn nor_with_any_guest() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let guests = guests(folder.path())?;
    let guests: Vec<_> = guests.iter().filter(|name| *name != "builtin:smp2").map(String::as_str).collect();
    assert!(hold(&guests, "400000")? > 20);
    Ok(())
}

fn guests(folder: &Path) -> Result<Vec<String>> {
    let listed = String::from_utf8(vmtape(folder, &["guests"])?.stdout)?;
    let names = listed.lines().filter(|line| !line.starts_with(' '));
    Ok(names.filter_map(|line| Some(format!("builtin:{}", line.split_whitespace().next()?))).collect())
}
