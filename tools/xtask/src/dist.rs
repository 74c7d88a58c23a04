//! Packages: a tarball to unpack anywhere, and a .deb.

use crate::install::{self, Build, succeed};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const CONTROL: &str = "\
Package: vmtape
Version: {version}
Architecture: {architecture}
Maintainer: The vmtape authors <vmtape@localhost>
Section: devel
Priority: optional
Depends: libc6, libgcc-s1
Description: record, replay and break x86 virtualization, without hardware
 Runs a guest on a software CPU under models of VMX and SVM, tapes every exit, and says what would change for the guest on
 another backend, host or KVM.
";

/// Makes both and gives their paths. The .deb needs `dpkg-deb`.
pub fn dist(build: &Build) -> Result<Vec<PathBuf>> {
    let (version, machine) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let folder = build.root.join("target/dist");
    let name = format!("vmtape-{version}-{machine}");
    let tree = fresh(&folder.join(&name))?;
    install::install(build, &tree)?;
    let tarball = folder.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-czf"]).arg(&tarball);
    succeed(tar.arg("-C").arg(&folder).arg(&name))?;
    let mut made = vec![tarball];
    if Command::new("dpkg-deb").arg("--version").output().is_ok() {
        made.push(deb(build, &folder, version)?);
    }
    Ok(made)
}

fn deb(build: &Build, folder: &Path, version: &str) -> Result<PathBuf> {
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH };
    let root = fresh(&folder.join("deb"))?;
    install::install(&Build { is_done: true, ..build.clone() }, &root.join("usr"))?;
    fs::create_dir(root.join("DEBIAN"))?;
    let control = CONTROL.replace("{version}", version).replace("{architecture}", architecture);
    fs::write(root.join("DEBIAN/control"), control)?;
    let package = folder.join(format!("vmtape_{version}_{architecture}.deb"));
    succeed(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&root).arg(&package))?;
    Ok(package)
}

/// An empty folder.
fn fresh(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    Ok(folder.to_owned())
}
