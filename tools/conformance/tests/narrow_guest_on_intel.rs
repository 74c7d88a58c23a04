//! kvm-unit-tests' `access` with a guest narrower than its host under the real kvm_intel with allow_smaller_maxphyaddr=1,
//! event by event: exits, what KVM walked and emulated, what it injected.

use anyhow::Result;
use std::{collections::BTreeSet, path::Path};
use vmtape_conformance::{kvm_unit_tests, tail, vmtape};

/// Events that the recording has of every exit.
const KINDS: [&str; 8] = [
    "kvm_exit",
    "kvm_page_fault",
    "kvm_emulate_insn",
    "kvm_inj_exception",
    "kvm_mmu_walker_error",
    "kvm_mmu_set_spte",
    "kvm_msr",
    "kvm_cr",
];

/// Exits that its filter left out (see about.txt there).
const FILTERED: [&str; 3] = ["IO_INSTRUCTION", "EXTERNAL_INTERRUPT", "CPUID"];

/// The events of a tape as text, without those that the recording lacks.
fn events(shown: &str) -> Vec<String> {
    let mut events = Vec::new();
    let mut filtered = false;
    for line in shown.lines() {
        let Some((_, event)) = line.split_once(": ") else { continue };
        let Some((kind, text)) = event.split_once(": ") else { continue };
        if kind == "kvm_exit" {
            let reason = text.split_once("reason ").and_then(|(_, rest)| rest.split(' ').next());
            filtered = reason.is_some_and(|reason| FILTERED.contains(&reason));
        }
        // An interrupt of the recording's host came while an exception was on its way.
        if filtered || !KINDS.contains(&kind) || text.contains("[reinjected]") {
            continue;
        }
        // Where the host's memory lies is its own affair.
        let kept = match kind {
            "kvm_mmu_set_spte" => text.split(' ').filter(|word| !is_host_address(word)).collect(),
            _ => text.split(' ').collect::<Vec<_>>(),
        };
        events.push(format!("{kind}: {}", kept.join(" ").trim_end()));
    }
    events
}

/// Frames and page-table addresses of the host: long hexadecimal words.
fn is_host_address(word: &str) -> bool {
    word.len() > 8 && u64::from_str_radix(word, 16).is_ok()
}

#[test]
#[ignore = "needs kvm-unit-tests: VMTAPE_KUT=FOLDER, its x86, built"]
fn event_by_event() -> Result<()> {
    let images = kvm_unit_tests()?;
    let folder = tempfile::tempdir()?;
    let run = |arguments: &[&str]| -> Result<String> {
        let output = vmtape(folder.path(), arguments)?;
        anyhow::ensure!(output.status.success(), "{arguments:?}: {}", tail(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let trace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../traces/recordings/ept1-asm/access_pb36/trace.txt.gz")
        .canonicalize()?;
    let image = images.join("access_test.flat");
    run(&["import", "-o", "real.tape", &trace.to_string_lossy()])?;
    let machine = ["record", "-b", "vmx", "--host", "intel-40-bochs", "--layout", "mvmm", "-m", "256M"];
    let guest = ["--cpu", "max,-pku,phys-bits=36", "--kvm", "v6.12,allow_smaller_maxphyaddr=on"];
    // The recording ends after 31427 exits, not counting those that were filtered.
    let end = ["--max-exits", "33000", "-o", "ours.tape"];
    run(&[&machine[..], &guest, &end, &[&image.to_string_lossy()]].concat())?;
    let verdict = run(&["diff", "real.tape", "ours.tape"])?;
    assert!(verdict.contains("31427 exits"), "{verdict}");
    let (real, ours) = (events(&run(&["show", "real.tape"])?), events(&run(&["show", "ours.tape"])?));
    assert!(real.len() > 100_000 && ours.len() > real.len(), "{} events, {} ours", real.len(), ours.len());
    for (n, (real, ours)) in real.iter().zip(&ours).enumerate() {
        assert_eq!(real, ours, "event {n}");
    }
    // What the comparison was about: corrected faults of each kind that access.c makes.
    let injected: BTreeSet<_> = real.iter().filter_map(|e| e.strip_prefix("kvm_inj_exception: ")).collect();
    for fault in ["#PF (0x9)", "#PF (0xb)", "#PF (0xd)", "#PF (0xf)", "#PF (0x5)", "#PF (0x7)"] {
        assert!(injected.contains(fault), "{fault} is not in the recording");
    }
    Ok(())
}
