//! What a replay on another backend says: of a guest narrower than its host, and of guests that see no difference.

use anyhow::Result;
use std::path::Path;
use vmtape_conformance::{BACKENDS, tail, timer, vmtape};

const SAME: Option<i32> = Some(0);
const DIFFERENT: Option<i32> = Some(1);
/// No difference was found, but the guest did not run between its exits.
const UNKNOWN: Option<i32> = Some(125);

/// The guest that touches an illegal address, under the one nested-paging backend that hides the host's width.
fn record(folder: &Path) -> Result<()> {
    let backend = "vmx,allow_smaller_maxphyaddr=on";
    let line =
        ["record", "-q", "-b", backend, "--cpu", "max,phys-bits=36", "-o", "a.tape", "builtin:illegal"];
    let recorded = vmtape(folder, &line)?;
    assert!(recorded.status.success(), "{}", tail(&recorded));
    Ok(())
}

#[test]
fn shadow_paging_hides_the_host_and_amds_nested_paging_does_not() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    for (mode, same) in [("run", SAME), ("exits", UNKNOWN)] {
        let svm = vmtape(folder.path(), &["replay", "a.tape", "-b", "svm", "--mode", mode])?;
        assert_eq!(svm.status.code(), same, "{mode}: {}", tail(&svm));
        let npt = vmtape(folder.path(), &["replay", "a.tape", "-b", "svm-npt", "--mode", mode])?;
        assert_eq!(npt.status.code(), DIFFERENT, "{mode}: {}", tail(&npt));
    }
    Ok(())
}

/// What one silicon executes itself another one's KVM emulates: neither leaves a trace in what the guest sees later. What it did
/// between its exits only the tape's own machine is known to do alike.
#[test]
fn guests_that_see_no_difference_show_none_without_being_run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for guest in ["builtin:hello", "builtin:io", "builtin:cpuid", "builtin:smp2"] {
        for (from, to) in BACKENDS.iter().flat_map(|from| BACKENDS.map(|to| (*from, to))) {
            let recorded = vmtape(folder.path(), &["record", "-b", from, "-o", "b.tape", guest])?;
            assert!(recorded.status.success(), "{guest} {from}: {}", tail(&recorded));
            let line = ["replay", "b.tape", "-b", to, "--mode", "exits", "--json"];
            let replayed = vmtape(folder.path(), &line)?;
            let report: serde_json::Value = serde_json::from_slice(&replayed.stdout)?;
            let unknown: Vec<(&String, &serde_json::Value)> =
                report["unknown"].as_object().into_iter().flatten().collect();
            let (code, verdict) = if from == to { (SAME, "same") } else { (UNKNOWN, "unknown") };
            assert_eq!(replayed.status.code(), code, "{guest} {from} to {to}: {}", tail(&replayed));
            assert_eq!(report["verdict"], verdict, "{guest} {from} to {to}: {}", tail(&replayed));
            let between =
                |(what, _): &(&String, &serde_json::Value)| what.starts_with("instructions between exits");
            assert_eq!(unknown.iter().any(between), from != to, "{guest} {from} to {to}: {unknown:?}");
        }
    }
    Ok(())
}

/// A guest's guest halts until the hypervisor's timer takes it out: what #VMEXIT reads stands with the exit that halted, and is known.
#[test]
fn the_entry_that_wakes_a_halted_guests_guest_is_judged() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (backend, npt) in [("svm-npt", 1), ("svm", 0)] {
        let guest = format!("builtin:nested-exits,part=signals,npt={npt}");
        let line =
            ["record", "-q", "-b", backend, "--kvm", "v5.10", "--cpu", "max,+svm", "-o", "c.tape", &guest];
        let recorded = vmtape(folder.path(), &line)?;
        assert!(recorded.status.code() == Some(0), "{backend}: {}", tail(&recorded));
        for mode in ["run", "exits"] {
            let replayed = vmtape(folder.path(), &["replay", "c.tape", "--mode", mode])?;
            assert_eq!(replayed.status.code(), SAME, "{backend} {mode}: {}", tail(&replayed));
        }
    }
    Ok(())
}

