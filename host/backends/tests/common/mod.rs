//! The backend in C of `plugins/abi`, built from the header alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use vmtape_arch::host::Silicon;

/// Compiles it as `name`.
pub fn compile(folder: &Path, name: &str, defines: &[&str]) -> PathBuf {
    compile_with(folder, name, defines, |header| header)
}

/// Compiles it as `name`, with another header than ours.
pub fn compile_with(
    folder: &Path,
    name: &str,
    defines: &[&str],
    header: impl FnOnce(String) -> String,
) -> PathBuf {
    let abi = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/abi");
    let ours = fs::read_to_string(abi.join("include/vmtape_backend.h")).unwrap();
    fs::write(folder.join("vmtape_backend.h"), header(ours)).unwrap();
    let library = folder.join(name);
    let built = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Wno-unused-function", "-Werror", "-shared", "-fPIC", "-O1"])
        .args(defines)
        .arg("-I")
        .arg(folder)
        .arg(abi.join("tests/c/identity.c"))
        .arg("-o")
        .arg(&library)
        .output()
        .expect("a C compiler is installed as `cc`");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

/// A host that the backend in C accepts.
pub fn intel() -> Silicon {
    vmtape_machine::hosts::find("intel-46").expect("named")
}
