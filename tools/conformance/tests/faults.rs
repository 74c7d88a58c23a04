//! Every fault point of every backend fires, changes what it says, is on the tape by its name, and repeats.

use anyhow::{Context, Result, bail};
use std::path::Path;
use vmtape_conformance::{BACKENDS, tail, timer, vmtape};
use vmtape_traces::{
    Event, Tape,
    event::{Fault, PcpuKind},
};

/// A run that comes to a point.
struct Reached {
    guest: &'static str,
    options: &'static [&'static str],
    /// The backend's options.
    backend: &'static str,
    /// Which occurrence, and the answer.
    n: u64,
    value: u64,
}

/// Small pages, so that there are many faults.
const READ: Reached =
    Reached { guest: "builtin:matrix", options: &["--backing=4K"], backend: "", n: 10, value: 1 };

/// Writes three pages in each of its rounds, and a VMM that fetches a log twice.
const LOG: Reached = Reached {
    guest: "builtin:dirty,pages=3,rounds=6000",
    options: &[
        "--backing=4K",
        "--memory-region=slot=0,gpa=0,size=64M,flags=1",
        "--get-dirty-log=0,insn=20000",
        "--get-dirty-log=0,insn=40000",
    ],
    ..READ
};

/// The same with a ring.
const RING: Reached = Reached {
    options: &[
        "--backing=4K",
        "--enable-cap=192,arg=0x4000,create",
        "--memory-region=slot=0,gpa=0,size=64M,flags=1",
        "--harvest-dirty-ring=insn=20000",
        "--reset-dirty-rings=insn=20000",
        "--harvest-dirty-ring=insn=40000",
        "--reset-dirty-rings=insn=40000",
    ],
    ..LOG
};

/// What only a VMM that moves a guest asks for; the backends' own tests ask these points to fire.
const IN_MOVES: [&str; 2] = ["get-state-refused", "set-state-refused"];

/// A hypervisor whose guest runs while its nested state is put back.
const NESTED: Reached = Reached {
    guest: "builtin:nested-pat,npt=1,rounds=1,invalid=0",
    options: &["--cpu=max,+svm", "--set-nested-state=same,insn=10720"],
    n: 1,
    ..READ
};

/// How the run comes there that shows the point.
fn reached(point: &str, backend: &str) -> Reached {
    let shadow = if backend == "vmx" { ",ept=0" } else { "" };
    // Silicon logs no writes: entries are protected.
    let unlogged = if backend == "vmx" { ",pml=0" } else { "" };
    match point {
        // The present bit of an entry.
        "guest-entry-flip" | "nested-entry-flip" => Reached { value: 1, n: 3, ..READ },
        "shadow-entry-flip" => Reached { value: 1, n: 50, backend: shadow, ..READ },
        "kvm-entry-flip" => Reached { guest: "builtin:io", value: 4, n: 1, ..READ },
        // A reserved bit.
        "spte-flip" => Reached { value: 1 << 50, n: if backend == "svm" { 1 } else { 5 }, ..READ },
        "itlb-multihit" => Reached { options: &["--backing=2M"], n: 3, value: 0xb600_0000_0000_0150, ..READ },
        "nested-state-pages" if backend == "svm" => Reached {
            guest: "builtin:nested-pat,npt=0,rounds=1,invalid=0",
            options: &["--cpu=max,+svm", "--set-nested-state=same,insn=900"],
            ..NESTED
        },
        "nested-state-pages" => NESTED,
        // It leads to no table.
        "link-flip" => Reached { value: 1 << 40, n: 3, ..READ },
        "exit-info-cleared" => Reached { value: 0x1f, n: 5, ..READ },
        "lost-flush" => Reached { n: 1, ..READ },
        "machine-check" => Reached { value: 0xb600_0000_0001_0015, ..READ },
        "mmu-cache-enomem" => Reached { value: 12, ..READ },
        "root-enomem" => Reached { value: 12, n: 2, ..READ },
        "slot-invalid" => Reached { value: 1, ..READ },
        "pfn-error" => Reached { value: 14, ..READ },
        "mmu-pages-enospc" => Reached { value: 28, n: 3, backend: shadow, ..READ },
        "user-io-stale" => Reached { guest: "builtin:io", n: 1, value: 0x55, ..READ },
        // The machine's own slot is the first.
        "slot-update-enomem" => Reached {
            options: &["--memory-region=gpa=0x1000000000,size=2M,insn=1000"],
            n: 2,
            value: 12,
            ..READ
        },
        "failed-entry" => Reached { value: 0x8000_0021, n: 5, ..READ },
        "rdmsr-refused" | "wrmsr-refused" => Reached { guest: "builtin:cpuid", n: 1, ..READ },
        "get-msr-refused" => Reached { options: &["--get-msr=0x277,insn=1000"], n: 1, value: 22, ..READ },
        "set-msr-refused" => {
            Reached { options: &["--set-msr=0x277=0x606060606060606,insn=1000"], n: 1, value: 22, ..READ }
        }
        // Once for the machine's own call, and then the script's.
        "set-cpuid-refused" => Reached { options: &["--set-cpuid=same,insn=1000"], n: 2, value: 22, ..READ },
        "insn-bytes-lost" => Reached { guest: "builtin:io", n: 1, ..READ },
        // A page that is not marked again.
        "dirty-mark-lost" | "nested-lost-dirty" => Reached { n: 6, ..LOG },
        // The exit after the first fetch, in whose round all pages are written.
        "pml-not-drained" => Reached { n: 784, ..LOG },
        "protect-before-snapshot" => Reached { n: 1, value: 9216, ..LOG },
        "protect-flush-skipped" => Reached { n: 1, ..LOG },
        // 64 pages from 9216 on.
        "dirty-word-dropped" => Reached { n: 9216 / 64 + 1, ..LOG },
        // A page that is written again.
        "spte-update-race" => Reached { n: 9, ..LOG },
        "fast-pf-aba" => Reached { n: 1, value: 0x2405, backend: unlogged, ..LOG },
        "get-dirty-log-efault" => Reached { n: 1, value: 14, ..LOG },
        "ring-entry-lost" => Reached { n: 2, ..RING },
        // A page that is written again.
        "ring-slot-gone" => Reached { n: 1, value: if backend == "svm" { 5 } else { 7 }, ..RING },
        // While the VMCS leaves the first CPU.
        "crash-nmi" => Reached { options: &["--pcpus=2"], n: 8, ..READ },
        // The first CPU must come.
        "vmxon-fault" | "enable-busy" => Reached { options: &["--pcpus=2"], n: 2, value: 13, ..READ },
        _ => READ,
    }
}