/// The guest meets another page fault after 760 instructions, which only the other machine's paging makes an exit.
#[test]
fn what_the_guest_does_between_exits_is_not_the_same_without_being_run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let machine = ["--host", "amd-48", "--cpu", "max,-pku,phys-bits=36"];
    let line = [&["record", "-q", "-b", "svm-npt"], &machine[..], &["-o", "c.tape", "builtin:late"]];
    vmtape(folder.path(), &line.concat())?;
    for to in ["svm", "vmx,ept=0"] {
        let replay = ["replay", "c.tape", "-b", to];
        let run = vmtape(folder.path(), &replay)?;
        assert_eq!(run.status.code(), DIFFERENT, "{to}: {}", tail(&run));
        for more in [&[][..], &["--bisect"], &["--continue"]] {
            let exits = vmtape(folder.path(), &[&replay[..], &["--mode", "exits"], more].concat())?;
            assert_eq!(exits.status.code(), UNKNOWN, "{to} {more:?}: {}", tail(&exits));
            let text = String::from_utf8_lossy(&exits.stdout);
            assert!(text.contains("NO DIFFERENCE FOUND, BUT NOT ALL IS KNOWN"), "{text}");
        }
        let bisect = ["bisect", "c.tape", "-b", to, "--axis", "exits", "--mode", "exits"];
        let bisected = vmtape(folder.path(), &bisect)?;
        assert_eq!(bisected.status.code(), UNKNOWN, "{to}: {}", tail(&bisected));
        let line = [&["record", "-q", "-b", to], &machine[2..], &["-o", "d.tape", "builtin:late"]];
        vmtape(folder.path(), &line.concat())?;
        let diff = vmtape(folder.path(), &["diff", "c.tape", "d.tape"])?;
        assert_ne!(diff.status.code(), SAME, "{to}: {}", tail(&diff));
    }
    Ok(())
}

#[test]
fn the_first_divergence_is_the_accessed_bit_and_says_why() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    let npt = vmtape(folder.path(), &["replay", "a.tape", "-b", "svm-npt"])?;
    let text = String::from_utf8(npt.stdout)?;
    for expected in [
        "accessed bit set instead of clear: 0x1002000021, not 0x1002000001",
        "known silicon behaviour",
        "accessed-before-npf",
        "3edd68399dc1",
        "bit 36 is reserved for the guest (36 bits), not for this host (46 bits)",
        "again: vmtape replay a.tape -b svm-npt",
    ] {
        assert!(text.contains(expected), "{expected} is missing in:\n{text}");
    }
    Ok(())
}

/// Two tapes that have nothing in common: that nobody knows why they differ is an answer too, and no success.
#[test]
fn what_nobody_explains_is_different_all_the_same() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (tape, backend, guest) in [("a.tape", "vmx", "builtin:hello"), ("b.tape", "svm", "builtin:touch")] {
        vmtape(folder.path(), &["record", "-q", "-b", backend, "-o", tape, guest])?;
    }
    let text = vmtape(folder.path(), &["diff", "a.tape", "b.tape"])?;
    assert_eq!(text.status.code(), DIFFERENT, "{}", tail(&text));
    assert!(String::from_utf8_lossy(&text.stdout).contains("cause: unexplained"), "{}", tail(&text));
    let json = vmtape(folder.path(), &["diff", "a.tape", "b.tape", "--json"])?;
    assert_eq!(json.status.code(), DIFFERENT, "{}", tail(&json));
    assert!(String::from_utf8_lossy(&json.stdout).contains("\"class\": \"unexplained\""), "{}", tail(&json));
    Ok(())
}

#[test]
fn reports_are_json_with_a_schema() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    for (line, code) in [
        (vec!["replay", "a.tape", "--json"], SAME),
        (vec!["replay", "a.tape", "-b", "svm-npt", "--json"], DIFFERENT),
        (vec!["diff", "a.tape", "a.tape", "--json"], SAME),
        (vec!["stat", "a.tape", "--json"], SAME),
        (vec!["backends", "--json"], SAME),
        (vec!["guests", "--json"], SAME),
    ] {
        let output = vmtape(folder.path(), &line)?;
        assert_eq!(output.status.code(), code, "{line:?}: {}", tail(&output));
        let text = String::from_utf8(output.stdout)?;
        assert!(
            text.trim_start().starts_with('{') && text.contains("\"schema_version\": 2"),
            "{line:?}: {text}"
        );
    }
    Ok(())
}

#[test]
fn a_tape_goes_through_text_and_back() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path())?;
    for line in [
        vec!["export", "a.tape", "-o", "a.txt"],
        vec!["import", "a.txt", "-o", "b.tape"],
        vec!["export", "b.tape", "-o", "b.txt"],
    ] {
        let output = vmtape(folder.path(), &line)?;
        assert_eq!(output.status.code(), SAME, "{line:?}: {}", tail(&output));
    }
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name));
    assert!(read("a.txt")? == read("b.txt")?, "the text of the imported tape differs");
    Ok(())
}

