//! `vmtape migrate`: a guest that moves over a real migration goes on as its twin that stays; whoever must not move does not; and
//! faults that nobody notices show.

use anyhow::{Context, Result, ensure};
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, ChildStderr, Command, Output, Stdio},
};
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
        // A page that does not come is waited for, whoever needs it: KVM's own walk of the guest's tables never sees an error.
        // See: Linux include/linux/sched/signal.h fault_signal_pending(), by which faults within the kernel are repeated
        for (fault, word) in
            [("move-request-zero,n=3", "SILENT CORRUPTION"), ("move-request-never,n=1", "LOST")]
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

/// Interrupts that wait, and a timer on its way, move with their guest at every exit, on each backend and across.
#[test]
fn what_waits_moves_with_its_guest() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let common = "--cpu max,-pku,-mmxext,-fxsr_opt,-cr8legacy -m 16M";
    for (from, to, step) in [
        ("vmx", "vmx", 1),
        ("svm-npt", "svm-npt", 4),
        ("svm", "svm", 4),
        ("vmx", "svm", 4),
        ("svm", "vmx", 12),
        ("svm-npt", "vmx,enable_apicv=0", 12),
        ("vmx,ept=0", "svm-npt", 12),
    ] {
        for timer in ["one-shot", "deadline"] {
            record(
                folder.path(),
                "a.tape",
                &format!("-b {from} {common} builtin:pending,rounds=2,timer={timer}"),
            )?;
            let output = migrate(folder.path(), &format!("--at every-exit={step} --to {to} --json"))?;
            let map: serde_json::Value =
                serde_json::from_slice(&output.stdout).with_context(|| tail(&output))?;
            let cells = map["cells"].as_array().context("cells")?;
            let wrong = cells.iter().find(|cell| cell["verdict"] != "moved");
            ensure!(cells.len() > 5 && wrong.is_none(), "{from} to {to}, {timer}: {wrong:?}");
        }
    }
    Ok(())
}

/// A process that waits for a guest.
struct Listener {
    child: Child,
    stderr: BufReader<ChildStderr>,
    address: String,
}

impl Listener {
    fn new(folder: &Path, line: &str) -> Result<Self> {
        let words = shlex::split(line).context("words")?;
        let mut child = Command::new(vmtape_conformance::program()?)
            .current_dir(folder)
            .args(["migrate", "a.tape"])
            .args(words)
            .env("NO_COLOR", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stderr = BufReader::new(child.stderr.take().context("stderr")?);
        let mut first = String::new();
        stderr.read_line(&mut first)?;
        let address = first.trim().strip_prefix("vmtape: listening on ").with_context(|| first.clone())?;
        Ok(Self { address: address.to_owned(), child, stderr })
    }

    /// How it ends.
    fn end(mut self) -> Result<Output> {
        let mut output = self.child.wait_with_output()?;
        self.stderr.read_to_end(&mut output.stderr)?;
        Ok(output)
    }
}

/// Both ends of a move between two processes: that of the source, and that of the destination.
fn two_processes(folder: &Path, listen: &str, connect: &str) -> Result<[Output; 2]> {
    let listener = Listener::new(folder, listen)?;
    let sent = migrate(folder, &format!("--connect {} {connect}", listener.address))?;
    Ok([sent, listener.end()?])
}

fn says(output: &Output, word: &str) -> bool {
    String::from_utf8_lossy(&output.stdout).contains(word)
}

const DIRTY: &str = "-b svm-npt --cpu max,-pku -m 64M builtin:dirty,pages=300,rounds=800";

/// A process that listens takes a guest from another one, and nothing from anybody else.
#[test]
fn a_guest_moves_between_two_processes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    record(folder, "a.tape", DIRTY)?;
    for (n, address) in ["unix:one", "tcp:0"].into_iter().enumerate() {
        let listen = format!("--to svm --journal there{n} --listen {address}");
        let connect = format!("--at insn=20000 --method precopy --downtime 10 --journal here{n}");
        let [sent, taken] = two_processes(folder, &listen, &connect)?;
        ensure!(sent.status.success() && taken.status.success(), "{}\n{}", tail(&sent), tail(&taken));
        ensure!(says(&taken, "\nMOVED\n"), "{}", tail(&taken));
        let journal = |name: String| std::fs::read_to_string(folder.join(name));
        ensure!(journal(format!("here{n}"))?.ends_with("source gone\n"));
        ensure!(journal(format!("there{n}"))?.ends_with("destination running\n"));
    }

    let nobody = migrate(folder, "--connect unix:nobody --at exit=20")?;
    ensure!(nobody.status.code() == Some(125), "{}", tail(&nobody));
    Ok(())
}

