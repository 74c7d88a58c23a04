//! Unmodified kvm-unit-tests on every backend: each passes, and its tape replays identically.

use anyhow::Result;
use std::path::Path;
use vmtape_conformance::{BACKENDS, guest_status, kvm_unit_tests, tail, vmtape};

/// Images that need no arguments, and their CPU models. SYSCALL from compatibility mode is AMD's, so its test runs as
/// AMD's guest, as kvm-unit-tests' own configuration has it.
const GUESTS: [(&str, &str); 19] = [
    ("dummy", "max"),
    ("setjmp", "max"),
    ("idt_test", "max"),
    ("memory", "max"),
    ("sieve", "max"),
    ("rmap_chain", "max"),
    ("smap", "max"),
    ("ioapic", "max"),
    ("apic", "max"),
    ("hpet_read_test", "max"),
    ("pku", "max"),
    ("pcid", "max"),
    ("umip", "max"),
    ("syscall", "max,vendor=AuthenticAMD"),
    ("tsc", "max"),
    ("msr", "max"),
    ("debug", "max"),
    ("xsave", "max"),
    ("hypercall", "max"),
];

/// The status with which a guest leaves: KVM has no protection keys with shadow paging, so `pku` skips itself there.
fn expected_status(guest: &str, backend: &str) -> i32 {
    if (guest, backend) == ("pku", "svm") { guest_status::SKIP } else { guest_status::PASS }
}

/// Records a guest and replays its tape on the same backend. The error says what is not as it should be.
fn record_and_replay(image: &Path, cpu: &str, backend: &str, status: i32) -> Result<Result<(), String>> {
    let folder = tempfile::tempdir()?;
    let image = image.to_string_lossy();
    let recorded = vmtape(
        folder.path(),
        &["record", "-b", backend, "--cpu", cpu, "--guest-status", "-o", "a.tape", &image],
    )?;
    if recorded.status.code() != Some(status) {
        return Ok(Err(format!("{}:\n{}", recorded.status, tail(&recorded))));
    }
    for mode in ["run", "exits"] {
        let replayed = vmtape(folder.path(), &["replay", "a.tape", "--mode", mode])?;
        if !replayed.status.success() {
            return Ok(Err(format!("--mode {mode} is not identical:\n{}", tail(&replayed))));
        }
    }
    Ok(Ok(()))
}

