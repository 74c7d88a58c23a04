//! Puts vmtape under a prefix, where programs live, and takes exactly that away again.

use anyhow::{Context, Result, bail, ensure};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The program, and the plugins, which it finds at `../lib/vmtape/plugins`, seen from where it lies; where each goes.
pub const BINARIES: [(&str, &str); 4] = [
    ("vmtape", "bin/vmtape"),
    ("libvmtape_vmx.so", "lib/vmtape/plugins/libvmtape_vmx.so"),
    ("libvmtape_svm.so", "lib/vmtape/plugins/libvmtape_svm.so"),
    ("libvmtape_svm_npt.so", "lib/vmtape/plugins/libvmtape_svm_npt.so"),
];
/// Documents and the header that authors of backends need, and where they go.
const DOCUMENTS: [(&str, &str); 5] = [
    ("README.md", "share/doc/vmtape/README.md"),
    ("LICENSE", "share/doc/vmtape/LICENSE"),
    ("tools/vmtape/CHANGELOG.md", "share/doc/vmtape/CHANGELOG.md"),
    ("plugins/README.md", "share/doc/vmtape/plugins.md"),
    ("plugins/abi/include/vmtape_backend.h", "include/vmtape_backend.h"),
];
/// Shells, and where each looks for completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/vmtape"),
    ("zsh", "share/zsh/site-functions/_vmtape"),
    ("fish", "share/fish/vendor_completions.d/vmtape.fish"),
];
/// What was installed, one path a line.
const MANIFEST: &str = "share/vmtape/manifest";

/// What is built, and how.
#[derive(Clone, Debug)]
pub struct Build {
    pub root: PathBuf,
    pub profile: String,
    /// It is built already.
    pub is_done: bool,
}

impl Build {
    /// Builds the program and its plugins. Gives the folder that holds them.
    fn run(&self) -> Result<PathBuf> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        if !self.is_done {
            let mut command = Command::new(cargo);
            command.args(["build", "--locked", "--profile", &self.profile]).current_dir(&self.root);
            succeed(&mut command)?;
        }
        Ok(self.folder())
    }

    /// Where cargo leaves what it builds.
    pub fn folder(&self) -> PathBuf {
        // The one profile whose folder has another name.
        let folder = if self.profile == "dev" { "debug" } else { &self.profile };
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from);
        target.join(folder)
    }
}

/// Installs under a prefix: the program, its plugins, man pages, completions, the header for backends, documents.
pub fn install(build: &Build, prefix: &Path) -> Result<()> {
    let built = build.run()?;
    let mut to = Prefix { folder: prefix.to_owned(), files: Vec::new() };
    for (file, place) in BINARIES {
        to.copy(&built.join(file), place)?;
    }
    for (from, place) in DOCUMENTS {
        to.copy(&build.root.join(from), place)?;
    }
    let program = prefix.join("bin/vmtape");
    for (shell, place) in COMPLETIONS {
        let output = Command::new(&program).args(["completions", shell]).output()?;
        ensure!(output.status.success(), "{} completions {shell}: {}", program.display(), output.status);
        to.write(&output.stdout, place)?;
    }
    let pages = built.join("man");
    succeed(Command::new(&program).arg("man").arg(&pages))?;
    let mut names: Vec<_> = fs::read_dir(&pages)?.collect::<io::Result<_>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    for page in names {
        to.copy(&page.path(), &format!("share/man/man1/{}", page.file_name().to_string_lossy()))?;
    }
    to.files.push(MANIFEST.to_owned());
    let manifest = to.files.join("\n") + "\n";
    to.write(manifest.as_bytes(), MANIFEST)
}

/// Takes away what [`install`] put under a prefix, and folders that are empty then.
pub fn uninstall(prefix: &Path) -> Result<()> {
    let manifest = prefix.join(MANIFEST);
    let files = fs::read_to_string(&manifest)
        .with_context(|| format!("{}: nothing was installed there", manifest.display()))?;
    for file in files.lines() {
        let inside = Path::new(file).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        ensure!(inside, "{}: `{file}` leads out of the prefix", manifest.display());
        let path = prefix.join(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| path.display().to_string());
            }
            _ => {}
        }
        // A folder that holds something else stays.
        for folder in path.ancestors().skip(1).take_while(|folder| *folder != prefix) {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// A folder that is filled.
struct Prefix {
    folder: PathBuf,
    files: Vec<String>,
}

impl Prefix {
    fn place(&mut self, place: &str) -> Result<PathBuf> {
        let path = self.folder.join(place);
        let folder = path.parent().context("a file lies in a folder")?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        // A program that runs, or a library that is loaded, keeps its file: the new one is another.
        let _ = fs::remove_file(&path);
        if place != MANIFEST {
            self.files.push(place.to_owned());
        }
        Ok(path)
    }

    fn copy(&mut self, from: &Path, place: &str) -> Result<()> {
        let path = self.place(place)?;
        fs::copy(from, &path).with_context(|| format!("{} to {}", from.display(), path.display()))?;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], place: &str) -> Result<()> {
        let path = self.place(place)?;
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    }
}

/// Runs a command that has to succeed.
pub fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?}: {status}") }
}
