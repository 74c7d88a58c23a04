//! How instructions are executed is nobody's business: both engines make the same tapes, to the byte, and replay each other's.

use anyhow::{Result, ensure};
use std::{fs, path::Path};
use vmtape_conformance::{BACKENDS, kvm_unit_tests, tail, vmtape};

/// Far enough for every guest of ours that ends.
const INSTRUCTIONS: &str = "3000000";

fn guests(folder: &Path) -> Result<Vec<String>> {
    let listed = vmtape(folder, &["guests", "--json"])?;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    let listed = listed.get("guests").unwrap_or(&listed);
    let names = listed.as_array().into_iter().flatten().filter_map(|guest| guest["name"].as_str());
    Ok(names.map(|name| format!("builtin:{name}")).collect())
}

/// Records with an engine.
fn record(folder: &Path, engine: &str, backend: &str, limit: &str, image: &str) -> Result<Vec<u8>> {
    let tape = format!("{engine}.tape");
    let arguments =
        ["record", "-q", "-b", backend, "--engine", engine, "--max-insns", limit, "-o", &tape, image];
    let recorded = vmtape(folder, &arguments)?;
    let path = folder.join(&tape);
    ensure!(path.exists(), "{backend} {image} --engine {engine}: {}", tail(&recorded));
    Ok(fs::read(path)?)
}

fn check(folder: &Path, backend: &str, limit: &str, image: &str) -> Result<()> {
    let tapes = ["interp", "jit"].map(|engine| record(folder, engine, backend, limit, image));
    let [interpreted, compiled] = tapes;
    ensure!(interpreted? == compiled?, "{backend} {image}: the engines' tapes differ");
    for (tape, engine) in [("interp.tape", "jit"), ("jit.tape", "interp")] {
        let replayed = vmtape(folder, &["replay", tape, "--engine", engine])?;
        ensure!(replayed.status.success(), "{backend} {image}, {tape} on {engine}: {}", tail(&replayed));
        fs::remove_file(folder.join(tape))?;
    }
    Ok(())
}

#[test]
fn every_guest_has_the_same_tape_with_both_engines() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let guests = guests(folder.path())?;
    ensure!(guests.len() >= 10, "only {} guests", guests.len());
    for backend in BACKENDS {
        for guest in &guests {
            check(folder.path(), backend, INSTRUCTIONS, guest)?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs VMTAPE_KUT, and takes minutes"]
fn every_unit_test_of_kvm_has_the_same_tape_with_both_engines() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut images: Vec<_> = fs::read_dir(kvm_unit_tests()?)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "flat"))
        .collect();
    images.sort();
    for image in images {
        for backend in BACKENDS {
            check(folder.path(), backend, "20000000", &image.to_string_lossy())?;
        }
    }
    Ok(())
}
