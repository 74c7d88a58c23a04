//! What is installed under an empty prefix works from any folder, and goes without a trace.

use anyhow::{Context, Result, ensure};
use std::{
    path::Path,
    process::{Command, Output},
};
use vmtape_conformance::{program, tail};

/// `cargo xtask`, with what the running test was built with.
fn xtask(arguments: &[&str]) -> Result<()> {
    let program = program()?;
    let folder = program.parent().context("a profile's folder")?;
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => "dev",
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .args(["run", "--quiet", "--package", "xtask", "--"])
        .args(arguments)
        .args(["--no-build", "--profile", profile])
        .env("CARGO_TARGET_DIR", folder.parent().context("a target folder")?)
        .output()?;
    ensure!(output.status.success(), "{}", tail(&output));
    Ok(())
}

/// The installed program, with nothing of this environment.
fn installed(prefix: &Path, folder: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(prefix.join("bin/vmtape"));
    command.args(arguments).current_dir(folder).env_clear().env("HOME", folder);
    Ok(command.output()?)
}

#[test]
fn the_tour_goes_from_another_folder() -> Result<()> {
    let [prefix, elsewhere] = [tempfile::tempdir()?, tempfile::tempdir()?];
    let (prefix, elsewhere) = (prefix.path(), elsewhere.path());
    let place = prefix.to_str().context("a name")?;
    xtask(&["install", "--prefix", place])?;
    for file in [
        "lib/vmtape/plugins/libvmtape_svm_npt.so",
        "include/vmtape_backend.h",
        "share/doc/vmtape/LICENSE",
        "share/man/man1/vmtape.1",
        "share/man/man1/vmtape-record.1",
        "share/bash-completion/completions/vmtape",
    ] {
        assert!(prefix.join(file).is_file(), "{file}");
    }
    let toured = installed(prefix, elsewhere, &["tour"])?;
    assert!(toured.status.success(), "{}", tail(&toured));
    let backends = installed(prefix, elsewhere, &["backends"])?;
    let text = String::from_utf8_lossy(&backends.stdout).into_owned();
    for name in ["vmx", "svm", "svm-npt"] {
        assert!(text.contains(name), "{text}");
    }
    std::fs::write(prefix.join("bin/other"), "somebody else's")?;
    xtask(&["uninstall", "--prefix", place])?;
    let left: Vec<_> = std::fs::read_dir(prefix)?.collect::<Result<_, _>>()?;
    assert_eq!(
        left.iter().map(|entry| entry.file_name()).collect::<Vec<_>>(),
        ["bin"],
        "what is not ours stays"
    );
    Ok(())
}
