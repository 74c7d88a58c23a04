//! The backend: where it is found, and whether it knows what it is asked for.

use crate::{embedded::EMBEDDED, near, output::Refused};
use anyhow::{Result, bail};
use clap::{Args, ValueHint};
use std::{collections::BTreeSet, path::PathBuf, time::Duration};
use vmtape_abi::{Backend, Description, TableRow, VmConfig};
use vmtape_arch::host::Silicon;
use vmtape_backends::{Isolation, LoadedPlugin, Search};
use vmtape_replay::spec;

/// Where plugins come from.
#[derive(Clone, Debug, Args)]
pub struct PluginArgs {
    /// A backend library, or a folder of them, to look at first (also: VMTAPE_PLUGIN_PATH)
    #[arg(long = "plugin", value_name = "PATH", value_hint = ValueHint::AnyPath)]
    plugin: Vec<PathBuf>,

    /// Run the backend in a process of its own, which may take SECONDS for a call (30): its death ends the run, not the program
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "30", env = ISOLATE,
        hide_env = true, value_parser = clap::value_parser!(u64).range(1..))]
    isolate: Option<u64>,
}

/// What `--isolate` is for programs that this one starts.
pub const ISOLATE: &str = "VMTAPE_ISOLATE";

impl PluginArgs {
    pub fn search(&self) -> Search {
        let isolation = self.isolate.map(|seconds| Isolation {
            program: std::env::current_exe().unwrap_or_else(|_| "vmtape".into()),
            limit: Duration::from_secs(seconds),
        });
        Search::new(&self.plugin).or_embedded(EMBEDDED).isolated(isolation)
    }

    /// The seconds of `--isolate`.
    pub fn isolate(&self) -> Option<u64> {
        self.isolate
    }

    /// What the user gave.
    pub fn paths(&self) -> &[PathBuf] {
        &self.plugin
    }
}

/// Loads a backend. A name that is near to another one may have been meant for that.
pub fn load(search: &Search, name: &str) -> Result<LoadedPlugin> {
    search.load(name).map_err(|error| match &error {
        vmtape_backends::Error::NotFound { found, .. } => {
            let hint = near::hint(name, found.split(", "));
            anyhow::Error::new(error).context(format!("-b {name}{hint}"))
        }
        _ => error.into(),
    })
}

/// Refuses a release, patch or parameter that a backend does not know, and says which one may be meant.
fn known(plugin: &LoadedPlugin, options: &[(String, String)]) -> Result<()> {
    let refused = |reason| Err(Refused { backend: plugin.name().to_owned(), reason }.into());
    let description = &plugin.description;
    let releases = names(&description.profiles);
    let words = names(&description.parameters).chain(names(&description.patches));
    // A tape names every option of its machine.
    let all: BTreeSet<&str> = words.clone().collect();
    for (name, value) in options {
        let mut profiles = releases.clone().chain([LATEST]);
        if name == spec::PROFILE && releases.len() > 0 && !profiles.any(|release| release == value) {
            let hint = near::hint(value, releases.clone());
            let others = releases.filter(|release| *release != LATEST);
            let known = others.chain([LATEST]).collect::<Vec<_>>().join(", ");
            return refused(format!("no release `{value}`{hint}; there are {known}"));
        }
        let word = name.trim_start_matches(['+', '-']);
        if name != spec::PROFILE && !all.is_empty() && !all.contains(word) {
            let hint = near::hint(word, words.clone());
            if !hint.is_empty() {
                return refused(format!("no parameter or patch `{word}`{hint}"));
            }
        }
    }
    Ok(())
}

fn names(rows: &[TableRow]) -> impl ExactSizeIterator<Item = &str> + Clone {
    rows.iter().map(|row| row.name.as_str())
}

/// Refuses a backend that resolves options to some that its own tables do not have: it would refuse its own tapes.
pub(super) fn check_resolved(plugin: &LoadedPlugin, options: &[(String, String)]) -> Result<()> {
    let Description { parameters, patches, .. } = &plugin.description;
    let known: BTreeSet<&str> = names(parameters).chain(names(patches)).collect();
    match options.iter().find(|(name, _)| name != spec::PROFILE && !known.contains(name.as_str())) {
        None => Ok(()),
        Some((name, _)) => {
            bail!(
                "the backend {} broke: `resolved` gives the option `{name}`, which its tables do not have",
                plugin.name()
            )
        }
    }
}

/// The first option of a tape's machine that a backend does not know, in words.
pub fn unknown_option(plugin: &LoadedPlugin, options: &[(String, String)]) -> Option<String> {
    let description = &plugin.description;
    let known: BTreeSet<&str> = names(&description.parameters).chain(names(&description.patches)).collect();
    // Some backends do not say what they know.
    let is_known = |name: &str| known.is_empty() || known.contains(name);
    let releases = &description.profiles;
    let is_release = |value: &str| releases.is_empty() || releases.iter().any(|row| row.name == value);
    options.iter().find_map(|(name, value)| match name == spec::PROFILE {
        true => (!is_release(value)).then(|| format!("the release `{value}`")),
        false => (!is_known(name)).then(|| format!("the option `{name}`")),
    })
}

/// The newest release that a backend knows.
const LATEST: &str = "latest";

/// Creates a VM; a backend that refuses the silicon or an option is the command line's fault.
pub fn create(
    plugin: &LoadedPlugin,
    silicon: Silicon,
    options: &[(String, String)],
) -> Result<Box<dyn Backend>> {
    known(plugin, options)?;
    plugin
        .create(&VmConfig { silicon, options: options.to_vec() })
        .map_err(|reason| Refused { backend: plugin.name().to_owned(), reason }.into())
}
