//! `vmtape migrate`: a guest that moves over a real migration goes on as its twin that stays; whoever must not move does not; and
//! faults that nobody notices show.

use anyhow::{Context, Result, ensure};
use std::{path::Path, process::Output};
use vmtape_conformance::{BACKENDS, tail, vmtape};

/// Records a guest; the line has backend, host, CPU and guest.
fn record(folder: &Path, tape: &str, line: &str) -> Result<()> {
    let words = shlex::split(line).context("words")?;
    let mut all = vec!["record", "-q", "-o", tape];
    all.extend(words.iter().map(String::as_str));
    let recorded = vmtape(folder, &all)?;
    ensure!(folder.join(tape).exists(), "{line}: {}", tail(&recorded));
    Ok(())
}

fn migrate(folder: &Path, line: &str) -> Result<Output> {
    let words = shlex::split(line).context("words")?;
    let mut all = vec!["migrate", "a.tape"];
    all.extend(words.iter().map(String::as_str));
    vmtape(folder, &all)
}

/// The migration ends with this word and exit code.
fn ends(folder: &Path, line: &str, word: &str, code: i32) -> Result<String> {
    let output = migrate(folder, line)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text.lines().any(|line| line == word);
    ensure!(found && output.status.code() == Some(code), "{line}: {text}{}", tail(&output));
    Ok(text)
}

/// From the tape's line over each destination.
#[test]
fn guests_move_between_unlike_hosts() -> Result<()> {
    let rows = [
        ("-b vmx --host intel-36 builtin:io", "--at exit=20 --to vmx,host=intel-46"),
        ("-b vmx --host intel-39 builtin:smp2", "--at exit=30 --to vmx,host=intel-46"),
        ("-b vmx --host intel-46 builtin:matrix", "--at exit=15 --to vmx,host=intel-52"),
        ("-b svm-npt --host amd-48 builtin:io", "--at exit=25 --to svm-npt,host=amd-52"),
        (
            "-b svm-npt --host amd-52 --cpu max,phys-bits=48,-la57 builtin:io",
            "--at exit=25 --to svm-npt,host=amd-48",
        ),
        (
            "-b vmx --host intel-52 --cpu max,-la57 builtin:matrix",
            "--at exit=15 --to vmx,host=intel-52-4level",
        ),
        ("-b svm-npt --cpu max,-pku builtin:smp2", "--at exit=20 --to svm"),
        ("-b svm builtin:smp2", "--at exit=20 --to svm-npt"),
        (
            "-b svm-npt --cpu max,-pku builtin:smp2",
            "--at exit=9 exit=30 exit=60 --to svm svm-npt,host=amd-52 svm-npt",
        ),
        (
            "-b vmx --cpu max,-pku builtin:io",
            "--at exit=9 exit=20 exit=35 --to intel-52 intel-48,vmx,ept=off intel-46",
        ),
        ("-b svm-npt --cpu max,+svm builtin:nested-touch", "--at exit=60 --to svm-npt,host=amd-52"),
        (
            "-b svm-npt --cpu max,+svm builtin:nested-pat",
            "--at exit=40 exit=80 --to svm-npt,host=amd-52 svm-npt",
        ),
    ];
    for (guest, way) in rows {
        let folder = tempfile::tempdir()?;
        record(folder.path(), "a.tape", guest)?;
        ends(folder.path(), way, "MOVED", 0).with_context(|| guest.to_owned())?;
    }
    Ok(())
}

/// Memory moves in rounds while the guest writes it, by each log.
#[test]
fn pre_copy_loses_no_page() -> Result<()> {
    let guest = "builtin:dirty,pages=300,rounds=800";
    for backend in BACKENDS.into_iter().chain(["vmx,pml=off", "vmx,ept=off", "vmx,eptad=off"]) {
        let folder = tempfile::tempdir()?;
        record(folder.path(), "a.tape", &format!("-b {backend} -m 64M {guest}"))?;
        for log in ["legacy", "manual"] {
            let way = format!(
                "--at insn=20000 --to {backend} --method precopy --log {log} --bandwidth 100G --downtime 2us"
            );
            let text = ends(folder.path(), &way, "MOVED", 0).with_context(|| format!("{backend} {log}"))?;
            let rounds = text.lines().filter(|line| line.trim_start().starts_with("round ")).count();
            ensure!(rounds >= 2, "{backend} {log}: {text}");
        }
        record(
            folder.path(),
            "a.tape",
            &format!("-b {backend} -m 64M --enable-cap 192,arg=0x4000,create {guest}"),
        )?;
        let way = format!("--at insn=20000 --to {backend} --method precopy --bandwidth 100G --downtime 2us");
        let text = ends(folder.path(), &way, "MOVED", 0).with_context(|| format!("{backend} ring"))?;
        ensure!(text.contains("dirty log ring"), "{backend}: {text}");
    }
    Ok(())
}