/// Who is not vmtape, or another version of it, gets nothing and takes nothing: an error in words, and the guest is where it was.
#[test]
fn strangers_get_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    record(folder, "a.tape", "-b svm-npt -m 16M builtin:hello")?;
    let head = |version: u32| [b"vmtape\x1aM", &version.to_le_bytes()[..], &[0; 4]].concat();
    let section = |length: u32| {
        let words = [1u32, 1, 0, length].into_iter().flat_map(u32::to_le_bytes);
        head(1).into_iter().chain(words).chain(*b"nothing").collect::<Vec<u8>>()
    };
    let strangers = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "no stream of a migration"),
        (head(2), "version 2"),
        (head(1), "has left"),
        (Vec::new(), "has left"),
        (section(u32::MAX), "more than"),
        (section(3), "checksum"),
        (section(300), "has left"),
    ];
    for (n, (bytes, words)) in strangers.iter().enumerate() {
        let listener = Listener::new(folder, &format!("--to svm --listen unix:here{n}"))?;
        UnixStream::connect(folder.join(format!("here{n}")))?.write_all(bytes)?;
        let taken = listener.end()?;
        ensure!(taken.status.code() == Some(125), "{n}: {}", tail(&taken));
        ensure!(says(&taken, words) && says(&taken, "source unheard"), "{n}: {}", tail(&taken));
    }
    // The other way round the guest stays where it runs.
    for (n, (bytes, words)) in strangers.iter().enumerate() {
        let path = folder.join(format!("there{n}"));
        let stranger = UnixListener::bind(&path)?;
        let bytes = bytes.clone();
        let answers = std::thread::spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = stranger.accept()?;
            stream.write_all(&bytes)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            std::io::copy(&mut stream, &mut std::io::sink()).map(|_| ())
        });
        let sent = migrate(folder, &format!("--connect unix:there{n} --at exit=6"))?;
        // A stranger whose peer goes away at once has its own error.
        let _ = answers.join();
        ensure!(sent.status.code() == Some(1), "{n}: {}", tail(&sent));
        ensure!(says(&sent, words) && says(&sent, "source running"), "{n}: {}", tail(&sent));
    }
    Ok(())
}

/// Memory comes over the socket when the guest needs it, and what it does not need comes in the end; a link that breaks is made anew.
#[test]
fn memory_follows_its_guest_between_two_processes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    record(folder, "a.tape", DIRTY)?;
    for (n, (address, connect, listen)) in [
        ("unix:a", "", ""),
        ("tcp:0", "--fault move-send-cut,n=30,value=100", ""),
        ("unix:b", "--fault move-send-cut,n=32,value=0 --fault move-send-lost,n=34,value=5", ""),
        ("unix:c", "", "--fault move-send-cut,n=6,value=3"),
    ]
    .into_iter()
    .enumerate()
    {
        let listen = format!("--to svm --method postcopy --listen {address} {listen}");
        let connect = format!("--at insn=200000 --method postcopy {connect}");
        let [sent, taken] = two_processes(folder, &listen, &connect)?;
        ensure!(sent.status.success() && taken.status.success(), "{n}: {}\n{}", tail(&sent), tail(&taken));
        ensure!(says(&taken, "\nMOVED\n") && says(&taken, "the guest waited for"), "{n}: {}", tail(&taken));
        let cut = [&sent, &taken].into_iter().any(|output| says(output, "fault move-send-cut"));
        ensure!(cut == (n > 0), "{n}: {}\n{}", tail(&sent), tail(&taken));
    }
    Ok(())
}

/// A file that both processes have says who may run the guest, and sees who does.
#[test]
fn two_processes_share_a_witness() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    record(folder, "a.tape", DIRTY)?;
    for (n, connect, listen, source, runs) in [
        (0, "", "", "source gone", "starts 1 destination"),
        // Of GO a part arrives: nobody runs it, and the source takes it back.
        (1, "--cut go=9", "", "source running", "starts 1 source"),
        // The destination runs it, and cannot say so.
        (2, "", "--cut done=3", "source parked", "starts 1 destination"),
        // Without three messages both run it, and it is seen.
        (3, "--handover ch", "--handover ch --cut done=3", "source running", "two-running 1"),
    ] {
        let to = format!("--to svm --listen unix:w{n} --witness=witness{n} {listen}");
        let [sent, taken] =
            two_processes(folder, &to, &format!("--at insn=20000 --witness=witness{n} {connect}"))?;
        let file = std::fs::read_to_string(folder.join(format!("witness{n}")))?;
        ensure!(says(&sent, source), "{n}: {}\n{}", tail(&sent), tail(&taken));
        ensure!(file.lines().last() == Some(runs), "{n}: {file}{}\n{}", tail(&sent), tail(&taken));
    }
    std::fs::write(folder.join("other"), "something else\n")?;
    let output = migrate(folder, "--to svm --listen unix:x --witness=other")?;
    ensure!(output.status.code() == Some(125), "{}", tail(&output));
    let output = migrate(folder, "--to svm --listen unix:x --witness")?;
    ensure!(output.status.code() == Some(2), "{}", tail(&output));
    Ok(())
}

