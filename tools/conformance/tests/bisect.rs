//! Bisection through the program: each axis names the cause that was put there, on one line, and never another one.

use anyhow::Result;
use std::path::Path;
use vmtape_conformance::{tail, vmtape};

const SAME: Option<i32> = Some(0);
const DIFFERENT: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);
const COULD_NOT_TEST: Option<i32> = Some(125);

/// Records a built-in guest that is told 36 address bits.
fn record(folder: &Path, options: &[&str], guest: &str) -> Result<()> {
    let mut line = vec!["record", "-q", "--cpu", "max,-pku,phys-bits=36", "-o", "a.tape"];
    line.extend(options);
    line.push(guest);
    let recorded = vmtape(folder, &line)?;
    assert!(recorded.status.success(), "{}", tail(&recorded));
    Ok(())
}

/// Bisects the tape and gives what was printed; something bad is found.
fn bisect(folder: &Path, options: &[&str]) -> Result<String> {
    let line = [&["bisect", "a.tape"], options].concat();
    let output = vmtape(folder, &line)?;
    assert_eq!(output.status.code(), DIFFERENT, "{line:?}: {}", tail(&output));
    Ok(String::from_utf8(output.stdout)?)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

// See: KVM commit b96e6506c2ea, Documentation/admin-guide/kernel-parameters.txt kvm-intel.allow_smaller_maxphyaddr
#[test]
fn the_patch_that_switched_it_off_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &["-b", "vmx", "--kvm", "v5.9-rc1"], "builtin:illegal")?;
    let text = bisect(folder.path(), &["--axis", "kvm"])?;
    assert_eq!(
        first_line(&text),
        "first bad: v5.9-rc7 b96e6506c2ea allow_smaller_maxphyaddr defaults to off"
    );
    for evidence in [
        "Make smaller physical guest address space support user-configurable",
        "again: vmtape replay a.tape --kvm",
    ] {
        assert!(text.contains(evidence), "{evidence} is missing in:\n{text}");
    }
    Ok(())
}

/// From the tape's release back to one that knew nothing of narrow guests: of the six patches in between it takes two
/// for a supervisor read, the variable and the emulation that it allows.
// See: KVM commits 3edd68399dc1 (the variable) and 1dbf5d68af6f (handle_ept_violation())
#[test]
fn the_way_back_in_time_ends_at_the_patches_that_brought_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &["-b", "vmx", "--kvm", "v5.9-rc1"], "builtin:illegal")?;
    let text = bisect(folder.path(), &["--axis", "kvm", "--bad", "v5.6"])?;
    let line = first_line(&text);
    assert!(line.starts_with("first good: v5.9-rc1 "), "{line}");
    let commits = ["3edd68399dc1", "1dbf5d68af6f"].map(|commit| line.contains(commit));
    assert_eq!((commits, line.matches("v5.9-rc1").count()), ([true; 2], 2), "{line}");
    Ok(())
}

/// The series as posted in February 2020, on the release that it was made for: two of its patches make the impossible #PF.
#[test]
fn a_series_is_reduced_to_the_patches_that_matter() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &["-b", "vmx", "--kvm", "v5.6"], "builtin:illegal")?;
    let text = bisect(folder.path(), &["--axis", "kvm", "--bad", "v1-series"])?;
    let line = first_line(&text);
    assert!(line.contains("v1-ept-violation-check") && !line.contains("v1-ept-misconfig-check"), "{text}");
    assert!(line.contains("posted 27 Feb 2020"), "{line}");
    Ok(())
}

/// What the tape's user chose stays in every trial: with the parameter on, no release from v5.9 on differs.
#[test]
fn a_choice_of_the_recording_stays() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &["-b", "vmx,allow_smaller_maxphyaddr=on", "--kvm", "v5.10"], "builtin:illegal")?;
    let output = vmtape(folder.path(), &["bisect", "a.tape", "--axis", "kvm", "--bad", "v7.2"])?;
    assert_eq!(output.status.code(), SAME, "{}", tail(&output));
    Ok(())
}

