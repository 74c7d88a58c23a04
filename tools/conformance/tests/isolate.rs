//! Backends in processes of their own: the same tapes, and what one does to itself ends its process alone, with exit code 125 and the
//! tape up to there.

use anyhow::{Context, Result, ensure};
use std::{fs, process::Output};
use vmtape_conformance::{BACKENDS, identity::compile, tail, vmtape};

const COULD_NOT_TEST: i32 = 125;

/// Every built-in guest, each on one backend: the boundary is the same for all.
#[test]
fn the_tape_is_the_same_to_the_byte() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let listed = vmtape(folder.path(), &["guests", "--json"])?;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    let guests = listed["guests"].as_array().context("a list of guests")?;
    ensure!(!guests.is_empty(), "{listed}");
    for (n, guest) in guests.iter().enumerate() {
        let name = guest["name"].as_str().context("a name")?;
        // Guests of guests need SVM.
        let (backend, cpu) = match name.starts_with("nested") {
            true => ("svm-npt", "max,+svm"),
            false => (BACKENDS[n % BACKENDS.len()], "max"),
        };
        let image = format!("builtin:{name}");
        let record = |isolated: &[&str], tape: &str| -> Result<Output> {
            let line =
                ["record", "-q", "-b", backend, "--cpu", cpu, "--max-exits", "400", "-o", tape, &image];
            vmtape(folder.path(), &[&line, isolated].concat())
        };
        let [here, there] = [record(&[], "here.tape")?, record(&["--isolate"], "there.tape")?];
        ensure!(here.status == there.status, "{name} on {backend}: {}", tail(&there));
        let [here, there] = ["here.tape", "there.tape"].map(|tape| fs::read(folder.path().join(tape)));
        ensure!(here? == there?, "{name} on {backend}: the tapes differ");
    }
    Ok(())
}

const LINE: [&str; 9] =
    ["record", "--isolate=2", "--plugin", "libidentity.so", "-b", "identity", "--host", "intel-46", "-o"];

/// What it does at its fifth CPUID, and what is said of it.
const ENDS: [(&str, &str); 5] = [
    ("abort();", "ended by signal 6 SIGABRT"),
    ("for (;;) {}", "gave no answer for 2 s"),
    ("for (;;) host.table->log(host.ctx, 5, TEXT(\"still here\"));", "gave no answer for 2 s"),
    ("memset(vm, 0xff, 1 << 26);", "ended by signal 11 SIGSEGV"),
    ("extern void _exit(int); _exit(3);", "ended with exit code 3"),
];

#[test]
fn a_backend_that_ends_badly_ends_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    const FROM: &str = "        cpuid(vm, state);\n";
    for (deed, said) in ENDS {
        let to =
            format!("        cpuid(vm, state);\n        static int n;\n        if (++n == 5) {{ {deed} }}\n");
        compile(folder.path(), FROM, &to)?;
        let output = vmtape(folder.path(), &[&LINE[..], &["a.tape", "builtin:cpuid"]].concat())?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(COULD_NOT_TEST) && stderr.contains(said), "{deed}: {stderr}");
        assert!(!stderr.contains("panicked"), "{deed}: {stderr}");
        let stat = vmtape(folder.path(), &["stat", "--json", "a.tape"])?;
        let stat: serde_json::Value = serde_json::from_slice(&stat.stdout)?;
        let exits = stat["exits"].as_u64().unwrap_or_default();
        assert!(exits >= 4, "{deed}: the tape ends after {exits} exits");
    }
    Ok(())
}

/// Before there is a VM, too.
#[test]
fn a_backend_that_never_begins() -> Result<()> {
    let folder = tempfile::tempdir()?;
    const FROM: &str = "    *vm = calloc(1, sizeof **vm);\n";
    for (deed, said) in [("abort();", "SIGABRT"), ("for (;;) {}", "gave no answer")] {
        compile(folder.path(), FROM, &format!("    {deed}\n{FROM}"))?;
        let output = vmtape(folder.path(), &[&LINE[..], &["a.tape", "builtin:hello"]].concat())?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some_and(|code| code != 0) && stderr.contains(said), "{stderr}");
    }
    let text = folder.path().join("libtext.so");
    fs::write(&text, "not a library")?;
    let output =
        vmtape(folder.path(), &["run", "--isolate", "--plugin", "libtext.so", "-b", "x", "builtin:hello"])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("is not a library") && output.status.code() == Some(COULD_NOT_TEST), "{stderr}");
    Ok(())
}
