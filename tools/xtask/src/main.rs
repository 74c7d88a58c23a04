//! Repository tasks: `cargo xtask` lists them. What `tidy` checks the tests check too.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use xtask::{
    dist::dist,
    install::{Build, install, uninstall},
    tidy,
};

const USAGE: &str = "\
usage: cargo xtask tidy                        check what no compiler checks
       cargo xtask install --prefix DIR        build, and install program, plugins, man pages, completions, header
       cargo xtask uninstall --prefix DIR      take exactly that away again
       cargo xtask dist                        a tarball, one of debug information, and a .deb in target/dist
Options of install and dist: --profile PROFILE (release), --no-build (it is built)";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((task, options)) = arguments.split_first() else { bail!("{USAGE}") };
    let mut build = Build { root: tidy::repository_root(), profile: "release".into(), is_done: false };
    let mut prefix = None;
    let mut left = options.iter();
    while let Some(option) = left.next() {
        match option.as_str() {
            "--prefix" => prefix = Some(PathBuf::from(left.next().context("--prefix needs a folder")?)),
            "--profile" => build.profile = left.next().context("--profile needs a name")?.clone(),
            "--no-build" => build.is_done = true,
            other => bail!("{other}: there is no such option\n{USAGE}"),
        }
    }
    match task.as_str() {
        "tidy" => {
            let findings = tidy::check(&build.root);
            findings.iter().for_each(|finding| println!("{finding}"));
            if findings.is_empty() { Ok(()) } else { bail!("{} findings", findings.len()) }
        }
        "install" => install(&build, &prefix.context("--prefix DIR says where to")?),
        "uninstall" => uninstall(&prefix.context("--prefix DIR says from where")?),
        "dist" => {
            dist(&build)?.iter().for_each(|made| println!("{}", made.display()));
            Ok(())
        }
        other => bail!("{other}: there is no such task\n{USAGE}"),
    }
}