/// A guest that writes faster than is sent stays, unless it is slowed down.
#[test]
fn memory_that_does_not_converge_leaves_the_guest_where_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(
        folder.path(),
        "a.tape",
        "-b svm-npt -m 64M --max-insns 3000000 builtin:dirty,pages=300,rounds=2000",
    )?;
    let way = "--at insn=200000 --to svm-npt --method precopy --bandwidth 1G --downtime 1 --rounds 4";
    let text = ends(folder.path(), way, "DETECTED", 1)?;
    ensure!(text.contains("does not converge") && text.contains("source running"), "{text}");
    Ok(())
}

/// See: host/migrate/src/policy
#[test]
fn policies_refuse_what_they_refuse() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), "a.tape", "-b svm-npt --host amd-52 --cpu max,phys-bits=52,-la57 builtin:io")?;
    let to = "--at exit=20 --to svm-npt,host=amd-48";
    let text = ends(folder.path(), to, "REFUSED", 1)?;
    ensure!(text.contains("52 physical address bits"), "{text}");
    ends(folder.path(), &format!("{to} --policy libvirt"), "REFUSED", 1)?;
    for policy in ["qemu", "ch"] {
        let output = migrate(folder.path(), &format!("{to} --policy {policy}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            !text.lines().any(|line| line == "REFUSED") && text.contains("notes, width"),
            "{policy}: {text}"
        );
    }
    Ok(())
}

/// The table in the documentation is the command's.
#[test]
fn the_table_of_policies_is_what_the_command_prints() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), "a.tape", "-b vmx --host intel-46 --cpu max,phys-bits=40 builtin:io")?;
    let output = migrate(folder.path(), "--at exit=20 --to intel-39 intel-52 --policies")?;
    let document = include_str!("../../../host/migrate/README.md");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(1) && text.lines().count() == 10, "{}", tail(&output));
    for line in text.lines() {
        ensure!(document.lines().any(|known| known == line), "host/migrate/README.md lacks: {line}");
    }
    Ok(())
}

/// What is lost on the way shows beside the twin; what is noticed leaves the guest where it was.
#[test]
fn faults_are_noticed_or_show() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), "a.tape", "-b vmx -m 64M builtin:dirty,pages=300,rounds=800")?;
    let to = "--at insn=200000 --to vmx";
    let state = |point: &str, n: u32| format!("{to} --fault {point},n={n}");
    // The second kind of the list after the VM's own two is the general registers.
    for (line, word) in [
        (state("move-state-refused,value=0", 4), "LOST"),
        (state("move-state-refused,value=0xffffffffffffffea", 4), "DETECTED"),
        (format!("{to} --fault move-send-flip,n=9,value=300"), "DETECTED"),
        (format!("{to} --fault move-kill-source,n=1"), "LOST"),
        (format!("{to} --fault move-kill-destination,n=1"), "DETECTED"),
        (format!("{to} --fault move-kill-destination,n=3"), "PARKED"),
    ] {
        ends(folder.path(), &line, word, 1)?;
    }
    let precopy = format!("{to} --method precopy --bandwidth 300M --downtime 10");
    ends(
        folder.path(),
        &format!("{precopy} --fault move-log-failed,value=0xfffffffffffffff2"),
        "DETECTED",
        1,
    )?;
    // Its pages hold another number each round, so that one that is out of date differs.
    record(folder.path(), "a.tape", "-b vmx -m 64M builtin:luggage,pages=300,rounds=400")?;
    ends(
        folder.path(),
        &format!("{precopy} --fault move-log-word,n=2,value=0xffffffffffffffff"),
        "SILENT CORRUPTION",
        1,
    )?;
    Ok(())
}

