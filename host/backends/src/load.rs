//! Loading one library.

// UNSAFETY: dlopen runs a foreign library's code; this is where that is decided.
#![allow(unsafe_code)]

use crate::{
    embedded::Embedded,
    isolated::{Isolation, Which},
};
use libloading::Library;
use std::{
    cell::RefCell,
    fmt,
    path::{Path, PathBuf},
};
use thiserror::Error;
use vmtape_abi::{
    Backend, Description, VmConfig,
    import::{Backends, HandshakeError},
    remote::RemotePlugin,
    table::{ABI_VERSION, ENTRY_SYMBOL, EntryFn},
};

/// Why there is no such backend, or no VM of it. Every message names the file.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{}: cannot be read", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}: is not a library that can be loaded here: {reason}", path.display())]
    NotALibrary { path: PathBuf, reason: String },
    #[error(
        "{}: is not a vmtape backend: it has no symbol {ENTRY_SYMBOL}, the entry for ABI version {ABI_VERSION}",
        path.display()
    )]
    MissingSymbol { path: PathBuf },
    #[error(
        "{}: speaks version {found} of the backend ABI only, this program speaks version {ABI_VERSION}",
        path.display()
    )]
    OtherVersion { path: PathBuf, found: u32 },
    #[error("{origin}: {source}")]
    Handshake { origin: Origin, source: HandshakeError },
    /// In a process of its own; the sentence is what was said there.
    #[error("{origin}: {reason}")]
    Isolated { origin: Origin, reason: String },
    #[error("no backend named `{name}`; found: {found}; looked in: {searched}")]
    NotFound { name: String, found: String, searched: String },
}

/// Where a plugin comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File(PathBuf),
    /// The program has it.
    Embedded,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Embedded => f.write_str("the program itself"),
        }
    }
}

/// A plugin, ready to create VMs.
#[derive(Debug)]
pub struct LoadedPlugin {
    pub origin: Origin,
    /// Name and version of the build, as the plugin gives them.
    pub build: String,
    pub description: Description,
    place: Place,
}

/// Where its code runs.
#[derive(Debug)]
enum Place {
    Here(Backends),
    /// A process for each VM. The one that said what the plugin is takes the first.
    Isolated {
        isolation: Isolation,
        which: Which,
        met: RefCell<Option<Box<RemotePlugin>>>,
    },
}

impl LoadedPlugin {
    /// Loads a library and asks what it is.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let path =
            path.canonicalize().map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
        let entry = entry(&path)?;
        let origin = Origin::File(path.clone());
        // SAFETY: the library has the entry by its name, which carries the ABI version, and stays loaded.
        let backends = unsafe { Backends::handshake(entry) }.map_err(|source| match source {
            HandshakeError::OtherVersion { found } => Error::OtherVersion { path, found },
            source => Error::Handshake { origin: origin.clone(), source },
        })?;
        Self::of(backends, origin)
    }

    /// One that is linked in.
    pub(crate) fn embedded(embedded: &Embedded) -> Result<Self, Error> {
        Self::of(embedded.backends(), Origin::Embedded)
    }

    /// Asks a backend what it is.
    fn of(backends: Backends, origin: Origin) -> Result<Self, Error> {
        let description = match backends.describe() {
            Ok(description) => description,
            Err(source) => return Err(Error::Handshake { origin, source }),
        };
        tracing::debug!(%origin, name = description.name, "loaded a backend");
        Ok(Self { build: backends.build(), description, place: Place::Here(backends), origin })
    }

    /// One whose VMs run in processes of their own.
    pub(crate) fn isolated(origin: Origin, which: Which, isolation: &Isolation) -> Result<Self, Error> {
        let met = match isolation.start(&which) {
            Ok(met) => met,
            Err(reason) => {
                // What the process said of the file names it.
                let prefix = format!("{origin}: ");
                let reason = reason.strip_prefix(&prefix).unwrap_or(&reason).to_owned();
                return Err(Error::Isolated { origin, reason });
            }
        };
        let (build, description) = (met.build.clone(), met.description.clone());
        let place =
            Place::Isolated { isolation: isolation.clone(), which, met: RefCell::new(Some(Box::new(met))) };
        Ok(Self { origin, build, description, place })
    }

    /// The name by which options call it.
    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// Creates a VM; the error is the backend's own sentence about what does not fit.
    pub fn create(&self, config: &VmConfig) -> Result<Box<dyn Backend>, String> {
        match &self.place {
            Place::Here(backends) => backends.create(config),
            Place::Isolated { isolation, which, met } => {
                let plugin = match met.take() {
                    Some(met) => *met,
                    None => isolation.start(which)?,
                };
                Ok(Box::new(plugin.create(config)?))
            }
        }
    }
}

fn entry(path: &Path) -> Result<EntryFn, Error> {
    // SAFETY: a plugin's initializers are trusted as its code is: the user named it or installed it.
    let library = unsafe { Library::new(path) }
        .map_err(|error| Error::NotALibrary { path: path.to_owned(), reason: loader_text(&error, path) })?;
    // Never unloaded: tables, threads and logs of a plugin may outlive every VM.
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: the symbol's name fixes its type.
    if let Ok(entry) = unsafe { library.get::<EntryFn>(ENTRY_SYMBOL) } {
        return Ok(*entry);
    }
    let others = (ABI_VERSION + 1..=ABI_VERSION + 16).find(|version| {
        // SAFETY: only its presence is looked at.
        unsafe { library.get::<EntryFn>(format!("vmtape_backend_v{version}")) }.is_ok()
    });
    Err(match others {
        Some(found) => Error::OtherVersion { path: path.to_owned(), found },
        None => Error::MissingSymbol { path: path.to_owned() },
    })
}

/// The dynamic loader's sentence, without the path that the message has already.
fn loader_text(error: &libloading::Error, path: &Path) -> String {
    let text = std::error::Error::source(error).map_or_else(|| error.to_string(), |e| e.to_string());
    let prefix = format!("{}: ", path.display());
    text.replace(&prefix, "")
}
