//! What there is of a recording that did not end by itself: a whole tape where the user ended it; else all of it up to there, a
//! clear word, and exit code 125.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use vmtape_conformance::{identity::compile, program, tail, vmtape};
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

/// How long what has to come is waited for.
struct Patience(Instant);

impl Patience {
    fn new() -> Self {
        Self(Instant::now())
    }

    /// Waits a little; an error once it has taken too long.
    fn check(&self, child: &mut Child) -> Result<()> {
        /// A debug build on a machine that has other things to do.
        const LONGEST: Duration = Duration::from_secs(300);
        if self.0.elapsed() > LONGEST {
            child.kill()?;
            anyhow::bail!("nothing happens");
        }
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    }
}

/// Starts a recording and waits until its tape has begun, with exits if the guest has any.
fn start(folder: &Path, guest: &str) -> Result<Child> {
    // Whoever started the test may have made it deaf to SIGHUP (`nohup`).
    let mut command = Command::new("env");
    command
        .arg("--default-signal=HUP")
        .arg(program()?)
        .args(&RECORD[..5])
        .arg(guest)
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let waiting = Patience::new();
    let least = u64::from(guest == ENDLESS);
    while good_exits(&folder.join("a.tape.partial")).map_or(true, |exits| exits < least) {
        if child.try_wait()?.is_some() {
            anyhow::bail!("nothing is on the tape: {}", tail(&child.wait_with_output()?));
        }
        waiting.check(&mut child)?;
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
    let repaired = vmtape(folder.path(), &["repair", "a.tape.partial", "-o", "b.tape"])?;
    let told = String::from_utf8_lossy(&repaired.stderr);
    assert!(repaired.status.success() && told.contains("lost: what came after"), "{}", tail(&repaired));
    for replay in [
        &["replay", "b.tape"][..],
        &["replay", "--mode", "exits", "b.tape"],
        &["replay", "-b", "svm-npt", "b.tape"],
    ] {
        let replayed = vmtape(folder.path(), replay)?;
        let text = String::from_utf8_lossy(&replayed.stdout);
        assert!(replayed.status.success() && text.contains("SAME"), "{replay:?}: {}", tail(&replayed));
    }
    let again = vmtape(folder.path(), &["repair", "b.tape", "-o", "c.tape"])?;
    assert_eq!(again.status.code(), Some(2), "it is whole: {}", tail(&again));
    Ok(())
}

/// A recording whose events are few has them in the file soon, and a tape does not tell how often they were put there.
#[test]
fn what_waits_for_a_full_chunk_is_in_the_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // A loop of CPUID 100 times, and then one that never exits.
    let slow = boot_sector(b"\xbe\x64\x00\x66\x31\xc0\x0f\xa2\x4e\x75\xf8\xeb\xfe");
    fs::write(folder.path().join("slow.bin"), slow)?;
    let waiting = Patience::new();
    let mut command = Command::new(program()?);
    command.args([
        "record",
        "-b",
        "vmx",
        "--milestone-every",
        "0",
        "--flush-every",
        "0.2",
        "-o",
        "a.tape",
        "slow.bin",
    ]);
    let mut child = command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let partial = folder.path().join("a.tape.partial");
    while good_exits(&partial).unwrap_or(0) < 100 {
        ensure!(child.try_wait()?.is_none(), "{:?} exits are in the file", good_exits(&partial));
        waiting.check(&mut child)?;
    }
    child.kill()?;
    child.wait()?;
    for (every, name) in [("0", "b.tape"), ("0.001", "c.tape")] {
        let line = ["record", "-q", "-b", "vmx", "--flush-every", every, "-o", name, "builtin:late"];
        ensure!(vmtape(folder.path(), &line)?.status.success());
    }
    let [b, c] = ["b.tape", "c.tape"].map(|name| fs::read(folder.path().join(name)));
    assert!(b? == c?, "the tapes differ");
    Ok(())
}

/// A symbolic link is written through; what is in the recording's place by now is left alone.
#[test]
fn names_that_lead_elsewhere() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::os::unix::fs::symlink("real.tape", folder.path().join("link.tape"))?;
    let record =
        |output| vmtape(folder.path(), &["record", "-q", "-b", "vmx", "-o", output, "builtin:hello"]);
    assert!(record("link.tape")?.status.success());
    assert!(folder.path().join("link.tape").is_symlink() && folder.path().join("real.tape").is_file());
    assert_refused(&record("/dev/null")?, &["/dev/null", "no regular file"]);
    assert_eq!(record("-")?.status.code(), Some(2));
    let mut child = start(folder.path(), ENDLESS)?;
    let partial = folder.path().join("a.tape.partial");
    fs::remove_file(&partial)?;
    fs::write(&partial, "somebody else's")?;
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
    let ended = child.wait()?;
    assert_eq!(ended.code(), Some(COULD_NOT_TEST));
    assert!(!folder.path().join("a.tape").exists() && fs::read(&partial)? == b"somebody else's");
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

/// A backend that does not come back does not hear of the wish; the second signal, whichever it is, ends the program as if nobody
/// had listened.
#[test]
fn the_second_signal_stops_at_once() -> Result<()> {
    let spin = "        cpuid(vm, state);\n        for (volatile int n = 0;; n++) {}\n";
    for (first, second, number) in [("-INT", "-INT", 2), ("-INT", "-TERM", 15), ("-HUP", "-HUP", 1)] {
        let folder = tempfile::tempdir()?;
        let plugin = compile(folder.path(), "        cpuid(vm, state);\n", spin)?;
        // Shells make the programs that they start in the background ignore Ctrl-C, this test among them.
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP,INT"]).arg(program()?).args(["record", "--plugin"]).arg(plugin);
        command.args(["-b", "identity", "--host", "intel-46", "-o", "a.tape", "builtin:cpuid"]);
        let mut child = command.current_dir(folder.path()).stderr(Stdio::piped()).spawn()?;
        let waiting = Patience::new();
        while !folder.path().join("a.tape.partial").exists() {
            waiting.check(&mut child)?;
        }
        Command::new("kill").args([first, &child.id().to_string()]).status()?;
        let status = format!("/proc/{}/status", child.id());
        // See: proc_pid_status(5), ShdPnd: what no thread has taken yet.
        while !fs::read_to_string(&status)?.contains("ShdPnd:\t0000000000000000") {
            waiting.check(&mut child)?;
        }
        assert!(child.try_wait()?.is_none(), "the first one is a wish");
        Command::new("kill").args([second, &child.id().to_string()]).status()?;
        let ended = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None => waiting.check(&mut child)?,
            }
        };
        assert_eq!(ended.signal(), Some(number), "{first} {second}: {ended}");
        assert!(Tape::open(&folder.path().join("a.tape.partial"))?.damage().is_some());
        assert!(!folder.path().join("a.tape").exists());
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
