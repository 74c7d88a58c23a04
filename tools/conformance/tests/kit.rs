//! The conformance kit for backends: whoever keeps to the ABI passes it, and who does not hears by name in what.

use anyhow::{Context, Result, ensure};
use std::{fs, path::Path, process::Command};
use vmtape_conformance::{BACKENDS, identity, program, tail, vmtape};

/// The rows of the kit by name, each with its verdict.
fn kit(folder: &Path, backend: &str, plugin: Option<&str>) -> Result<Vec<(String, String, String)>> {
    let plugin: Vec<&str> = plugin.map_or_else(Vec::new, |plugin| vec!["--plugin", plugin]);
    let output = vmtape(folder, &[&["scenarios", "--kit", "-b", backend, "--json"][..], &plugin].concat())?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).with_context(|| tail(&output))?;
    let rows = report["outcomes"].as_array().with_context(|| report.to_string())?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(rows
        .iter()
        .map(|row| (text(&row["name"]), text(&row["verdict"]), row["reasons"].to_string()))
        .collect())
}

/// Nothing deviates, and so many rows are about what the backend claims.
fn passes(rows: &[(String, String, String)], skipped: usize) -> Result<()> {
    let deviating: Vec<_> = rows.iter().filter(|(_, verdict, _)| verdict == "deviates").collect();
    ensure!(deviating.is_empty(), "{deviating:#?}");
    let found = rows.iter().filter(|(_, verdict, _)| verdict == "skipped").count();
    ensure!(found == skipped, "{found} rows are skipped");
    Ok(())
}

#[test]
fn backends_of_this_repository_pass() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for backend in BACKENDS {
        passes(&kit(folder.path(), backend, None)?, 0).context(backend)?;
    }
    Ok(())
}

/// In C, and the one to begin from: what they do not claim is skipped.
#[test]
fn the_smallest_backends_pass() -> Result<()> {
    let folder = tempfile::tempdir()?;
    identity::compile(folder.path(), "", "")?;
    passes(&kit(folder.path(), "identity", Some(identity::LIBRARY))?, 2).context("identity")?;

    let beside = program()?;
    let beside = beside.parent().context("a profile's folder")?;
    let profile = if beside.ends_with("debug") { "dev" } else { "release" };
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .args(["build", "--quiet", "--package", "vmtape_template", "--profile", profile, "--target-dir"])
        .arg(beside.parent().context("a target folder")?)
        .output()?;
    ensure!(built.status.success(), "{}", tail(&built));
    let library = folder.path().join("libmine.so");
    fs::copy(beside.join("libtemplate.so"), &library)?;
    passes(&kit(folder.path(), "template", library.to_str())?, 2).context("template")
}

/// A change to the backend in C, and rows that must notice.
const WRONG: [(&str, &str, &[&str]); 8] = [
    (
        "        cpuid(vm, state);\n        state->rip += exit->insn.len;\n",
        "        cpuid(vm, state);\n",
        &["kit-cpuid-moves-rip-once"],
    ),
    ("entry | A | (leaf && write ? D : 0)", "entry | (leaf && write ? D : 0)", &["kit-accessed-bit"]),
    ("entry | A | (leaf && write ? D : 0)", "entry | A", &["kit-dirty-bit", "kit-write-protect-off"]),
    ("((access->user && !(allowed & U)) ||", "(false ||", &["kit-user-bit"]),
    ("if (config->options[i].key.len != 3 ||", "if (false &&", &["kit-refuses-options"]),
    ("        return -17; // -EEXIST", "        return 0;", &["kit-refuses-overlapping-slots"]),
    (
        "    memcpy(vm, saved.ptr, saved.len);\n",
        "    memset(vm->slots, 0, sizeof vm->slots);\n",
        &["kit-checkpoint"],
    ),
    (
        "    state->gpr[vt_GPR_RAX] = found.eax;\n",
        "    static uint32_t told;\n    state->gpr[vt_GPR_RAX] = found.eax ^ (function == 0x80000008 ? (uint32_t)(uintptr_t)&told : 0);\n",
        &["kit-cpuid-moves-rip-once"],
    ),
];

#[test]
fn wrong_backends_fail_by_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut failed = Vec::new();
    for (from, to, named) in WRONG {
        identity::compile(folder.path(), from, to)?;
        let rows = kit(folder.path(), "identity", Some(identity::LIBRARY))?;
        let deviates = |name: &str| rows.iter().any(|(row, verdict, _)| row == name && verdict == "deviates");
        if let Some(silent) = named.iter().find(|name| !deviates(name)) {
            failed.push(format!("`{to}`: {silent} does not notice"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}
