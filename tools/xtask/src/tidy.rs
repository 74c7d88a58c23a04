//! The rules of this repository that no compiler checks: who may depend on whom, who may name a backend, how long a
//! file may be, that files do not import each other in a circle, and that unsafe code says why.

use crate::circles::Crate;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};
use vmtape_abi::{Description, Plugin};

/// Lines beyond which a file is surely two files.
const LINES_MAX: usize = 800;

/// Which workspace crates a crate may depend on (outside of tests). Lower layers come first.
const ALLOWED: &[(&str, &[&str])] = &[
    ("vmtape_arch", &[]),
    ("vmtape_jit", &[]),
    ("vmtape_cpu", &["vmtape_arch", "vmtape_jit"]),
    ("vmtape_abi", &["vmtape_arch"]),
    ("vmtape_traces", &["vmtape_arch"]),
    ("vmtape_guests", &["vmtape_arch"]),
    ("vmtape_kvm_mmu", &["vmtape_arch", "vmtape_abi"]),
    ("vmtape_testing", &["vmtape_arch", "vmtape_abi"]),
    ("vmtape_kvm_core", &["vmtape_arch", "vmtape_abi", "vmtape_kvm_mmu"]),
    ("vmtape_kvm_svm", &["vmtape_arch", "vmtape_abi", "vmtape_kvm_mmu", "vmtape_kvm_core"]),
    ("vmtape_vmx", &["vmtape_arch", "vmtape_abi", "vmtape_kvm_mmu", "vmtape_kvm_core"]),
    ("vmtape_svm", &["vmtape_arch", "vmtape_abi", "vmtape_kvm_mmu", "vmtape_kvm_core", "vmtape_kvm_svm"]),
    ("vmtape_svm_npt", &["vmtape_arch", "vmtape_abi", "vmtape_kvm_mmu", "vmtape_kvm_core", "vmtape_kvm_svm"]),
    ("vmtape_template", &["vmtape_arch", "vmtape_abi"]),
    ("vmtape_machine", &["vmtape_arch", "vmtape_cpu", "vmtape_abi", "vmtape_traces"]),
    ("vmtape_backends", &["vmtape_arch", "vmtape_abi", "vmtape_machine"]),
    ("vmtape_faults", &["vmtape_arch", "vmtape_traces", "vmtape_machine"]),
    ("vmtape_migrate", &["vmtape_arch", "vmtape_abi", "vmtape_traces", "vmtape_machine", "vmtape_faults"]),
    (
        "vmtape_replay",
        &["vmtape_arch", "vmtape_abi", "vmtape_machine", "vmtape_traces", "vmtape_faults", "vmtape_migrate"],
    ),
];

/// Crates of people's own tools, which may depend on everything and on which nothing depends, and fuzz targets.
const ANYTHING: &[&str] =
    &["vmtape", "vmtape_bench", "vmtape_conformance", "xtask", "vmtape_traces_fuzz", "vmtape_machine_fuzz"];

/// Folders in which no concrete backend and no option of one may be named: a third party can write one that they never heard of.
const BACKEND_BLIND: &[&str] = &["host", "traces/src", "replay/src"];

/// Names out of the plugins' tables that mean something else above the boundary, too.
const ALSO: &[(&str, &str)] = &[
    ("vmx", "an instruction set, and the CPUID feature that shows it"),
    ("svm", "an instruction set, and the CPUID feature that shows it"),
    ("npt", "a CPUID feature"),
    ("lbrv", "a CPUID feature"),
    ("vgif", "a CPUID feature"),
    ("vnmi", "a CPUID feature"),
    ("nested", "a dimension of a walk"),
    ("guest-phys-bits", "a property of CPU models"),
];

/// Crates whose files still import each other in a circle.
const CIRCULAR: &[&str] =
    &["host/cpu", "plugins/abi", "plugins/kvm-core", "plugins/kvm-svm", "plugins/vmx", "traces"];

/// The checkout that this program was built from.
pub fn repository_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the checkout exists")
}

/// Every finding as `path: what`.
pub fn check(root: &Path) -> Vec<String> {
    let mut findings = Vec::new();
    let mut crates: BTreeMap<String, Crate> = BTreeMap::new();
    let names = Names::of(&plugins());
    for file in files(root) {
        let relative = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        let Ok(text) = fs::read_to_string(&file) else { continue };
        if relative.ends_with("Cargo.toml") && relative != "Cargo.toml" {
            findings.extend(dependencies(&relative, &text));
        }
        if relative.ends_with(".rs") {
            findings.extend(source(&relative, &text));
            findings.extend(names.in_source(&relative, &text));
            if let Some((krate, module)) = relative.split_once("/src/") {
                crates.entry(krate.to_owned()).or_default().add(Path::new(module), &text);
            }
        }
    }
    for (path, krate) in crates.iter().filter(|(path, _)| !CIRCULAR.contains(&path.as_str())) {
        let circles = krate.circles().into_iter();
        findings
            .extend(circles.map(|circle| format!("{path}: these import each other in a circle: {circle}")));
    }
    findings
}

fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    pending.push(path);
                }
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn dependencies(path: &str, text: &str) -> Vec<String> {
    let Ok(manifest) = text.parse::<toml::Table>() else { return vec![format!("{path}: not TOML")] };
    let name = manifest.get("package").and_then(|p| p.get("name")).and_then(|n| n.as_str()).unwrap_or("");
    if ANYTHING.contains(&name) {
        return Vec::new();
    }
    let Some((_, allowed)) = ALLOWED.iter().find(|(krate, _)| *krate == name) else {
        return vec![format!(
            "{path}: the crate {name} is in no table of tools/xtask/src/tidy.rs: what may it depend on?"
        )];
    };
    let Some(dependencies) = manifest.get("dependencies").and_then(|d| d.as_table()) else {
        return Vec::new();
    };
    dependencies
        .keys()
        .filter(|key| key.starts_with("vmtape") && !allowed.contains(&key.as_str()))
        .map(|key| format!("{path}: {name} must not depend on {key}"))
        .collect()
}

fn source(path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        findings.push(format!("{path}: {lines} lines; what is it really made of?"));
    }
    let opts_in = ["allow(unsafe_code", "expect(unsafe_code"].iter().any(|word| text.contains(word));
    if opts_in && !text.contains("UNSAFETY:") && !path.starts_with("tools/xtask") {
        findings.push(format!("{path}: opts in to unsafe code without an UNSAFETY: sentence"));
    }
    findings
}

/// What the plugins of this repository say of themselves.
fn plugins() -> [Description; 3] {
    let svm = vmtape_kvm_svm::describe::description;
    [vmtape_vmx::Vmx::describe(), svm(false), svm(true)]
}

/// What no file above the boundary may name.
struct Names(BTreeSet<String>);

impl Names {
    /// Backends, their crates, their module parameters and patches.
    fn of(plugins: &[Description]) -> Self {
        let mut names = BTreeSet::new();
        for plugin in plugins {
            names.insert(format!("vmtape_{}", plugin.name.replace('-', "_")));
            let options = plugin.parameters.iter().chain(&plugin.patches).map(|row| &row.name);
            let named =
                options.chain([&plugin.name]).filter(|name| ALSO.iter().all(|(also, _)| also != name));
            names.extend(named.map(|name| format!("\"{name}\"")));
        }
        Self(names)
    }

    fn in_source(&self, path: &str, text: &str) -> Vec<String> {
        let blind = BACKEND_BLIND.iter().any(|folder| path.starts_with(folder)) && !path.contains("/tests/");
        if !blind {
            return Vec::new();
        }
        let found = self.0.iter().filter(|name| text.contains(name.as_str()));
        found.map(|name| format!("{path}: names {name}, which a backend's tables have")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, dependency: &str) -> Vec<String> {
        dependencies(
            "x/Cargo.toml",
            &format!("[package]\nname = {name:?}\n[dependencies]\n{dependency} = \"1\"\n"),
        )
    }

    #[test]
    fn dependencies_point_one_way_and_every_crate_is_known() {
        assert_eq!(manifest("vmtape_cpu", "vmtape_arch"), Vec::<String>::new());
        assert_eq!(manifest("vmtape_arch", "vmtape_cpu").len(), 1);
        assert_eq!(manifest("vmtape_new", "serde").len(), 1, "no table knows it");
    }

    #[test]
    fn no_backend_and_no_option_is_named_above_the_boundary() {
        let names = Names::of(&plugins());
        let in_source = |path, text| names.in_source(path, text).len();
        for named in ["\"svm-npt\"", "use vmtape_vmx::Vmx;", "has(\"ept\")", "\"pf-fixup\"", "\"eptad\""] {
            assert_eq!(in_source("replay/src/spec.rs", named), 1, "{named}");
            assert_eq!(in_source("tools/vmtape/src/main.rs", named), 0, "{named}");
        }
        assert_eq!(in_source("host/arch/src/exit.rs", "VMX = 1 => \"vmx\", ept"), 0, "other words");
    }
}
