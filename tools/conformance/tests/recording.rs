//! What there is of a recording that did not end by itself: all of it up to there, a clear word, and exit code 125.

use anyhow::{Context, Result, ensure};
use std::{
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

/// Starts a recording and waits until there are exits on its tape.
fn start(folder: &Path) -> Result<Child> {
    /// A debug build on a machine that has other things to do.
    const PATIENCE: Duration = Duration::from_secs(300);
    let mut command = Command::new(program()?);
    command.args(RECORD).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let started = Instant::now();
    while good_exits(&folder.join("a.tape.partial")).unwrap_or(0) == 0 {
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
    let mut child = start(folder.path())?;
    child.kill()?;
    child.wait()?;
    assert!(good_exits(&folder.path().join("a.tape.partial"))? > 0);
    let shown = vmtape(folder.path(), &["stat", "a.tape.partial"])?;
    assert_refused(&shown, &[]);
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(text.contains("NOT WHOLE: a.tape.partial") && text.contains("CPUID"), "{text}");
    Ok(())
}

#[test]
fn interrupted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let child = start(folder.path())?;
    // As Ctrl-C, which shells make the programs that they start in the background ignore, this test among them.
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
    ensure!(sent.success(), "kill: {sent}");
    let recorded = child.wait_with_output()?;
    assert_refused(&recorded, &["interrupted after", "a.tape.partial"]);
    let exits = good_exits(&folder.path().join("a.tape.partial"))?;
    let stderr = String::from_utf8_lossy(&recorded.stderr);
    assert!(stderr.contains(&format!("after {exits} exits")), "nothing is lost: {exits} exits, {stderr}");
    Ok(())
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
    let mut child = start(folder.path())?;
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