#[test]
fn the_first_exit_is_found_in_both_modes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &["-b", "vmx,allow_smaller_maxphyaddr=on"], "builtin:illegal")?;
    let run = bisect(folder.path(), &["--axis", "exits", "-b", "svm-npt"])?;
    let exits = bisect(folder.path(), &["--axis", "exits", "-b", "svm-npt", "--mode", "exits"])?;
    let place = |text: &str| first_line(text).split(", at rip").next().map(str::to_owned);
    assert!(first_line(&run).starts_with("first bad: exit "), "{run}");
    assert_eq!(place(&run), place(&exits));
    // The other way round the tape has no exit there: nested paging lets silicon raise the fault by itself.
    record(folder.path(), &["-b", "svm-npt"], "builtin:late,before=10,rounds=10")?;
    let text = bisect(folder.path(), &["--axis", "exits", "-b", "svm"])?;
    assert!(first_line(&text).starts_with("first bad: no exit, after "), "{text}");
    Ok(())
}

/// One bit more than the guest has is the least that silicon must know for the illegal address to be legal.
#[test]
fn one_bit_more_is_enough() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &["-b", "vmx,allow_smaller_maxphyaddr=on"], "builtin:illegal")?;
    for side in ["host", "hosts"] {
        let host = bisect(folder.path(), &["--axis", "width", "--side", side, "-b", "svm-npt"])?;
        assert_eq!(first_line(&host), "first bad: host width 37", "{side}");
    }
    let guest = bisect(folder.path(), &["--axis", "width", "--side", "guest", "-b", "svm-npt"])?;
    assert_eq!(first_line(&guest), "first bad: guest width 45");
    Ok(())
}

/// The tape itself shows what its host's width does to the guest: on one host of each width the two backends agree until
/// the host has one bit more than the guest.
#[test]
fn both_hosts_are_made_narrower_together() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &["-b", "svm-npt", "--host", "amd-48"], "builtin:matrix")?;
    let text = bisect(folder.path(), &["--axis", "width", "-b", "vmx,allow_smaller_maxphyaddr=on"])?;
    assert_eq!(first_line(&text), "first bad: host width 37");
    let again = "vmtape record -o other.tape -b svm-npt --kvm v6.12 --host amd-48,phys-bits=37";
    assert!(text.contains(again), "{again} is missing in:\n{text}");
    Ok(())
}

#[test]
fn of_all_cpuid_changes_the_width_remains() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &["-b", "vmx,allow_smaller_maxphyaddr=on"], "builtin:illegal")?;
    let text = bisect(folder.path(), &["--axis", "cpuid", "-b", "svm-npt"])?;
    assert_eq!(first_line(&text), "first bad: phys-bits=36");
    Ok(())
}

/// The verdict is the guest's own: it reports a failure if silicon shows it the host's width.
#[test]
fn a_cpu_model_that_makes_the_guest_fail_is_reduced_to_what_does() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let line = ["record", "-q", "-b", "vmx", "--host", "intel-46", "-o", "a.tape", "builtin:late"];
    assert!(vmtape(folder.path(), &line)?.status.success());
    let text = bisect(folder.path(), &["--axis", "cpuid", "--cpu", "Icelake-Server,phys-bits=39"])?;
    assert_eq!(first_line(&text), "first bad: phys-bits=39");
    Ok(())
}

/// The wrong error code goes into a checksum after 150 of 400 CPUID exits; the triple fault comes at the end.
#[test]
fn a_crash_is_traced_back_to_the_exit_that_dooms_the_guest() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let guest = "builtin:late,before=150,rounds=250,end=crash";
    record(folder.path(), &["-b", "vmx,allow_smaller_maxphyaddr=on"], guest)?;
    let without = bisect(
        folder.path(),
        &["--axis", "exits", "--verdict", "end", "--kvm", "v6.12,allow_smaller_maxphyaddr=off"],
    )?;
    record(folder.path(), &["-b", "vmx,allow_smaller_maxphyaddr=on", "--checkpoint-every", "50"], guest)?;
    let with = bisect(
        folder.path(),
        &["--axis", "exits", "--verdict", "end", "--kvm", "v6.12,allow_smaller_maxphyaddr=off"],
    )?;
    for text in [without, with] {
        let exit: u64 = first_line(&text)
            .strip_prefix("first bad: exit ")
            .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
            .unwrap_or_default();
        // Booting takes some exits; the crash is 250 later.
        assert!((150..250).contains(&exit), "{text}");
    }
    Ok(())
}