/// The names of a backend's points.
fn points(backend: &str) -> Result<Vec<String>> {
    let printed = vmtape(Path::new("."), &["backends", "--json"])?;
    let json: serde_json::Value = serde_json::from_slice(&printed.stdout)?;
    let backends = json["backends"].as_array().context("a list of backends")?;
    let described = backends.iter().find(|described| described["name"] == backend);
    let rows =
        described.and_then(|described| described["fault_points"].as_array()).context(json.to_string())?;
    rows.iter().map(|row| Ok(row["name"].as_str().context("a name")?.to_owned())).collect()
}

fn record(folder: &Path, tape: &str, backend: &str, reached: &Reached, fault: Option<&str>) -> Result<Tape> {
    let backend = format!("{backend}{}", reached.backend);
    let mut line = vec!["record", "-q", "-o", tape, "-b", &backend, reached.guest];
    line.extend(["--max-insns", "400000", "--max-exits", "5000"]);
    line.extend(reached.options);
    line.extend(fault.iter().flat_map(|fault| ["--fault", fault]));
    let recorded = vmtape(folder, &line)?;
    Tape::open_whole(&folder.join(tape)).with_context(|| format!("{line:?}: {}", tail(&recorded)))
}

fn faults(tape: &Tape) -> Result<Vec<Fault>> {
    let mut faults = Vec::new();
    for event in tape.events() {
        if let Event::Fault(fault) = event? {
            faults.push(fault);
        }
    }
    Ok(faults)
}

/// What a run did, without the faults themselves.
fn effects(tape: &Tape) -> Result<Vec<Event>> {
    let events = tape.events().filter(|event| !matches!(event, Ok(Event::Fault(_))));
    Ok(events.collect::<Result<_, _>>()?)
}

/// Injects one fault, and looks at all that must follow from it.
fn fires(folder: &Path, backend: &str, point: &str) -> Result<()> {
    let reached = reached(point, backend);
    // Points that are about no vCPU have none.
    let whose = match point {
        "vmxon-fault" | "enable-busy" | "slot-update-enomem" => "",
        "protect-before-snapshot" | "protect-flush-skipped" | "dirty-word-dropped" => "",
        "get-dirty-log-efault" | "ring-slot-gone" | "spte-update-race" => "",
        _ => ",vcpu=0",
    };
    let fault = format!("{point},n={},value={:#x}{whose}", reached.n, reached.value);
    let without = record(folder, "without.tape", backend, &reached, None)?;
    let tape = record(folder, "with.tape", backend, &reached, Some(&fault))?;
    let fired = faults(&tape)?;
    let [fired] = fired[..] else { bail!("{fault} fired {} times", fired.len()) };
    if (fired.occurrence, fired.answer) != (reached.n, reached.value) {
        bail!("{fault}: {fired:?}");
    }
    if tape.metadata().fault_point(fired.point) != Some(point) {
        bail!("{fault}: the tape does not name it");
    }
    // What silicon or the TLB does not do may not matter to the guest that is at hand.
    if !["lost-flush", "insn-bytes-lost", "exit-info-cleared"].contains(&point)
        && effects(&tape)? == effects(&without)?
    {
        bail!("{fault}: nothing follows from it");
    }
    for more in [&[][..], &["--mode", "exits"]] {
        let replayed = vmtape(folder, &[&["replay", "with.tape"], more].concat())?;
        if !replayed.status.success() {
            bail!("{fault}: replay {more:?}: {}", tail(&replayed));
        }
    }
    for command in ["show", "stat"] {
        let printed = String::from_utf8(vmtape(folder, &[command, "with.tape"])?.stdout)?;
        if !printed.contains(point) {
            bail!("{fault}: {command} does not tell of it");
        }
    }
    Ok(())
}

