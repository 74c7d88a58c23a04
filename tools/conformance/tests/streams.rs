//! What scripts rely on: data on stdout and nothing else there, a reader that goes away is no crash, and what was asked
//! for and did not happen is told.

use anyhow::{Context, Result};
use std::{path::Path, process::Stdio};
use vmtape_conformance::{program, tail, vmtape};

fn tape(folder: &Path) -> Result<()> {
    let recorded = vmtape(folder, &["record", "-q", "-b", "vmx", "-o", "a.tape", "builtin:illegal"])?;
    anyhow::ensure!(recorded.status.success(), "{}", tail(&recorded));
    Ok(())
}

#[test]
fn json_has_stdout_for_itself() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for line in [
        &["run", "-b", "vmx", "--json", "builtin:hello"][..],
        &["record", "-b", "svm", "--json", "-o", "b.tape", "--check-extension", "185", "builtin:hello"],
    ] {
        let output = vmtape(folder.path(), line)?;
        let report: serde_json::Value =
            serde_json::from_slice(&output.stdout).with_context(|| tail(&output))?;
        assert_eq!(report["schema_version"], 2);
        assert!(String::from_utf8_lossy(&output.stderr).contains("hello"), "{}", tail(&output));
    }
    Ok(())
}

/// See: full(4)
#[test]
fn a_guest_whose_output_cannot_be_written_has_failed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run = |to: &str| -> Result<std::process::Output> {
        let mut command = std::process::Command::new(program()?);
        command.current_dir(folder.path()).args(["run", "-b", "vmx", "builtin:hello"]);
        Ok(command.stdout(std::fs::File::options().write(true).open(to)?).stderr(Stdio::piped()).output()?)
    };
    assert!(run("/dev/null")?.status.success());
    let full = run("/dev/full")?;
    assert_eq!(full.status.code(), Some(125), "{}", tail(&full));
    assert!(
        String::from_utf8_lossy(&full.stderr).contains("the guest's output: No space left"),
        "{}",
        tail(&full)
    );
    Ok(())
}

/// See: full(4)
#[test]
fn what_cannot_be_written_has_failed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    tape(folder.path())?;
    for line in [
        "--help",
        "-h",
        "--version",
        "help replay",
        "replay --help",
        "backends",
        "stat a.tape",
        "show a.tape",
    ] {
        for (to, code) in [("/dev/null", 0), ("/dev/full", 125)] {
            let mut command = std::process::Command::new(program()?);
            command.current_dir(folder.path()).args(line.split(' '));
            command.stdout(std::fs::File::options().write(true).open(to)?).stderr(Stdio::piped());
            let output = command.output()?;
            assert_eq!(output.status.code(), Some(code), "{line} > {to}: {}", tail(&output));
        }
    }
    Ok(())
}

/// What a program says on a terminal, which script(1) of util-linux makes.
fn on_a_terminal(folder: &Path, line: &str) -> Result<String> {
    let command = format!("{} {line}", program()?.display());
    let mut script = std::process::Command::new("script");
    let output =
        script.current_dir(folder).args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).output();
    Ok(String::from_utf8_lossy(&output.context("script(1)")?.stdout).into_owned())
}

#[test]
fn progress_ends_with_one_line_and_can_be_silenced() -> Result<()> {
    let folder = tempfile::tempdir()?;
    tape(folder.path())?;
    let recordings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings/npt1-guests");
    std::fs::copy(recordings.join("hello/trace.txt.gz"), folder.path().join("trace.txt.gz"))?;
    for (line, ends) in [
        ("replay a.tape", "exits in "),
        ("replay a.tape -b svm", "instructions in "),
        ("check a.tape --to intel-52", "instructions in "),
        ("check --fleet intel-52 amd-52 --guest builtin:hello", "guests on hosts in "),
        ("import trace.txt.gz -o real.tape", "lines in "),
        ("check real.tape --to amd-52", "exits in "),
        ("replay real.tape --mode exits --host amd-48", "exits in "),
        ("scenarios --kit -b vmx --name kit-runs-a-guest", "rows in "),
    ] {
        let told = on_a_terminal(folder.path(), line)?;
        assert_eq!(told.matches(ends).count(), 1, "{line}: {told}");
        assert!(told.contains("% of ") && told.contains(" left"), "{line}: {told}");
        let quiet = on_a_terminal(folder.path(), &format!("{line} -q"))?;
        assert!(!quiet.contains(ends) && !quiet.contains("% of ") && !quiet.is_empty(), "{line}: {quiet}");
    }
    // Each trial of a bisection has a length of its own.
    let line =
        ["record", "-q", "-b", "svm-npt", "--cpu", "max,-pku,phys-bits=36", "-o", "m.tape", "builtin:matrix"];
    anyhow::ensure!(vmtape(folder.path(), &line)?.status.success());
    let told = on_a_terminal(folder.path(), "bisect m.tape -b vmx --axis width")?;
    assert!(told.contains("% of this trial") && told.contains(" left"), "{told}");
    let help = |color: &str| on_a_terminal(folder.path(), &format!("replay --color {color} --help"));
    assert!(help("always")?.contains("\x1b[") && !help("never")?.contains("\x1b["));
    Ok(())
}

#[test]
fn errors_are_json_where_json_was_asked_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (line, kind, code) in [
        ("replay absent.tape --json", "could-not-test", 125),
        ("run -b vmx builtin:nobody --json", "usage", 2),
        ("replay --no-such-option --json", "usage", 2),
        ("replay absent.tape --bisect --json", "usage", 128),
    ] {
        let output = vmtape(folder.path(), &line.split(' ').collect::<Vec<_>>())?;
        let report: serde_json::Value =
            serde_json::from_slice(&output.stdout).with_context(|| tail(&output))?;
        let error = &report["error"];
        assert_eq!((&error["kind"], &error["exit_code"]), (&kind.into(), &code.into()), "{line}: {report}");
        assert_eq!(output.status.code(), Some(code), "{line}");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()) && !output.stderr.is_empty());
    }
    Ok(())
}

/// See: signal(7), SIGPIPE; a shell's 128 + 13.
#[test]
fn a_reader_that_goes_away_is_no_crash() -> Result<()> {
    let folder = tempfile::tempdir()?;
    tape(folder.path())?;
    for line in [
        "help record",
        "guests",
        "backends --patches",
        "completions bash",
        "scenarios --list",
        "show a.tape",
        "stat a.tape --json",
        "replay a.tape -b svm",
        "run -b vmx --check-extension 185 builtin:hello",
    ] {
        // Gone before the program starts: a short text would otherwise fit into the pipe in time.
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = std::process::Command::new(program()?)
            .current_dir(folder.path())
            .args(line.split(' '))
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked"), "{line}: {stderr}");
        let expected = if line.starts_with("help") { 0 } else { 141 };
        assert_eq!(output.status.code(), Some(expected), "{line}: {stderr}");
    }
    Ok(())
}

#[test]
fn a_step_that_never_happened_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let line = ["run", "-q", "-b", "vmx", "--set-cpuid", "exit=100000,phys-bits=36", "builtin:hello"];
    let output = vmtape(folder.path(), &line)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("never happened: KVM_SET_CPUID2 vcpu 0, phys-bits=36 at exit=100000"),
        "{stderr}"
    );
    assert!(output.stdout.is_empty(), "{}", tail(&output));
    let output = vmtape(folder.path(), &[&line[..1], &["--json"], &line[1..]].concat())?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["never"][0], "KVM_SET_CPUID2 vcpu 0, phys-bits=36 at exit=100000");
    Ok(())
}