/// Where a tape's fault lies, by milestones: the write comes after 400 CPUID exits of 1000. A tape of other checkpoints is
/// the same run.
#[test]
fn two_tapes_part_where_their_milestones_do() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let guest = "builtin:late,before=400,rounds=600";
    let tape = |name: &str, options: &[&str]| -> Result<()> {
        let model = ["--cpu", "max,-pku,phys-bits=36,vendor=GenuineIntel", "--milestone-every", "1000"];
        let line = [&["record", "-q", "-o", name][..], &model, options, &[guest]].concat();
        let recorded = vmtape(folder.path(), &line)?;
        assert!(recorded.status.success(), "{}", tail(&recorded));
        Ok(())
    };
    tape("on.tape", &["-b", "vmx,allow_smaller_maxphyaddr=on"])?;
    tape("checkpoints.tape", &["-b", "vmx,allow_smaller_maxphyaddr=on", "--checkpoint-every", "100"])?;
    tape("off.tape", &["-b", "vmx"])?;
    tape("svm.tape", &["-b", "svm"])?;
    tape("npt.tape", &["-b", "svm-npt"])?;
    let bisect = |a: &str, b: &str| -> Result<(Option<i32>, String)> {
        let output = vmtape(folder.path(), &["bisect", a, b, "--axis", "exits"])?;
        Ok((output.status.code(), String::from_utf8(output.stdout)?))
    };
    let number = |text: &str| -> u64 {
        let digits =
            |rest: &str| rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok());
        first_line(text).strip_prefix("first bad: exit ").and_then(digits).unwrap_or_default()
    };
    let (code, text) = bisect("on.tape", "off.tape")?;
    assert_eq!((code, (400..500).contains(&number(&text))), (DIFFERENT, true), "{text}");
    assert!(text.contains("no exit instead of EXCEPTION_NMI"), "{text}");
    // Of another kind of backend nothing is known between milestones.
    for (other, same) in [("on.tape", SAME), ("checkpoints.tape", SAME), ("svm.tape", COULD_NOT_TEST)] {
        let (code, text) = bisect("on.tape", other)?;
        assert_eq!((code, first_line(&text)), (same, "the tapes do not part"), "{other}: {text}");
    }
    // Nested paging has no exit for this fault: only the milestones tell.
    let (code, text) = bisect("svm.tape", "npt.tape")?;
    assert_eq!((code, text.contains("without an exit that both have")), (DIFFERENT, true), "{text}");
    Ok(())
}

/// Two changes lie between the ends, and the one that is looked for is the later one in KVM's history: releases that show
/// the other one first are skipped, and the search does not end at it.
// See: KVM commit feb627e8d6f6
#[test]
fn the_search_never_drifts_to_another_divergence() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = ["-b", "vmx", "--kvm", "v5.9-rc1", "--set-cpuid", "exit=3,phys-bits=37"];
    record(folder.path(), &options, "builtin:illegal")?;
    let text = bisect(folder.path(), &["--axis", "kvm"])?;
    assert!(first_line(&text).starts_with("first bad: v5.16 feb627e8d6f6 "), "{text}");
    assert!(text.contains("another difference comes first"), "{text}");
    Ok(())
}