/// Memory follows its guest: all of it, what was written in one round, over a link that breaks, and not at all.
#[test]
fn memory_follows_its_guest() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        record(
            folder.path(),
            "a.tape",
            &format!("-b {backend} -m 64M builtin:dirty,pages=300,rounds=800,by=all"),
        )?;
        let to = format!("--at insn=200000 --to {backend}");
        for way in [
            "--method postcopy",
            "--method hybrid --bandwidth 1G",
            "--method postcopy --fault move-request-lost,n=2",
            // The first section of pages is the one of those that are zero.
            "--method postcopy --fault move-send-cut,n=30,value=100",
        ] {
            ends(folder.path(), &format!("{to} {way}"), "MOVED", 0)?;
        }
        // A table of the guest's that does not come is to KVM's software walk an entry that is not present.
        let never = if backend == "svm" { "SILENT CORRUPTION" } else { "LOST" };
        for (fault, word) in
            [("move-request-zero,n=3", "SILENT CORRUPTION"), ("move-request-never,n=1", never)]
        {
            ends(folder.path(), &format!("{to} --method postcopy --fault {fault}"), word, 1)?;
        }
    }
    Ok(())
}

#[test]
fn every_exit_has_its_place_on_the_map() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), "a.tape", "-b svm-npt --cpu max,-pku -m 32M builtin:io")?;
    let output = migrate(folder.path(), "--at every-exit=7 --to svm")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(0) && text.contains("of them safe"), "{text}{}", tail(&output));
    let bad = migrate(folder.path(), "--at every-exit=40 --to svm --fault move-state-refused,value=0,n=4")?;
    ensure!(bad.status.code() == Some(1), "{}", tail(&bad));
    Ok(())
}

/// A process that listens takes a guest from another one, and nothing from anybody else.
#[test]
fn a_guest_moves_between_two_processes() -> Result<()> {
    use std::{
        io::Write,
        os::unix::net::UnixStream,
        process::{Command, Stdio},
        time::Duration,
    };
    let folder = tempfile::tempdir()?;
    record(folder.path(), "a.tape", "-b svm-npt --cpu max,-pku -m 64M builtin:dirty,pages=300,rounds=800")?;
    let listen = |socket: &str| -> Result<std::process::Child> {
        let child = Command::new(vmtape_conformance::program()?)
            .current_dir(folder.path())
            .args([
                "migrate",
                "a.tape",
                "--to",
                "svm",
                "--journal",
                "there",
                "--listen",
                &format!("unix:{socket}"),
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        while !folder.path().join(socket).exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(child)
    };
    let child = listen("one")?;
    let sent = migrate(
        folder.path(),
        "--connect unix:one --at insn=20000 --method precopy --downtime 10 --journal here",
    )?;
    let taken = child.wait_with_output()?;
    ensure!(sent.status.success() && taken.status.success(), "{}\n{}", tail(&sent), tail(&taken));
    ensure!(String::from_utf8_lossy(&taken.stdout).lines().any(|line| line == "MOVED"), "{}", tail(&taken));
    let journal = |name: &str| std::fs::read_to_string(folder.path().join(name));
    ensure!(
        journal("here")?.ends_with("source gone\n") && journal("there")?.ends_with("destination running\n")
    );

    let child = listen("two")?;
    UnixStream::connect(folder.path().join("two"))?.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let taken = child.wait_with_output()?;
    ensure!(taken.status.code() == Some(1), "{}", tail(&taken));
    ensure!(String::from_utf8_lossy(&taken.stdout).contains("no stream of a migration"), "{}", tail(&taken));
    let nobody = migrate(folder.path(), "--connect unix:nobody --at exit=20")?;
    ensure!(nobody.status.code() == Some(125), "{}", tail(&nobody));
    Ok(())
}

#[test]
fn what_makes_no_sense_is_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), "a.tape", "-b svm-npt -m 32M builtin:hello")?;
    for (line, code) in [
        ("--at exit=1 exit=2 --to svm", 2),
        ("--at create --to svm", 2),
        ("--at exit=1 --to nowhere", 125),
        ("--at exit=1 --to svm --handover mine", 2),
        ("--at every-exit=0 --to svm", 2),
        ("--at exit=1 --connect nonsense", 2),
        ("--at exit=1000000 --to svm", 125),
        ("--at exit=1 --to svm --log ring --method precopy", 1),
    ] {
        let output = migrate(folder.path(), line)?;
        ensure!(output.status.code() == Some(code), "{line}: {:?} {}", output.status, tail(&output));
    }
    Ok(())
}
