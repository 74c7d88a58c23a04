//! The backend in C of the ABI's tests, as it is or with one thing changed.

use crate::tail;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The library's name in the folder that it is compiled to.
pub const LIBRARY: &str = "libidentity.so";

/// Compiles it with `from` become `to`; what is not there any more is an error.
pub fn compile(folder: &Path, from: &str, to: &str) -> Result<PathBuf> {
    compile_changed(folder, &[(from, to)])
}

/// Likewise, with several things changed.
pub fn compile_changed(folder: &Path, changes: &[(&str, &str)]) -> Result<PathBuf> {
    let abi = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/abi");
    let mut source = fs::read_to_string(abi.join("tests/c/identity.c"))?;
    for (from, to) in changes {
        ensure!(source.contains(from), "the backend in C has no longer `{from}`");
        source = source.replacen(from, to, 1);
    }
    let changed = folder.join("changed.c");
    fs::write(&changed, source)?;
    let library = folder.join(LIBRARY);
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-w", "-shared", "-fPIC", "-O1", "-I"]).arg(abi.join("include"));
    let built = cc.arg(changed).arg("-o").arg(&library).output();
    let built = built.context("a C compiler is installed as `cc`")?;
    ensure!(built.status.success(), "{}", tail(&built));
    Ok(library)
}
