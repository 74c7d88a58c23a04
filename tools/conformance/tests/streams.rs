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