#[test]
fn every_fault_point_fires_and_repeats() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut failed = Vec::new();
    for backend in BACKENDS {
        let points = points(backend)?;
        assert!(points.len() > 10, "{backend}: {points:?}");
        for point in points.iter().filter(|point| !IN_MOVES.contains(&point.as_str())) {
            failed
                .extend(fires(folder.path(), backend, point).err().map(|why| format!("{backend}: {why:#}")));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// A timer's interrupts reach the guest while it runs.
const TIMED: Reached = Reached { guest: "timer", options: &[], ..READ };

/// The host's own points fire too, change what they say, and repeat.
#[test]
fn the_hosts_own_points_fire_and_repeat() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("timer"), timer::guest())?;
    for backend in BACKENDS {
        for (fault, reached) in [
            ("host-nmi,insn=300", &READ),
            ("host-clock-jump,n=3,value=1000000", &READ),
            // Lost, late, and once more.
            ("host-timer,n=2,value=0", &TIMED),
            ("host-timer,n=2,value=7000", &TIMED),
            ("host-timer,n=2,value=0x8000000000001b58", &TIMED),
            ("host-irq-lost,n=2", &TIMED),
            ("host-irq-spurious,n=5,value=0x20", &TIMED),
            ("host-tsc-jump,n=3,value=5000", &TIMED),
            ("host-tsc-jump,n=3,value=0xffffffffffffff00", &TIMED),
        ] {
            let without = record(folder.path(), "without.tape", backend, reached, None)?;
            let tape = record(folder.path(), "a.tape", backend, reached, Some(fault))?;
            let fired = faults(&tape)?;
            assert_eq!(fired.len(), 1, "{backend} {fault}");
            let name = fault.split(',').next();
            assert_eq!(tape.metadata().fault_point(fired[0].point), name, "{backend} {fault}");
            assert_ne!(effects(&tape)?, effects(&without)?, "{backend} {fault}: nothing follows from it");
            for mode in ["run", "exits"] {
                let replayed = vmtape(folder.path(), &["replay", "a.tape", "--mode", mode])?;
                assert!(replayed.status.success(), "{backend} {fault} {mode}: {}", tail(&replayed));
            }
        }
    }
    Ok(())
}

/// KVM_RUN that is interrupted is called again, and nobody notices; for ever it is a hang with an end.
#[test]
fn an_interrupted_run_is_run_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        for (when, expected) in [("n = \"1-200\"", "masked"), ("n = \"5-\"", "hang")] {
            let plan = format!(
                "expect = \"{expected}\"\n[[rule]]\nwhen = {{ point = \"host-run-interrupted\", {when} }}\n"
            );
            std::fs::write(folder.path().join("plan.toml"), plan)?;
            let line = ["inject", "plan.toml", "-b", backend, "-o", "a.tape", "builtin:io"];
            let judged = vmtape(folder.path(), &line)?;
            assert!(judged.status.success(), "{backend} {when}: {}", tail(&judged));
            for mode in ["run", "exits"] {
                let replayed = vmtape(folder.path(), &["replay", "a.tape", "--mode", mode])?;
                assert!(replayed.status.success(), "{backend} {when} {mode}: {}", tail(&replayed));
            }
        }
    }
    Ok(())
}

