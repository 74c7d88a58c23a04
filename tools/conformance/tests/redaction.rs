//! Tapes without what is in their memory: what is said of them is the same as before.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
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

/// Where frames went: pages, and the 2 MiB and 1 GiB around them.
#[derive(Default)]
struct Permutation([BTreeMap<u64, u64>; 3]);

/// See: SDM vol. 3A 4.5 4-Level Paging and 5-Level Paging
const TABLE_BITS: u64 = 9;
const PAGE_SHIFT: u64 = 12;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

impl Permutation {
    /// A page of this level that begins with a frame. One that does not begin there is told by a frame in it.
    fn page(&mut self, from: u64, to: u64, level: u64) -> Result<()> {
        let begins = |level: u64| from & ((1 << (TABLE_BITS * (level - 1))) - 1) == 0;
        let level = if begins(level.min(3)) { level.min(3) } else { 1 };
        for (larger, map) in self.0.iter_mut().enumerate().skip(level as usize - 1) {
            let shift = TABLE_BITS * larger as u64;
            let was = *map.entry(from >> shift).or_insert(to >> shift);
            ensure!(
                was == to >> shift,
                "{from:#x} went to {to:#x}, and what is around it to {was:#x} << {shift}"
            );
        }
        Ok(())
    }

    /// No two went to one place, and some went elsewhere.
    fn check(&self) -> Result<()> {
        for map in &self.0 {
            let places: BTreeSet<_> = map.values().collect();
            ensure!(places.len() == map.len(), "{} became {}", map.len(), places.len());
        }
        for map in &self.0[..2] {
            ensure!(map.len() > 2 && map.iter().any(|(from, to)| from != to), "{map:x?}");
        }
        Ok(())
    }
}

/// The events of KVM's in an export, in their order.
fn events(path: &Path) -> Result<Vec<Value>> {
    let lines: Result<Vec<Value>, _> =
        fs::read_to_string(path)?.lines().skip(1).map(serde_json::from_str).collect();
    let is_kvms = |event: &Value| {
        let name = event["event"].as_str().unwrap_or_default();
        (name.starts_with("kvm_") && event.get("text").is_none()) || name == "fast_page_fault"
    };
    Ok(lines?.into_iter().filter(is_kvms).collect())
}

fn hex(event: &Value, field: &str) -> Result<u64> {
    let text = event[field].as_str().with_context(|| format!("{field} of {event}"))?;
    Ok(u64::from_str_radix(text.trim_start_matches("0x"), 16)?)
}

/// What is left of each event, beside what it was. `physical`: page faults are about guest physical addresses.
fn compare(before: &[Value], after: &[Value], physical: bool) -> Result<()> {
    let mut frames = Permutation::default();
    let mut code: BTreeMap<String, String> = BTreeMap::new();
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    ensure!(before.len() == after.len(), "{} events became {}", before.len(), after.len());
    for (old, new) in before.iter().zip(after) {
        let name = old["event"].as_str().context("a name")?;
        ensure!(new["event"] == name, "{old} became {new}");
        *seen.entry(name.to_owned()).or_default() += 1;
        match name {
            "kvm_mmu_spte_requested" | "kvm_mmu_set_spte" => {
                frames.page(hex(old, "gfn")?, hex(new, "gfn")?, old["level"].as_u64().context("a level")?)?;
            }
            "kvm_page_fault" if physical => {
                frames.page(hex(old, "address")? >> PAGE_SHIFT, hex(new, "address")? >> PAGE_SHIFT, 1)?;
            }
            "kvm_mmu_paging_element" => {
                let (old_pte, new_pte) = (hex(old, "pte")?, hex(new, "pte")?);
                ensure!(old_pte & !FRAME == new_pte & !FRAME, "{old} became {new}");
                let level = old["level"].as_u64().context("a level")?;
                let level = if old_pte & LARGE != 0 { level } else { 1 };
                frames.page((old_pte & FRAME) >> PAGE_SHIFT, (new_pte & FRAME) >> PAGE_SHIFT, level)?;
            }
            "kvm_emulate_insn" => {
                let text = |event: &Value| event["insn"].as_str().unwrap_or_default().to_owned();
                let was = code.entry(text(old)).or_insert_with(|| text(new)).clone();
                ensure!(was == text(new) && was.len() == text(old).len(), "{old} became {new}");
                // Of fewer bytes some may come out as they were.
                ensure!(was.len() < "00 00 00 00".len() || was != text(old), "{old} became {new}");
            }
            "kvm_pio" => ensure!(hex(new, "value")? == 0, "{new}"),
            "kvm_cpuid" if (0x8000_0002..=0x8000_0004).contains(&hex(old, "function")?) => {
                let registers = ["eax", "ebx", "ecx", "edx"].map(|name| hex(new, name).ok());
                ensure!(registers == [Some(0); 4], "{new}");
            }
            // The host's vCPUs, what the guest asked for, and what it was answered stay.
            "kvm_cpuid" | "kvm_msr" | "kvm_inj_exception" => ensure!(old == new, "{old} became {new}"),
            _ => {}
        }
    }
    frames.check()?;
    for name in ["kvm_mmu_spte_requested", "kvm_mmu_paging_element", "kvm_emulate_insn", "kvm_pio"] {
        ensure!(seen.get(name).is_some_and(|count| *count > 5), "{name}: {seen:?}");
    }
    Ok(())
}

/// A recording under nested paging, and a run of ours under shadow paging: both have walks, entries, instructions and output.
#[test]
fn frames_are_permuted_and_neither_memory_nor_strings_are_left() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    run(folder, &format!("import -o real.tape {}", recording("npt1/setjmp")?.display()))?;
    run(folder, "record -q -b svm --host amd-48-qemu --append secretword -o ours.tape builtin:illegal")?;
    for (tape, physical) in [("real", true), ("ours", false)] {
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
        let [before, after] =
            ["jsonl", "redacted.jsonl"].map(|end| events(&folder.join(format!("{tape}.{end}"))));
        compare(&before?, &after?, physical).with_context(|| tape.to_owned())?;
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