#[test]
fn the_tour_goes_as_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tour = vmtape(folder.path(), &["tour"])?;
    assert_eq!(tour.status.code(), SAME, "{}", tail(&tour));
    for tape in ["vmx", "svm", "svm-npt"] {
        assert!(folder.path().join(format!("vmtape-tour/{tape}.tape")).exists(), "{tape}");
    }
    Ok(())
}

#[test]
fn a_guest_wider_than_the_other_host_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let line = ["record", "-q", "-b", "vmx", "--host", "intel-52", "-o", "a.tape", "builtin:hello"];
    assert!(vmtape(folder.path(), &line)?.status.success());
    let refused = vmtape(folder.path(), &["replay", "a.tape", "--host", "intel-46"])?;
    assert_eq!(refused.status.code(), Some(2), "{}", tail(&refused));
    assert!(String::from_utf8(refused.stderr)?.contains("52 physical address bits"));
    Ok(())
}

#[test]
fn a_replay_starts_at_a_checkpoint() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let line = ["record", "-q", "-b", "vmx", "--checkpoint-every", "100", "-o", "a.tape", "builtin:cpuid"];
    assert!(vmtape(folder.path(), &line)?.status.success());
    let replayed = vmtape(folder.path(), &["replay", "a.tape", "--from", "250"])?;
    assert_eq!(replayed.status.code(), SAME, "{}", tail(&replayed));
    let without = vmtape(folder.path(), &["replay", "a.tape", "--from", "5"])?;
    assert_eq!(without.status.code(), Some(125), "{}", tail(&without));
    Ok(())
}

/// A tape that the last program of schema 2 recorded: what later ones tell otherwise is exempt, and the rest repeats.
#[test]
fn a_tape_of_an_older_schema_repeats() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/golden/role-schema2.tape");
    std::fs::copy(kept, folder.path().join("old.tape"))?;
    let run = vmtape(folder.path(), &["replay", "old.tape"])?;
    assert_eq!(run.status.code(), SAME, "{}", tail(&run));
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(text.contains("exempt: registers and reads of an older tape"), "{text}");
    let exits = vmtape(folder.path(), &["replay", "old.tape", "--mode", "exits"])?;
    assert_eq!(exits.status.code(), SAME, "{}", tail(&exits));
    let elsewhere = vmtape(folder.path(), &["replay", "old.tape", "-b", "vmx"])?;
    assert_eq!(elsewhere.status.code(), DIFFERENT, "{}", tail(&elsewhere));
    Ok(())
}

/// A timer is started by a store: native, emulated, or one that silicon exits after. None of it may be seen in when it is due.
#[test]
fn a_timer_interrupts_at_the_same_instruction_on_all_silicon() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("timer"), timer::guest())?;
    let forms = [BACKENDS.as_slice(), &["vmx,enable_apicv=off", "vmx,ept=off"]].concat();
    for (guest, from) in ["timer", "builtin:luggage"].iter().flat_map(|g| forms.iter().map(move |f| (g, f))) {
        let recorded = vmtape(folder.path(), &["record", "-q", "-b", from, "-o", "c.tape", guest])?;
        assert!(recorded.status.success(), "{guest} {from}: {}", tail(&recorded));
        let replayed = vmtape(folder.path(), &["replay", "c.tape", "-b", "svm"])?;
        assert_eq!(replayed.status.code(), SAME, "{guest} {from}: {}", tail(&replayed));
    }
    Ok(())
}

/// KVM on AMD's silicon delivers into MMIO for ever: the tape ends in the middle of it, where the other machine has come less far.
#[test]
fn a_limit_within_an_instruction_is_no_difference() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let record = |guest: &str| {
        let line = ["record", "-q", "-b", "svm", "--max-exits", "200", "-o", "d.tape", guest];
        vmtape(folder.path(), &line)
    };
    for (guest, code, words) in [
        ("builtin:vectoring", UNKNOWN, "instructions that the tape stops within: 1"),
        ("builtin:luggage", SAME, "SAME"),
    ] {
        let recorded = record(guest)?;
        assert!(recorded.status.success(), "{guest}: {}", tail(&recorded));
        let replayed = vmtape(folder.path(), &["replay", "d.tape", "-b", "svm-npt"])?;
        assert_eq!(replayed.status.code(), code, "{guest}: {}", tail(&replayed));
        assert!(String::from_utf8_lossy(&replayed.stdout).contains(words), "{guest}: {}", tail(&replayed));
    }
    Ok(())
}
