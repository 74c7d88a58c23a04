//! Random guests on every backend: none hangs or panics, each is the same twice, and where backends differ it is known why.
//!
//! The gate runs the same few each time, and looks into some of them: of these every difference is explained. By the thousand, each
//! looked into: `VMTAPE_RANDOM_GUESTS=1000` (half an hour of a processor), from guest number `VMTAPE_RANDOM_FIRST` on.

use anyhow::{Context, Result, ensure};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    ops::{ControlFlow, Range},
    path::PathBuf,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};
use vmtape_abi::{Backend, VmConfig};
use vmtape_backends::LoadedPlugin;
use vmtape_conformance::{BACKENDS, bench, random, tail, vmtape};
use vmtape_machine::{Limits, Live, Machine, MachineSpec, Recorder, vmm::When};
use vmtape_replay::{
    Error, Report,
    across::Sides,
    exits, identical,
    report::{Class, Level, Verdict},
    spec::{self, Budget},
};
use vmtape_traces::{
    Tape,
    event::{End, Event},
    writer::{Options, Writer},
};

const GUESTS: u64 = 125;
/// To look for a cause is to run both sides again with one thing changed after the other: the gate does so of every so many guests (no
/// multiple of the backends, or of the kinds of guests), and of some that nobody could explain once: hypercalls that silicon does not
/// know, translations made before, deliveries onto page tables.
const EXPLAINED_OF: u64 = 11;
const ONCE_UNEXPLAINED: [u64; 8] = [8, 11, 34, 37, 76, 83, 99, 124];
/// A guest that runs in circles ends by this.
const BUDGET: Budget = Budget { instructions: 20_000, exits: 4_000, interrupted: None };
/// Of a hundred differences between guests that nobody has chosen, so many may be unexplained; of the gate's own, none.
const UNEXPLAINED: u64 = 2;

/// The backends, loaded for one thread.
struct Bench {
    folder: tempfile::TempDir,
    plugins: BTreeMap<&'static str, LoadedPlugin>,
    machines: BTreeMap<&'static str, MachineSpec>,
}

/// What a tape's writer hears.
struct Taping(Rc<RefCell<Writer>>);

impl Recorder for Taping {
    fn event(&mut self, event: Event) -> ControlFlow<()> {
        self.0.borrow_mut().push(event);
        ControlFlow::Continue(())
    }
}

/// What was found, by what it is called, with the first guest that shows it.
#[derive(Default)]
struct Found {
    differences: u64,
    /// Guests whose own tape leaves exits open that are fed.
    untold: u64,
    unexplained: BTreeMap<String, (u64, String)>,
}

impl Bench {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (mut plugins, mut machines) = (BTreeMap::new(), BTreeMap::new());
        for name in BACKENDS {
            plugins.insert(name, bench::plugin(name)?);
            fs::write(folder.path().join("guest.bin"), random::boot_sector(0))?;
            let host = if name == "vmx" { "intel-48" } else { "amd-48" };
            let line =
                ["record", "-q", "-b", name, "--host", host, "-m", "16M", "--max-insns", "1", "-o", "a.tape"];
            let recorded = vmtape(folder.path(), &[&line[..], &["guest.bin"]].concat())?;
            let tape = Tape::open(&folder.path().join("a.tape")).with_context(|| tail(&recorded))?;
            machines.insert(name, spec::machine(&tape)?);
        }
        Ok(Self { folder, plugins, machines })
    }

    fn create(&self, machine: &MachineSpec) -> Result<Box<dyn Backend>, Error> {
        let config = VmConfig { silicon: machine.silicon, options: machine.options.clone() };
        let created = self.plugins[machine.backend.as_str()].create(&config);
        created.map_err(|reason| Error::Refused { backend: machine.backend.clone(), reason })
    }

    fn record(&self, machine: &MachineSpec, name: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        let metadata = spec::metadata(machine, &BUDGET)?;
        let writer = Writer::create(&path, &metadata, &spec::images(machine), Options::default())?;
        let writer = Rc::new(RefCell::new(writer));
        let inputs = Box::new(Live::new(machine.seed));
        let recorder: Box<dyn Recorder> = Box::new(Taping(writer.clone()));
        let mut run = Machine::new(machine.clone(), self.create(machine)?, inputs, Some(recorder))?;
        let limits = Limits { instructions: BUDGET.instructions, exits: BUDGET.exits, ..Limits::default() };
        let end = run.advance(&limits);
        if end != End::Cut {
            run.finish(&end);
        }
        drop(run);
        let writer = Rc::into_inner(writer).context("nobody else writes")?.into_inner();
        writer.finish()?;
        Ok(path)
    }

    /// One guest, taped on one backend, twice, and compared with itself and both others in both modes. `explain`: and causes are looked
    /// for.
    fn hold(&self, seed: u64, explain: bool, found: &mut Found) -> Result<()> {
        let name = BACKENDS[seed as usize % BACKENDS.len()];
        let mut machine = self.machines[name].clone();
        // Every backend meets both kinds.
        machine.image.bytes = match seed / BACKENDS.len() as u64 % 2 {
            0 => random::boot_sector(seed),
            _ => random::paged(seed),
        };
        let [path, again] = [self.record(&machine, "r.tape")?, self.record(&machine, "again.tape")?];
        ensure!(fs::read(&path)? == fs::read(again)?, "two recordings differ");
        let tape = Tape::open(&path)?;
        for other in BACKENDS {
            for fed in [false, true] {
                let report = self
                    .compare(&tape, &machine, (other, fed), explain)
                    .with_context(|| format!("{other}, fed {fed}"))?;
                if other == name {
                    // Some exits tell not all that their handling reads: a descriptor table's limit, for one. It is said, and rare.
                    let unknown = fed && report.verdict == Verdict::Unknown && report.divergence.is_none();
                    found.untold += u64::from(unknown);
                    let same = report.verdict == Verdict::Same || unknown;
                    ensure!(same, "{name}, fed {fed}: {:?}", report.divergence);
                }
                let (Some(divergence), true) = (&report.divergence, explain) else { continue };
                found.differences += 1;
                if divergence.class == Class::Unexplained && divergence.level == Level::GuestVisible {
                    let mode = if fed { "exits" } else { "run" };
                    let what = format!("{mode} {name} to {other}: {}", shape(&divergence.summary));
                    let row = found
                        .unexplained
                        .entry(what)
                        .or_insert((0, format!("seed {seed}: {}", divergence.summary)));
                    row.0 += 1;
                }
            }
        }
        Ok(())
    }

    fn compare(
        &self,
        tape: &Tape,
        machine: &MachineSpec,
        (other, fed): (&str, bool),
        explain: bool,
    ) -> Result<Report> {
        let other = &self.machines[other];
        let alike = other.backend == machine.backend;
        let MachineSpec { backend, options, silicon, host, .. } = other.clone();
        let sides = Sides {
            way: None,
            tape,
            expected: spec::machine(tape)?,
            actual: MachineSpec { backend, options, silicon, host, ..machine.clone() },
            create: &|machine: &MachineSpec| self.create(machine),
            expected_plugin: &self.plugins[machine.backend.as_str()].description,
            plugin: &self.plugins[other.backend.as_str()].description,
            context: 0,
            at: When::Start,
            explain,
            reproduce: String::new(),
            inputs: None,
        };
        let mut report = Report::new("", "", "");
        if fed {
            let method = exits::Method { same: alike, ..Default::default() };
            exits::replay(&sides, method, &mut report, &mut |_| {})?;
        } else if alike {
            let actual = sides.actual.clone();
            identical::replay(tape, actual, sides.create, None, &mut report, "", &mut |_| {})?;
        } else {
            sides.compare(&mut report, &mut |_| {})?;
        }
        Ok(report)
    }
}

