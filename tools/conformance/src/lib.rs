//! One suite for every backend: guests run through the installed program, as a user would run them.
//!
//! The program and the plugins must have been built (`cargo build`); a missing one is an error, never a skip.

use anyhow::{Context, Result, bail};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The backends that this workspace ships.
pub const BACKENDS: [&str; 3] = ["vmx", "svm", "svm-npt"];

/// Exit statuses of kvm-unit-tests as QEMU's debug-exit device reports them: `(code << 1) | 1`.
pub mod guest_status {
    pub const PASS: i32 = 1;
    pub const FAIL: i32 = 3;
    pub const SKIP: i32 = 77;
}

/// The `vmtape` program beside the running test.
pub fn program() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(Path::parent).context("a test runs from target/PROFILE/deps")?;
    let program = folder.join("vmtape");
    if !program.exists() {
        bail!("{} is missing: run `cargo build` first", program.display());
    }
    Ok(program)
}

/// Says that the running test was skipped, and why. Not by a macro: what those print of a test that passes nobody sees.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let _ = writeln!(io::stderr(), "SKIPPED {}: {why}", thread.name().unwrap_or("a test"));
}

/// Where kvm-unit-tests' images are, if the user said so.
pub fn kvm_unit_tests() -> Option<PathBuf> {
    let folder = std::env::var_os("VMTAPE_KUT").map(PathBuf::from);
    if folder.is_none() {
        skipped(
            "it needs kvm-unit-tests: VMTAPE_KUT=FOLDER cargo test -p vmtape_conformance, FOLDER being its x86, built",
        );
    }
    folder
}

/// Runs `vmtape` with these arguments in a folder and gives what it printed.
pub fn vmtape(folder: &Path, arguments: &[&str]) -> Result<Output> {
    Command::new(program()?)
        .current_dir(folder)
        .args(arguments)
        .env("NO_COLOR", "1")
        .output()
        .with_context(|| format!("failed to run vmtape {}", arguments.join(" ")))
}

/// The last lines of what a command printed, for a failing test's message.
pub fn tail(output: &Output) -> String {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