#[test]
fn nothing_to_find_is_an_answer_and_nonsense_is_none() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &["-b", "svm"], "builtin:hello")?;
    for (options, code) in [
        (&["--axis", "exits"][..], SAME),
        (&["--axis", "kvm"], SAME),
        (&["--axis", "width"], SAME),
        (&["--axis", "cpuid"], USAGE),
        (&["--axis", "plugin"], USAGE),
        (&["--axis", "width", "--good", "wide"], USAGE),
        (&["--axis", "nonsense"], USAGE),
        (&["--axis", "width", "--good", "99"], USAGE),
        (&["--axis", "width", "--good", "40", "--bad", "40"], USAGE),
        (&["--axis", "kvm", "--bad", "v4.4"], USAGE),
        (&["--axis", "kvm", "--good", "v5.9", "--bad", "v5.9"], USAGE),
        (&["--axis", "exits", "--good", "v5.9"], USAGE),
        (&["--axis", "kvm", "--side", "guest"], USAGE),
        (&["--axis", "width", "--cpu", "max"], USAGE),
        (&["--axis", "plugin", "absent.so"], COULD_NOT_TEST),
    ] {
        let output = vmtape(folder.path(), &[&["bisect", "a.tape"], options].concat())?;
        assert_eq!(output.status.code(), code, "{options:?}: {}", tail(&output));
    }
    Ok(())
}

#[test]
fn the_result_is_json_with_a_schema() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), &["-b", "vmx,allow_smaller_maxphyaddr=on"], "builtin:illegal")?;
    let text = bisect(folder.path(), &["--axis", "width", "-b", "svm-npt", "--json"])?;
    for part in [
        "\"schema_version\": 2",
        "\"line\": \"first bad: host width 37\"",
        "\"mark\": \"good\"",
        "\"signature\": \"",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    Ok(())
}

/// What a dirty log tells, and what its ioctls answer, by release: the commit is found that changed it.
#[test]
fn what_changed_a_dirty_log_is_named() -> Result<()> {
    const LOG: &str = "--memory-region=slot=0,gpa=0,size=64M,flags=1";
    // Once all pages are mapped.
    const LATE: &str = "--memory-region=slot=0,gpa=0,size=64M,flags=1,insn=10000";
    const GET: &str = "--get-dirty-log=0,insn=20000";
    const AGAIN: &str = "--get-dirty-log=0,insn=40000";
    const SET: &str = "--enable-cap=168,arg=3";
    const RING: &str = "--enable-cap=192,arg=0x4000,create";
    const HARVEST: &str = "--harvest-dirty-ring=insn=20000";
    const TABLE: &str = "builtin:dirty,by=table,pages=1,rounds=6000";
    const PAGES: &str = "builtin:dirty,pages=9,rounds=600";
    let folder = tempfile::tempdir()?;
    /// The tape's backend and release, its ioctls and guest, the other release, what bisection says first.
    type Case<'a> = (&'a str, &'a str, [&'a str; 3], &'a str, &'a str, &'a str);
    let cases: [Case<'_>; 5] = [
        ("svm", "v6.12", [LOG, GET, AGAIN], TABLE, "v6.7", "first good: v6.8 910c57dfa4d1 "),
        ("svm", "v5.18", [LOG, GET, AGAIN], TABLE, "v6.1", "first bad: v5.19 1c2361f667f3 "),
        ("vmx", "v6.12", [RING, LATE, HARVEST], PAGES, "v7.2", "first bad: v6.14 37c3ddfe5238 "),
        ("svm-npt", "v6.12", [SET, LOG, GET], PAGES, "v5.6", "first good: v5.7 3c9bd4006bfc "),
        ("svm-npt", "v6.12", [RING, LOG, GET], PAGES, "v5.10", "first good: v5.11 fb04a1eddb1a "),
    ];
    for (backend, release, options, guest, bad, expected) in cases {
        let mut line = vec!["-b", backend, "--kvm", release, "--backing", "4K"];
        line.extend(options);
        record(folder.path(), &line, guest)?;
        let text = bisect(folder.path(), &["--axis", "kvm", "--bad", bad])?;
        assert!(first_line(&text).starts_with(expected), "{backend} {release} {bad}: {text}");
    }
    Ok(())
}
