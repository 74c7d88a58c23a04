//! What is installed under an empty prefix, or from a package in an empty root, works from any folder, and goes without a trace.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};
use vmtape_conformance::{BACKENDS, program, skipped, tail};

/// Cargo in the checkout, with the target folder and the profile of the running test.
fn cargo(line: &dyn Fn(&mut Command, &str)) -> Result<String> {
    let program = program()?;
    let folder = program.parent().context("a profile's folder")?;
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => "dev",
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .env("CARGO_TARGET_DIR", folder.parent().context("a target folder")?);
    line(&mut cargo, profile);
    let output = cargo.output()?;
    ensure!(output.status.success(), "{}", tail(&output));
    Ok(String::from_utf8(output.stdout)?)
}

/// `cargo xtask`, with what the running test was built with.
fn xtask(arguments: &[&str]) -> Result<String> {
    cargo(&|command, profile| {
        command.args(["run", "--quiet", "--package", "xtask", "--"]).args(arguments);
        command.args(["--no-build", "--profile", profile]);
    })
}

/// A program with nothing of this environment.
fn alone(program: &Path, folder: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env_clear().env("HOME", folder);
    Ok(command.output()?)
}

/// The tour goes to its end, and the backends are those of this repository, each from a place that `origin` is a part of.
fn tours(program: &Path, folder: &Path, origin: &str) -> Result<()> {
    let toured = alone(program, folder, &["tour"])?;
    ensure!(toured.status.success(), "{}", tail(&toured));
    let listed = alone(program, folder, &["backends", "--json"])?;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    let listed = listed["backends"].as_array().context("a list of backends")?;
    let mut names: Vec<_> = listed.iter().filter_map(|backend| backend["name"].as_str()).collect();
    names.sort_unstable();
    let mut expected = BACKENDS;
    expected.sort_unstable();
    ensure!(names == expected, "{names:?}");
    for backend in listed {
        let path = backend["path"].as_str().unwrap_or_default();
        ensure!(path.contains(origin), "{path} is not from {origin}");
    }
    Ok(())
}

/// As `cargo install` leaves it: a program, and no plugins anywhere.
#[test]
fn the_program_alone_has_its_backends() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("vmtape");
    fs::copy(program()?, &copy)?;
    tours(&copy, folder.path(), "the program itself")?;
    // A file is taken instead, and where both are, it is listed once.
    let plugin = "libvmtape_svm.so";
    fs::copy(program()?.with_file_name(plugin), folder.path().join(plugin))?;
    let listed = alone(&copy, folder.path(), &["backends", "--json"])?;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    let listed = listed["backends"].as_array().context("a list of backends")?;
    assert_eq!(listed.len(), BACKENDS.len());
    for backend in listed {
        let path = backend["path"].as_str().unwrap_or_default();
        assert_eq!(path.ends_with(plugin), backend["name"] == "svm", "{path}");
    }
    Ok(())
}

/// What the README says, but for the profile, which is that of the running test: its dependencies are built already, mostly.
#[test]
#[ignore = "builds the program once more"]
fn cargo_installs_a_program_that_has_its_backends() -> Result<()> {
    let [root, elsewhere] = [tempfile::tempdir()?, tempfile::tempdir()?];
    let action = |word: &'static str| {
        let place = root.path();
        cargo(&move |command, profile| {
            command.arg(word).arg("--root").arg(place);
            match word {
                "install" => command.args(["--locked", "--path", "tools/vmtape", "--profile", profile]),
                _ => command.arg("vmtape"),
            };
        })
    };
    action("install")?;
    let program = root.path().join("bin/vmtape");
    tours(&program, elsewhere.path(), "the program itself")?;
    for backend in BACKENDS {
        let tape = format!("{backend}.tape");
        for line in [&["record", "-q", "-b", backend, "-o", &tape, "builtin:matrix"][..], &["replay", &tape]]
        {
            let output = alone(&program, elsewhere.path(), line)?;
            ensure!(output.status.success(), "{line:?}: {}", tail(&output));
        }
    }
    action("uninstall")?;
    assert!(!program.exists());
    Ok(())
}

/// The package in an empty root, by dpkg, and out of it again.
#[test]
fn the_package_installs_in_an_empty_root() -> Result<()> {
    let made = xtask(&["dist"])?;
    let package = |end: &str| made.lines().find(|line| line.ends_with(end));
    let [unpacked, root, elsewhere] = [tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?];
    let tarball = package(".tar.gz").context("a tarball")?;
    let tar = Command::new("tar").arg("-xzf").arg(tarball).arg("-C").arg(unpacked.path()).output()?;
    ensure!(tar.status.success(), "{}", tail(&tar));
    let inside = fs::read_dir(unpacked.path())?.next().context("a folder in the tarball")??.path();
    tours(&inside.join("bin/vmtape"), elsewhere.path(), "lib/vmtape/plugins")?;

    let Some(deb) = package(".deb") else {
        skipped("no dpkg-deb here");
        return Ok(());
    };
    let root = root.path();
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("var/lib/dpkg/status"), "")?;
    let dpkg = |action: &[&str]| -> Result<()> {
        let mut command = Command::new("dpkg");
        command.args(["--force-depends", "--force-not-root", "--force-script-chrootless"]);
        let output = command.arg(format!("--root={}", root.display())).args(action).output()?;
        ensure!(output.status.success(), "{}", tail(&output));
        Ok(())
    };
    dpkg(&["--install", deb])?;
    for file in [
        "usr/include/vmtape_backend.h",
        "usr/share/doc/vmtape/LICENSE",
        "usr/share/man/man1/vmtape.1",
        "usr/share/bash-completion/completions/vmtape",
    ] {
        assert!(root.join(file).is_file(), "{file}");
    }
    tours(&root.join("usr/bin/vmtape"), elsewhere.path(), "usr/lib/vmtape/plugins")?;
    dpkg(&["--remove", "vmtape"])?;
    assert!(!root.join("usr/bin/vmtape").exists() && !root.join("usr/lib/vmtape").exists());
    Ok(())
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
    tours(&prefix.join("bin/vmtape"), elsewhere, "lib/vmtape/plugins")?;
    fs::write(prefix.join("bin/other"), "somebody else's")?;
    xtask(&["uninstall", "--prefix", place])?;
    let left: Vec<_> = fs::read_dir(prefix)?.collect::<Result<_, _>>()?;
    assert_eq!(
        left.iter().map(|entry| entry.file_name()).collect::<Vec<_>>(),
        ["bin"],
        "what is not ours stays"
    );
    Ok(())
}
