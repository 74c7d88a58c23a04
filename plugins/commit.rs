//! For build scripts: which commit is built, so that a program, its tapes and its plugins name it. Without git, or outside of
//! a checkout, none is known. Nothing but the crate that asks is built anew for it.

use std::{path::Path, process::Command};

/// Sets VMTAPE_VERSION (the crate's version, and the commit) and VMTAPE_BUILD (its name too) for the crate that is built. `sources`: the folders, below the checkout's, that go into it.
pub fn tell(sources: &[&str]) {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let root = Path::new(&manifest).join("../..");
    let git = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("git").arg("-C").arg(&root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    for folder in sources {
        println!("cargo::rerun-if-changed={}", root.join(folder).display());
    }
    // Sources in somebody else's checkout are none of its commits.
    let own = git(&["rev-parse", "--show-prefix"]).is_some_and(|prefix| prefix.is_empty());
    let commit = own.then(|| git(&["rev-parse", "--short=12", "HEAD"])).flatten();
    let text = match commit {
        None => "no commit known".to_owned(),
        Some(commit) => {
            for file in ["HEAD", "logs/HEAD"] {
                if let Some(path) = git(&["rev-parse", "--git-path", file]) {
                    println!("cargo::rerun-if-changed={}", root.join(path).display());
                }
            }
            let changed = git(&[&["status", "--porcelain", "--"], sources].concat());
            let modified = if changed.is_none_or(|files| !files.is_empty()) { ", modified" } else { "" };
            format!("commit {commit}{modified}")
        }
    };
    let of_crate = |name: &str| std::env::var(name).unwrap_or_default();
    let version = format!("{} ({text})", of_crate("CARGO_PKG_VERSION"));
    println!("cargo::rustc-env=VMTAPE_VERSION={version}");
    println!("cargo::rustc-env=VMTAPE_BUILD={} {version}", of_crate("CARGO_PKG_NAME"));
}
