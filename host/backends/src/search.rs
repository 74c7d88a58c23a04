//! Where plugins are looked for.

use crate::{
    embedded::Embedded,
    isolated::{Isolation, Which},
    load::{Error, LoadedPlugin, Origin},
};
use etcetera::BaseStrategy;
use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
};

/// Directories (or single libraries) given by the user, separated as in PATH.
const PATH_VARIABLE: &str = "VMTAPE_PLUGIN_PATH";
/// Where a distribution's package puts plugins.
const SYSTEM_FOLDER: &str = "/usr/lib/vmtape/plugins";

/// An ordered list of places. Earlier ones win.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Libraries that the user named: one that does not load is an error, never skipped.
    named: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    /// What the program has itself, for names that no file has.
    embedded: Vec<Embedded>,
    /// Backends run in processes of their own.
    isolation: Option<Isolation>,
}

impl Search {
    /// Named libraries or folders first, then `VMTAPE_PLUGIN_PATH`, beside the program, the user's data folder, and the
    /// system's.
    pub fn new(named: &[PathBuf]) -> Self {
        let mut search = Self::default();
        let listed = env::var_os(PATH_VARIABLE);
        let listed = listed.iter().flat_map(env::split_paths).filter(|path| !path.as_os_str().is_empty());
        for path in named.iter().cloned().chain(listed) {
            if path.is_dir() { &mut search.folders } else { &mut search.named }.push(path);
        }
        if let Some(folder) = env::current_exe().ok().as_deref().and_then(Path::parent) {
            search.folders.push(folder.to_owned());
            search.folders.push(folder.join("../lib/vmtape/plugins"));
        }
        if let Ok(base) = etcetera::choose_base_strategy() {
            search.folders.push(base.data_dir().join("vmtape/plugins"));
        }
        search.folders.push(SYSTEM_FOLDER.into());
        search
    }

    /// After all places, what is linked into the program.
    #[must_use]
    pub fn or_embedded(mut self, embedded: &[Embedded]) -> Self {
        self.embedded.extend(embedded);
        self
    }

    /// Each VM's backend runs in a process of its own.
    #[must_use]
    pub fn isolated(mut self, isolation: Option<Isolation>) -> Self {
        self.isolation = isolation;
        self
    }

    /// Loads one library.
    pub fn open(&self, path: &Path) -> Result<LoadedPlugin, Error> {
        let Some(isolation) = &self.isolation else { return LoadedPlugin::load(path) };
        let real = path.canonicalize();
        let path = real.map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
        LoadedPlugin::isolated(Origin::File(path.clone()), Which::File(path), isolation)
    }

    fn open_embedded(&self, number: usize) -> Result<LoadedPlugin, Error> {
        match &self.isolation {
            None => LoadedPlugin::embedded(&self.embedded[number]),
            Some(isolation) => LoadedPlugin::isolated(Origin::Embedded, Which::Embedded(number), isolation),
        }
    }

    /// The libraries that may be plugins, in order, each once.
    pub fn candidates(&self) -> Vec<PathBuf> {
        let mut found = self.named.clone();
        for folder in &self.folders {
            let Ok(entries) = folder.read_dir() else { continue };
            let mut libraries: Vec<_> =
                entries.flatten().map(|entry| entry.path()).filter(|path| is_plugin_name(path)).collect();
            libraries.sort();
            found.extend(libraries);
        }
        let mut seen = Vec::new();
        found.retain(|path| {
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            let new = !seen.contains(&real);
            seen.push(real);
            new
        });
        found
    }

    /// Loads every candidate, and what the program has under names that none of them has.
    pub fn all(&self) -> Vec<Result<LoadedPlugin, Error>> {
        let mut all: Vec<_> = self.candidates().iter().map(|path| self.open(path)).collect();
        for plugin in (0..self.embedded.len()).map(|number| self.open_embedded(number)) {
            let is_there = |name: &str| all.iter().flatten().any(|found| found.name() == name);
            if !plugin.as_ref().is_ok_and(|plugin| is_there(plugin.name())) {
                all.push(plugin);
            }
        }
        all
    }

    /// Loads the backend with this name: the file named after it if there is one, else the first that describes itself so, else
    /// the program's own.
    pub fn load(&self, name: &str) -> Result<LoadedPlugin, Error> {
        let file = format!("libvmtape_{}.so", name.replace('-', "_"));
        let (expected, others): (Vec<_>, Vec<_>) = self
            .candidates()
            .into_iter()
            .partition(|path| self.named.contains(path) || path.file_name() == Some(OsStr::new(&file)));
        let mut found = Vec::new();
        for path in expected {
            let plugin = self.open(&path)?;
            if plugin.name() == name {
                return Ok(plugin);
            }
            found.push(plugin.name().to_owned());
        }
        for path in others {
            match self.open(&path) {
                Ok(plugin) if plugin.name() == name => return Ok(plugin),
                Ok(plugin) => found.push(plugin.name().to_owned()),
                Err(error) => tracing::warn!("skipped: {error}"),
            }
        }
        for number in 0..self.embedded.len() {
            let plugin = self.open_embedded(number)?;
            if plugin.name() == name {
                return Ok(plugin);
            }
            found.push(plugin.name().to_owned());
        }
        found.sort();
        found.dedup();
        Err(self.not_found(name, found))
    }

    /// The places in order, for messages.
    pub fn places(&self) -> Vec<String> {
        let files = self.named.iter().chain(&self.folders).map(|path| path.display().to_string());
        let embedded = (!self.embedded.is_empty()).then(|| Origin::Embedded.to_string());
        files.chain(embedded).collect()
    }

    fn not_found(&self, name: &str, found: Vec<String>) -> Error {
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        Error::NotFound { name: name.to_owned(), found, searched: self.places().join(", ") }
    }
}

fn is_plugin_name(path: &Path) -> bool {
    path.file_name()
        .and_then(OsStr::to_str)
        .is_some_and(|name| name.starts_with("libvmtape_") && name.ends_with(".so"))
}
