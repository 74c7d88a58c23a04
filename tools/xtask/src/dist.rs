//! Packages: a tarball to unpack anywhere, another of debug information to unpack over it, and a .deb.

use crate::install::{self, Build, succeed};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Makes them and gives their paths. The .deb needs `cargo-deb` or `dpkg-deb`.
pub fn dist(build: &Build) -> Result<Vec<PathBuf>> {
    let (version, machine) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let folder = build.root.join("target/dist");
    let name = format!("vmtape-{version}-{machine}");
    let tree = fresh(&folder.join(&name))?;
    install::install(build, &tree)?;
    let tarball = packed(&folder, &name, &format!("{name}.tar.gz"))?;
    let debug = debug_information(&build.folder(), &folder, &name)?;
    Ok([Some(tarball), debug, deb(build, &folder, version)?].into_iter().flatten().collect())
}

/// A tarball of a tree, the same whoever makes it.
fn packed(folder: &Path, name: &str, tarball: &str) -> Result<PathBuf> {
    let tarball = folder.join(tarball);
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-czf"]).arg(&tarball);
    succeed(tar.arg("-C").arg(folder).arg(name))?;
    Ok(tarball)
}

/// What the profile split off, each beside what it belongs to, where debuggers look for it. None where it splits nothing off.
fn debug_information(built: &Path, folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    let parts =
        install::BINARIES.map(|(file, place)| (built.join(format!("{file}.dwp")), format!("{place}.dwp")));
    if !parts.iter().any(|(from, _)| from.exists()) {
        return Ok(None);
    }
    let tree = fresh(&folder.join("debug"))?.join(name);
    for (from, place) in parts {
        let to = tree.join(place);
        fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
        fs::copy(&from, &to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    }
    let tarball = packed(&folder.join("debug"), name, &format!("../{name}-debug.tar.gz"))?;
    Ok(Some(fs::canonicalize(tarball)?))
}

/// The words of the package, as cargo-deb reads them in the program's manifest.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Words {
    maintainer: String,
    section: String,
    priority: String,
    depends: String,
    extended_description: String,
}

impl Words {
    fn read(manifest: &Path) -> Result<(Self, String)> {
        let text = fs::read_to_string(manifest).with_context(|| manifest.display().to_string())?;
        let package = text.parse::<toml::Table>()?["package"].clone();
        let words =
            package.get("metadata").and_then(|all| all.get("deb")).context("metadata of the package")?;
        let summary = package["description"].as_str().context("a description")?.to_owned();
        Ok((words.clone().try_into()?, summary))
    }

    fn control(&self, version: &str, architecture: &str, summary: &str) -> String {
        let Self { maintainer, section, priority, depends, extended_description } = self;
        let description = extended_description.trim().replace('\n', "\n ");
        format!(
            "Package: vmtape\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: {maintainer}\n\
             Section: {section}\nPriority: {priority}\nDepends: {depends}\nDescription: {summary}\n {description}\n"
        )
    }
}

/// By cargo-deb where it is installed, else by dpkg-deb.
fn deb(build: &Build, folder: &Path, version: &str) -> Result<Option<PathBuf>> {
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH };
    let root = fresh(&folder.join("deb"))?;
    install::install(&Build { is_done: true, ..build.clone() }, &root.join("usr"))?;
    let package = folder.join(format!("vmtape_{version}_{architecture}.deb"));
    let manifest = build.root.join("tools/vmtape/Cargo.toml");
    let there = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.is_ok_and(|output| output.status.success())
    };
    if there("cargo", &["deb", "--version"]) {
        let mut command = Command::new("cargo");
        command.args([
            "deb",
            "--no-build",
            "--no-strip",
            "--deb-version",
            version,
            "--profile",
            &build.profile,
        ]);
        command.arg("--manifest-path").arg(&manifest).arg("--output").arg(&package);
        succeed(command.current_dir(&build.root))?;
    } else if there("dpkg-deb", &["--version"]) {
        let (words, summary) = Words::read(&manifest)?;
        fs::create_dir(root.join("DEBIAN"))?;
        fs::write(root.join("DEBIAN/control"), words.control(version, architecture, &summary))?;
        succeed(
            Command::new("dpkg-deb")
                .args(["-Zgzip", "--root-owner-group", "--build"])
                .arg(&root)
                .arg(&package),
        )?;
    } else {
        return Ok(None);
    }
    Ok(Some(package))
}

/// An empty folder.
fn fresh(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    Ok(folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_information_unpacks_beside_what_it_belongs_to() -> Result<()> {
        let [built, folder] = [tempfile::tempdir()?, tempfile::tempdir()?];
        assert_eq!(debug_information(built.path(), folder.path(), "vmtape-1")?, None);
        for (file, _) in install::BINARIES {
            fs::write(built.path().join(format!("{file}.dwp")), file)?;
        }
        let tarball = debug_information(built.path(), folder.path(), "vmtape-1")?.context("a tarball")?;
        let unpacked = tempfile::tempdir()?;
        succeed(Command::new("tar").arg("-xzf").arg(tarball).arg("-C").arg(unpacked.path()))?;
        for (file, place) in install::BINARIES {
            let beside = unpacked.path().join("vmtape-1").join(format!("{place}.dwp"));
            assert_eq!(fs::read_to_string(beside)?, file);
        }
        Ok(())
    }
}