/// There is no guest to begin with, and nothing is left of it.
#[test]
fn a_vcpu_that_is_not_created_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        let fault = "host-create-vcpu,n=1,vcpu=1,value=12";
        let line = ["record", "-q", "-o", "a.tape", "-b", backend, "--fault", fault, "builtin:smp2"];
        let refused = vmtape(folder.path(), &line)?;
        let told = tail(&refused);
        assert!(refused.status.code() == Some(125) && told.contains("vCPU 1"), "{backend}: {told}");
        std::fs::write(
            folder.path().join("plan.toml"),
            "expect = \"refused\"\n[[rule]]\nwhen = { point = \"host-create-vcpu\", vcpu = 1 }\nwhat = { answer = 12 }\n",
        )?;
        let judged = vmtape(folder.path(), &["inject", "plan.toml", "-b", backend, "builtin:smp2"])?;
        assert!(judged.status.success(), "{backend}: {}", tail(&judged));
    }
    Ok(())
}

/// The run ends with the host, and its end says what the next kernel finds, which is other than up to v5.6.
// See: KVM commit 31603d4fc2bb
#[test]
fn a_crash_ends_the_run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let crash = Reached { options: &["--pcpus=2", "--kvm=v6.12"], ..READ };
    let tape = record(folder.path(), "a.tape", "vmx", &crash, Some("crash-nmi,n=8"))?;
    let mut crashes = 0;
    for event in tape.events() {
        crashes += u32::from(matches!(event?, Event::Pcpu(event) if event.kind == PcpuKind::CRASH));
    }
    assert_eq!(crashes, 2);
    let replay = |more: &[&str]| -> Result<String> {
        let output = vmtape(folder.path(), &[&["replay", "a.tape"], more].concat())?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let same = replay(&[])?;
    assert!(same.contains("SAME") && same.contains("the host has crashed\n"), "{same}");
    let old = replay(&["--kvm", "v5.6"])?;
    for words in ["DIFFERENT", "the VMCS of vCPU 0 is still active on CPU 1", "cause: crash-always-vmclears"]
    {
        assert!(old.contains(words), "{words}: {old}");
    }
    Ok(())
}

/// A kernel that died of VMXON takes no exit, in either mode.
// See: KVM commit 4f6ea0a87608
#[test]
fn a_dead_host_takes_no_exits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let vmxon = Reached { options: &["--pcpus=2", "--kvm=v6.12"], ..READ };
    record(folder.path(), "a.tape", "vmx", &vmxon, Some("vmxon-fault,n=2,value=13"))?;
    for mode in ["run", "exits"] {
        let output = vmtape(folder.path(), &["replay", "a.tape", "--kvm", "v5.6", "--mode", mode, "--json"])?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(
            (&report["verdict"], &report["divergence"]["icount"]),
            (&"different".into(), &0.into()),
            "{mode}"
        );
    }
    Ok(())
}

/// vCPUs that move between CPUs are on the tape, and so is what depends on it.
#[test]
fn vcpus_move_between_physical_cpus() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let moves = Reached {
        guest: "builtin:smp2",
        options: &["--pcpus=3", "--checkpoint-every=20", "--query=last-vmentry-cpu,exit=60"],
        ..READ
    };
    for backend in BACKENDS {
        let tape = record(folder.path(), "a.tape", backend, &moves, None)?;
        let mut cpus = Vec::new();
        for event in tape.events() {
            if let Event::Pcpu(event) = event? {
                cpus.push(event);
            }
        }
        let of = |kind| cpus.iter().filter(|event| event.kind == kind).count();
        assert_eq!([of(PcpuKind::ENABLE), of(PcpuKind::DISABLE)], [3, 3], "{backend}");
        assert!(of(PcpuKind::LOAD) > 3, "{backend}: {cpus:?}");
        for more in [&[][..], &["--mode", "exits"], &["--from", "50"]] {
            let replayed = vmtape(folder.path(), &[&["replay", "a.tape"], more].concat())?;
            assert!(replayed.status.success(), "{backend} {more:?}: {}", tail(&replayed));
        }
    }
    Ok(())
}

/// What another machine does not come to is counted, and in the tape's own machine it is a difference.
#[test]
fn faults_that_nobody_asks_for_are_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), "a.tape", "svm-npt", &READ, Some("page-fault-retry,n=10"))?;
    let replayed = vmtape(folder.path(), &["replay", "a.tape", "-b", "svm", "--mode", "exits"])?;
    let text = String::from_utf8(replayed.stdout)?;
    assert!(text.contains("faults of the tape that the other machine does not reach"), "{text}");
    Ok(())
}

#[test]
fn bad_faults_are_refused_in_words() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (fault, words) in [
        ("nonsense", "no fault point `nonsense`"),
        ("lost-flush,n=0", "count from 1"),
        ("lost-flush,k=1", "none of n, vcpu and value"),
    ] {
        let line = ["record", "-q", "-o", "a.tape", "-b", "vmx", "--fault", fault, "builtin:hello"];
        let refused = vmtape(folder.path(), &line)?;
        assert!(!refused.status.success() && tail(&refused).contains(words), "{}", tail(&refused));
    }
    Ok(())
}
