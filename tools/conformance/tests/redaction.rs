//! Tapes without what is in their memory: what is said of them is the same as before.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use vmtape_conformance::{tail, vmtape};

fn run(folder: &Path, line: &str) -> Result<()> {
    let output = vmtape(folder, &line.split(' ').collect::<Vec<_>>())?;
    ensure!(output.status.success(), "{line}: {}", tail(&output));
    Ok(())
}

fn recording(name: &str) -> Result<PathBuf> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces/recordings").join(name).join("trace.txt.gz");
    path.canonicalize().with_context(|| path.display().to_string())
}

/// What a comparison says that does not depend on addresses.
fn said(folder: &Path, line: &str) -> Result<(Option<i32>, Vec<Value>)> {
    let output = vmtape(folder, &line.split(' ').collect::<Vec<_>>())?;
    let report: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("{line}: {}", tail(&output)))?;
    let host = |field: &str| report["hosts"].get(0).map(|host| host[field].clone()).unwrap_or_default();
    let subjects = report["hosts"]
        .get(0)
        .and_then(|host| host["findings"].as_array())
        .map(|findings| findings.iter().map(|finding| finding["subject"].clone()).collect::<Value>());
    let evidence = host("evidence");
    let said = vec![
        report["verdict"].clone(),
        report["compared"].clone(),
        report["unknown"].clone(),
        report["cost"].clone(),
        report["divergence"]["expected_exit"].clone(),
        report["divergence"]["actual_exit"].clone(),
        report["alignment"]["count"].clone(),
        host("verdict"),
        host("exit"),
        subjects.unwrap_or_default(),
        evidence["judged"].clone(),
        evidence["differ"].clone(),
        evidence["open"].clone(),
    ];
    Ok((output.status.code(), said))
}

const MACHINE: &str = "--host amd-48-qemu --layout mvmm -m 256M";

/// Recordings held against runs that are the same and against such that are not, and judged for hosts.
#[test]
fn verdicts_stay() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let mut codes = BTreeSet::new();
    for (name, backend, guest, cpu) in [
        ("npt1-guests/bar", "svm-npt", "bar,size=0x40000000", "tape:real.tape"),
        ("npt1-guests/touch-leaf-pb36", "svm-npt", "touch,pte=0x1002000001", "max,phys-bits=36"),
        ("npt1-guests/touch-leaf-pb36", "svm-npt", "touch,pte=0x1002000001", "max"),
        ("npt0-guests/illegal", "svm", "illegal", "tape:real.tape"),
        ("npt0-guests/late-pb36", "svm", "late,before=20,rounds=50", "tape:real.tape"),
        ("npt0-guests/late-pb36", "svm", "late,before=20,rounds=49", "tape:real.tape"),
    ] {
        run(folder, &format!("import -o real.tape {}", recording(name)?.display()))?;
        run(folder, &format!("record -q -b {backend} {MACHINE} --cpu {cpu} -o ours.tape builtin:{guest}"))?;
        run(folder, "export real.tape --redact=secret -o real.redacted")?;
        run(folder, "export ours.tape --redact=secret -o ours.redacted")?;
        for (whole, redacted) in [
            ("diff real.tape ours.tape --json", "diff real.redacted ours.redacted --json"),
            ("check real.tape --to amd-52 --json", "check real.redacted --to amd-52 --json"),
            ("check real.tape --to intel-39 --json", "check real.redacted --to intel-39 --json"),
            ("check real.tape --to amd-48 --vfio --json", "check real.redacted --to amd-48 --vfio --json"),
            (
                "replay --mode exits real.tape -b svm --host amd-40 --json",
                "replay --mode exits real.redacted -b svm --host amd-40 --json",
            ),
        ] {
            let expected = said(folder, whole)?;
            assert_eq!(said(folder, redacted)?, expected, "{name}, {guest}: {whole}");
            codes.insert(expected.0);
        }
    }
    assert!(codes.len() > 2, "the verdicts are all alike: {codes:?}");
    Ok(())
}

/// Every value under a name.
fn values(value: &Value, name: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| match value {
            Value::String(text) if key == name => _ = found.insert(text.clone()),
            _ => values(value, name, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| values(item, name, found)),
        _ => {}
    }
}

#[test]
fn neither_memory_nor_strings_are_left() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    run(folder, &format!("import -o real.tape {}", recording("npt1/setjmp")?.display()))?;
    run(folder, "record -q -b vmx --append secretword -o ours.tape builtin:matrix")?;
    for tape in ["real", "ours"] {
        run(folder, &format!("export {tape}.tape --format jsonl -o {tape}.jsonl"))?;
        for copy in ["a", "b"] {
            run(folder, &format!("export {tape}.tape --redact=key -o {tape}.{copy}.tape"))?;
        }
        let [a, b] = ["a", "b"].map(|copy| fs::read(folder.join(format!("{tape}.{copy}.tape"))));
        ensure!(a? == b?, "the same tape and key give other bytes");
        run(folder, &format!("export {tape}.tape --redact=key --format jsonl -o {tape}.redacted.jsonl"))?;
        let text = fs::read_to_string(folder.join(format!("{tape}.redacted.jsonl")))?;
        for secret in ["builtin", "secretword", "trace.txt", "\"read\"", "\"registers\"", "\"image\""] {
            assert!(!text.contains(secret), "{tape}: {secret}");
        }
        let all = |name: &str, file: &str| -> Result<BTreeSet<String>> {
            let mut found = BTreeSet::new();
            for line in fs::read_to_string(folder.join(file))?.lines().skip(1) {
                values(&serde_json::from_str(line)?, name, &mut found);
            }
            Ok(found)
        };
        for name in ["gfn", "insn", "pte"] {
            let before = all(name, &format!("{tape}.jsonl"))?;
            let after = all(name, &format!("{tape}.redacted.jsonl"))?;
            let untold = tape == "ours" && before.is_empty() && after.is_empty();
            ensure!(untold || before != after, "{tape}: {name} is as before");
            // No two become one. A large page goes by the first frame of its region, which may be another frame's name too.
            ensure!(
                name != "gfn" || before.len() <= after.len(),
                "{tape}: {} and {}",
                before.len(),
                after.len()
            );
        }
    }
    Ok(())
}

#[test]
fn a_key_of_its_own_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    run(folder, "record -q -b vmx -o a.tape builtin:hello")?;
    let redacted = vmtape(folder, &["export", "a.tape", "--redact", "-o", "b.tape"])?;
    let told = String::from_utf8_lossy(&redacted.stderr).into_owned();
    let key = told.split("--redact=").nth(1).and_then(|text| text.split(':').next()).context("a key")?;
    run(folder, &format!("export a.tape --redact={key} -o c.tape"))?;
    ensure!(fs::read(folder.join("b.tape"))? == fs::read(folder.join("c.tape"))?, "another tape");
    let stat = vmtape(folder, &["stat", "b.tape"])?;
    ensure!(stat.status.success(), "{}", tail(&stat));
    for wrong in [&["--redact="][..], &["--format", "tape"]] {
        let line = [&["export", "a.tape", "-o", "d.tape"], wrong].concat();
        let refused = vmtape(folder, &line)?;
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}: {}", tail(&refused));
    }
    Ok(())
}