/// Round by round while it moves, also where nobody sees a terminal.
#[test]
fn how_far_a_move_is_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), "a.tape", DIRTY)?;
    let way = "-v --at insn=20000 --to svm --method precopy --bandwidth 100G --downtime 2us";
    let output = migrate(folder.path(), way)?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = |round: &str| log.lines().find(|line| line.contains(round)).map(str::to_owned);
    for round in ["round 1: ", "round 2: ", "stopped: "] {
        let line = line(round).with_context(|| format!("{round}: {log}"))?;
        ensure!(line.contains(" pages sent, 0 left; ") && line.contains("100.00 GiB/s"), "{line}");
    }
    ensure!(line("the guest wrote").is_some() && line("downtime").is_some(), "{log}");
    Ok(())
}

/// A guest that writes faster than is sent moves where it is slowed down.
/// See: QEMU 10.2.2 migration/ram.c migration_trigger_throttle()
#[test]
fn a_guest_that_is_slowed_down_converges() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), "a.tape", "-b svm-npt -m 64M builtin:dirty,pages=300,rounds=3000")?;
    let way = "--at insn=20000 --to svm-npt --method precopy --bandwidth 6G --downtime 40us --rounds 25";
    let text = ends(folder.path(), way, "DETECTED", 1)?;
    ensure!(text.contains("does not converge"), "{text}");
    let text = ends(folder.path(), &format!("{way} --auto-converge"), "MOVED", 0)?;
    ensure!(text.contains("slowed down by 20 %") && text.contains("slowed down by 30 %"), "{text}");
    Ok(())
}

/// A second attempt sends everything again, so that what the first one took out of the log is not missed.
/// See: propolis 8992609f lib/propolis/src/migrate/source.rs
#[test]
fn a_second_attempt_loses_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), "a.tape", DIRTY)?;
    let way = "--at insn=20000 --to svm --method precopy --attempts 2 --fault move-log-failed,value=0xfffffffffffffff2";
    let text = ends(folder.path(), way, "MOVED", 0)?;
    ensure!(text.contains("move 1, ") && text.contains("move 2, "), "{text}");
    let text = ends(folder.path(), &format!("{way} --fault move-retry-dirty"), "SILENT CORRUPTION", 1)?;
    ensure!(text.contains("fault move-retry-dirty"), "{text}");
    Ok(())
}

/// A line for each class of faults: what is harmless at which moment.
#[test]
fn a_map_has_a_line_for_each_class() -> Result<()> {
    let folder = tempfile::tempdir()?;
    record(folder.path(), "a.tape", "-b svm-npt -m 16M builtin:luggage,rounds=4")?;
    let way = "--at every-exit=12 --to svm-npt";
    let output = migrate(folder.path(), &format!("{way} --classes all --json"))?;
    let map: serde_json::Value = serde_json::from_slice(&output.stdout).with_context(|| tail(&output))?;
    let classes = map["by_class"].as_array().context("classes")?;
    let verdicts = |class: &str| -> Vec<&str> {
        let of = classes.iter().find(|of| of["class"] == class);
        let cells = of.and_then(|of| of["cells"].as_array());
        cells.into_iter().flatten().filter_map(|cell| cell["verdict"].as_str()).collect()
    };
    let all = |class: &str, word: &str| {
        let verdicts = verdicts(class);
        ensure!(
            !verdicts.is_empty() && verdicts.iter().all(|verdict| *verdict == word),
            "{class}: {verdicts:?}"
        );
        Ok(())
    };
    for (class, word) in [
        ("plain", "moved"),
        ("bent", "detected"),
        ("cut", "detected"),
        ("refused", "detected"),
        ("destination-dies", "detected"),
        ("source-dies", "lost"),
        ("go-cut", "parked"),
        ("done-lost", "moved"),
        ("late-tsc-khz", "moved"),
    ] {
        all(class, word)?;
    }
    for class in ["lost-xsave", "lost-regs", "lost-sregs2", "page-zero"] {
        ensure!(verdicts(class).iter().any(|verdict| *verdict != "moved"), "{class}: {:?}", verdicts(class));
    }
    let text = migrate(folder.path(), &format!("{way} --classes lost,plain"))?;
    ensure!(says(&text, "safe with every class") && says(&text, "\n  plain "), "{}", tail(&text));
    for (line, code) in
        [(format!("{way} --classes nothing"), 2), ("--at exit=5 --to svm --classes all".to_owned(), 2)]
    {
        let output = migrate(folder.path(), &line)?;
        ensure!(output.status.code() == Some(code), "{line}: {}", tail(&output));
    }
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