/// A summary without its numbers.
fn shape(summary: &str) -> String {
    let words =
        summary.split(' ').map(|word| if word.contains(|c: char| c.is_ascii_digit()) { "N" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// The guests of a run, and which of them are looked into.
struct Plan {
    seeds: Range<u64>,
    explained: fn(u64) -> bool,
    /// Of a hundred differences, so many may be unexplained.
    unexplained: u64,
    /// Of a hundred guests, so many may have exits that their own tapes do not tell whole.
    untold: u64,
}

impl Plan {
    fn new() -> Self {
        let number = |name| std::env::var(name).ok().and_then(|count| count.parse::<u64>().ok());
        let first = number("VMTAPE_RANDOM_FIRST").unwrap_or_default();
        match number("VMTAPE_RANDOM_GUESTS") {
            Some(guests) => Self {
                seeds: first..first + guests,
                explained: |_| true,
                unexplained: UNEXPLAINED,
                untold: 1,
            },
            None => {
                let chosen =
                    |seed: u64| seed.is_multiple_of(EXPLAINED_OF) || ONCE_UNEXPLAINED.contains(&seed);
                Self { seeds: 0..GUESTS, explained: chosen, unexplained: 0, untold: 0 }
            }
        }
    }
}

#[test]
fn differences_are_explained() -> Result<()> {
    let plan = Plan::new();
    let next = AtomicU64::new(plan.seeds.start);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let found: Vec<Result<(Found, Vec<String>)>> = thread::scope(|scope| {
        let work = || -> Result<_> {
            let (bench, mut found, mut failed) = (Bench::new()?, Found::default(), Vec::new());
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if !plan.seeds.contains(&seed) {
                    return Ok((found, failed));
                }
                if let Err(error) = bench.hold(seed, (plan.explained)(seed), &mut found) {
                    failed.push(format!("seed {seed}: {error:#}"));
                }
            }
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no worker panics")).collect()
    });
    let (mut differences, mut untold, mut unexplained, mut failed) =
        (0, 0, BTreeMap::<String, (u64, String)>::new(), Vec::new());
    for found in found {
        let (found, failures) = found?;
        differences += found.differences;
        untold += found.untold;
        failed.extend(failures);
        for (what, (count, first)) in found.unexplained {
            unexplained.entry(what).or_insert((0, first)).0 += count;
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let total: u64 = unexplained.values().map(|(count, _)| count).sum();
    println!("{differences} differences looked into, {total} unexplained: {unexplained:#?}");
    let all = plan.seeds.end - plan.seeds.start;
    assert!(
        untold * 100 <= plan.untold * all,
        "of {untold} guests not all exits are known by their own tapes"
    );
    let guests = plan.seeds.clone().filter(|seed| (plan.explained)(*seed)).count() as u64;
    assert!(differences > guests, "only {differences} differences of {guests} guests were looked into");
    assert!(
        total * 100 <= differences * plan.unexplained,
        "{total} of {differences} differences are unexplained: {unexplained:#?}"
    );
    Ok(())
}
