//! What there is of a recording that did not end by itself: a whole tape where the user ended it; else all of it up to there, a
//! clear word, and exit code 125.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use vmtape_conformance::{program, tail, vmtape};
use vmtape_traces::Tape;

const COULD_NOT_TEST: i32 = 125;
/// An exit in every round, for longer than anybody waits.
const ENDLESS: &str = "builtin:late,before=2000000000";
const RECORD: [&str; 6] = ["record", "-b", "vmx", "-o", "a.tape", ENDLESS];

fn assert_refused(output: &Output, mentions: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(COULD_NOT_TEST), "{}", tail(output));
    for word in mentions {
        assert!(stderr.contains(word), "the message must mention {word}: {stderr}");
    }
}

/// Starts a recording and waits until its tape has begun, with exits if the guest has any.
fn start(folder: &Path, guest: &str) -> Result<Child> {
    /// A debug build on a machine that has other things to do.
    const PATIENCE: Duration = Duration::from_secs(300);
    let mut command = Command::new(program()?);
    command.args(&RECORD[..5]).arg(guest).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let started = Instant::now();
    let least = u64::from(guest == ENDLESS);
    while good_exits(&folder.join("a.tape.partial")).map_or(true, |exits| exits < least) {
        if started.elapsed() > PATIENCE || child.try_wait()?.is_some() {
            child.kill()?;
            anyhow::bail!("nothing is on the tape: {}", tail(&child.wait_with_output()?));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child)
}

/// Exits on a tape that was cut, each of them read.
fn good_exits(tape: &Path) -> Result<u64> {
    let tape = Tape::open(tape)?;
    ensure!(tape.damage().is_some(), "the tape is whole");
    let exits = tape.exits().take_while(Result::is_ok).count() as u64;
    ensure!(exits == tape.totals()?.exits, "{exits} can be read, {:?}", tape.totals());
    Ok(exits)
}

#[test]
fn killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut child = start(folder.path(), ENDLESS)?;
    child.kill()?;
    child.wait()?;
    assert!(good_exits(&folder.path().join("a.tape.partial"))? > 0);
    let shown = vmtape(folder.path(), &["stat", "a.tape.partial"])?;
    assert_refused(&shown, &[]);
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(text.contains("NOT WHOLE: a.tape.partial") && text.contains("CPUID"), "{text}");
    Ok(())
}

/// Whoever ends a recording has a whole tape, that replays in both modes. Signals are heard, whatever the guest does: the second
/// one has no exits.
#[test]
fn interrupted() -> Result<()> {
    let spin = boot_sector(b"\xeb\xfe");
    for (signal, guest) in [("-TERM", None), ("-HUP", Some(&spin))] {
        let folder = tempfile::tempdir()?;
        let child = match guest {
            None => start(folder.path(), ENDLESS)?,
            Some(image) => {
                fs::write(folder.path().join("spin.bin"), image)?;
                start(folder.path(), "spin.bin")?
            }
        };
        // Not Ctrl-C, which shells make the programs that they start in the background ignore, this test among them.
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status()?;
        ensure!(sent.success(), "kill: {sent}");
        let recorded = child.wait_with_output()?;
        assert!(recorded.status.success(), "{}", tail(&recorded));
        let stderr = String::from_utf8_lossy(&recorded.stderr);
        assert!(stderr.contains("a.tape: interrupted after") && stderr.contains("KiB"), "{stderr}");
        let stat = vmtape(folder.path(), &["stat", "a.tape"])?;
        assert!(stat.status.success() && String::from_utf8_lossy(&stat.stdout).contains("interrupted"));
        for replay in [&["replay", "a.tape"][..], &["replay", "--mode", "exits", "a.tape"]] {
            let replayed = vmtape(folder.path(), replay)?;
            assert!(replayed.status.success(), "{signal} {replay:?}: {}", tail(&replayed));
        }
        let elsewhere = vmtape(folder.path(), &["replay", "-b", "svm-npt", "a.tape"])?;
        let text = String::from_utf8_lossy(&elsewhere.stdout).into_owned();
        assert!(guest.is_none() || text.contains("SAME"), "{}", tail(&elsewhere));
    }
    Ok(())
}

/// Real-mode code at 0x7c00.
fn boot_sector(code: &[u8]) -> Vec<u8> {
    let mut sector = vec![0; 512];
    sector[..code.len()].copy_from_slice(code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// A limit on the size of files stands for a disk that is full: both are a write that fails.
#[test]
fn the_disk_is_full() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (kib, exits) in [(1, 0), (200, 1)] {
        let line = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$@\"");
        let recorded = Command::new("bash")
            .args(["-c", &line])
            .arg(program()?)
            .args(RECORD)
            .current_dir(folder.path())
            .output()?;
        assert_refused(&recorded, &["a.tape", "too large"]);
        let good = good_exits(&folder.path().join("a.tape.partial"));
        assert!(good.unwrap_or(0) >= exits, "{kib} KiB");
    }
    Ok(())
}

#[test]
fn another_one_writes_the_same_tape() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut child = start(folder.path(), ENDLESS)?;
    let second = vmtape(folder.path(), &RECORD)?;
    assert_refused(&second, &["a.tape.partial", "another recording"]);
    child.kill()?;
    child.wait()?;
    assert!(good_exits(&folder.path().join("a.tape.partial"))? > 0, "the first one is unharmed");
    Ok(())
}

#[test]
fn no_place_for_a_tape() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for place in ["no/such/folder/a.tape", "."] {
        let recorded = vmtape(folder.path(), &["record", "-b", "vmx", "-o", place, "builtin:hello"])?;
        assert_refused(&recorded, &[place]);
    }
    let left = std::fs::read_dir(folder.path())?.next();
    assert!(left.is_none(), "{:?}", left.context("something")?);
    Ok(())
}