fn all_pass_on(backend: &str) -> Result<()> {
    let images = kvm_unit_tests()?;
    let mut failures = Vec::new();
    for (guest, cpu) in GUESTS {
        let image = images.join(format!("{guest}.flat"));
        match record_and_replay(&image, cpu, backend, expected_status(guest, backend)) {
            Ok(Ok(())) => println!("{backend:8} {guest:10} is as expected, replay identical"),
            Ok(Err(why)) => failures.push(format!("{guest}: {why}")),
            Err(error) => failures.push(format!("{guest}: {error:#}")),
        }
    }
    assert!(failures.is_empty(), "under {backend}:\n{}", failures.join("\n"));
    Ok(())
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn all_pass_on_vmx() -> Result<()> {
    all_pass_on(BACKENDS[0])
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn all_pass_on_svm() -> Result<()> {
    all_pass_on(BACKENDS[1])
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn all_pass_on_svm_npt() -> Result<()> {
    all_pass_on(BACKENDS[2])
}

/// `emulator` runs twice as much where a prefix asks KVM for emulation. Some of what its exits read is on no tape, so that exits mode
/// does not judge all of it.
#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn instructions_are_emulated_on_request() -> Result<()> {
    let images = kvm_unit_tests()?;
    let (folder, image) = (tempfile::tempdir()?, images.join("emulator.flat"));
    let image = image.to_string_lossy();
    for (backend, kvm) in BACKENDS.into_iter().flat_map(|backend| [(backend, "v6.12"), (backend, "v7.2")]) {
        let kvm = format!("{kvm},force_emulation_prefix=1");
        let record = ["record", "-b", backend, "--kvm", &kvm, "--cpu", "max", "--guest-status", "-o"];
        let recorded = vmtape(folder.path(), &[&record[..], &["a.tape", &image]].concat())?;
        assert_eq!(recorded.status.code(), Some(guest_status::PASS), "{backend} {kvm}: {}", tail(&recorded));
        let shown = String::from_utf8_lossy(&recorded.stdout);
        assert!(!shown.contains("SKIP: Skipping tests that require forced emulation"), "{backend}");
        let replayed = vmtape(folder.path(), &["replay", "a.tape"])?;
        assert!(replayed.status.success(), "{backend} {kvm}: {}", tail(&replayed));
    }
    Ok(())
}

/// VMware's backdoor, open to the guest's programs where the parameter says so, in old releases and new ones. Where another port is
/// refused the emulator has read the task-state segment, which no tape tells of: exits mode does not judge that exit.
#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn the_backdoor_is_open_to_programs() -> Result<()> {
    const PARAMETER: &str = "enable_vmware_backdoor=1";
    let images = kvm_unit_tests()?;
    let (folder, image) = (tempfile::tempdir()?, images.join("vmware_backdoors.flat"));
    let image = image.to_string_lossy();
    for (backend, release) in BACKENDS.into_iter().flat_map(|b| [(b, "v5.10"), (b, "v6.12")]) {
        let record = |kvm: &str| {
            let arguments = ["record", "-b", backend, "--kvm", kvm, "--guest-status", "-o", "a.tape", &image];
            vmtape(folder.path(), &arguments)
        };
        let closed = record(release)?;
        assert_eq!(closed.status.code(), Some(guest_status::FAIL), "{backend} {release}: {}", tail(&closed));
        let kvm = format!("{release},{PARAMETER}");
        let open = record(&kvm)?;
        assert_eq!(open.status.code(), Some(guest_status::PASS), "{backend} {kvm}: {}", tail(&open));
        let replayed = vmtape(folder.path(), &["replay", "a.tape"])?;
        assert!(replayed.status.success(), "{backend} {kvm}: {}", tail(&replayed));
        let replayed = vmtape(folder.path(), &["replay", "a.tape", "--mode", "exits", "--json"])?;
        let report: serde_json::Value = serde_json::from_slice(&replayed.stdout)?;
        let unknown = report["unknown"].as_object().and_then(|unknown| unknown.values().next()?.as_u64());
        assert_eq!((&report["verdict"], unknown), (&"unknown".into(), Some(1)), "{backend} {kvm}: {report}");
    }
    Ok(())
}

/// `setjmp` reads x2APIC registers, which only some silicon virtualizes; `debug` DR4, where silicon differs in what comes first.
#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn other_backends_make_the_same_of_taped_exits() -> Result<()> {
    let images = kvm_unit_tests()?;
    let folder = tempfile::tempdir()?;
    for (guest, from, to) in [("setjmp", "svm", "vmx"), ("setjmp", "svm-npt", "vmx"), ("debug", "vmx", "svm")]
    {
        let image = images.join(format!("{guest}.flat"));
        let image = image.to_string_lossy();
        let recorded =
            vmtape(folder.path(), &["record", "-b", from, "--cpu", "max", "-o", "a.tape", &image])?;
        assert!(recorded.status.success(), "{guest} {from}: {}", tail(&recorded));
        let replayed = vmtape(folder.path(), &["replay", "a.tape", "-b", to, "--mode", "exits", "--json"])?;
        let report: serde_json::Value = serde_json::from_slice(&replayed.stdout)?;
        assert_eq!(report["verdict"], "unknown", "{guest} {from} to {to}: {}", tail(&replayed));
        let judged = report["unknown"].as_object().map_or(0, |unknown| unknown.len()) == 1;
        assert!(
            judged,
            "{guest} {from} to {to}: only what lies between exits is unknown: {}",
            tail(&replayed)
        );
    }
    Ok(())
}

/// KVM writes its own vendor's hypercall instruction over the other's. From v5.19 on userspace may forbid it.
#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn the_other_vendors_hypercall_is_overwritten() -> Result<()> {
    const OFF: &str = "fix_hypercall_insn=off";
    let images = kvm_unit_tests()?;
    let (folder, image) = (tempfile::tempdir()?, images.join("hypercall.flat"));
    for backend in BACKENDS {
        let [own, other] = if backend == "vmx" { ["VMCALL", "VMMCALL"] } else { ["VMMCALL", "VMCALL"] };
        for (kvm, outcome) in [
            ("v6.12".to_owned(), "OK (patched)"),
            (format!("v6.12,{OFF}"), "#UD(0)"),
            (format!("v5.18,{OFF}"), "OK (patched)"),
        ] {
            let arguments = ["run", "-b", backend, "--kvm", &kvm, &image.to_string_lossy()];
            let output = vmtape(folder.path(), &arguments)?;
            let shown = String::from_utf8_lossy(&output.stdout);
            for end in [format!("via {own}: OK"), format!("via {other}: {outcome}")] {
                assert!(shown.lines().any(|line| line.ends_with(&end)), "{backend} {kvm}: {end} in\n{shown}");
            }
        }
    }
    Ok(())
}
