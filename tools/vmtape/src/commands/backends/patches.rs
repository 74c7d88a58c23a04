//! `vmtape backends --patches`: every change in KVM that can be switched, with the profiles that have it.

use crate::machine_args::{create, default_host};
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::io::{self, Write};
use vmtape_abi::TableRow;
use vmtape_backends::LoadedPlugin;

/// One patch, or one behaviour of silicon that can be switched like one.
#[derive(Serialize, JsonSchema)]
pub struct Patch {
    id: u32,
    name: String,
    /// The backends that know it.
    backends: Vec<String>,
    /// What it changes.
    text: String,
    commit: String,
    subject: String,
    source: String,
    since: String,
    until: String,
    undone_by: String,
    /// The profiles in which it is on if the options do not say otherwise.
    on_in: Vec<String>,
}

/// The patches of all plugins, each once, in the order of their numbers.
pub fn collect(plugins: &[LoadedPlugin]) -> Result<Vec<Patch>> {
    let mut patches: Vec<Patch> = Vec::new();
    for plugin in plugins {
        let profiles = profiles(plugin)?;
        for row in &plugin.description.patches {
            match patches.iter_mut().find(|patch| patch.name == row.name) {
                Some(patch) => patch.backends.push(plugin.name().to_owned()),
                None => patches.push(patch(plugin, row, &profiles)),
            }
        }
    }
    patches.sort_by_key(|patch| patch.id);
    Ok(patches)
}

/// A profile and what its options resolve to.
type Profile = (String, Vec<(String, String)>);

/// What each profile of a plugin switches on, as a VM with it says.
fn profiles(plugin: &LoadedPlugin) -> Result<Vec<Profile>> {
    let (_, silicon) = default_host(plugin.description.vendor)?;
    let rows = plugin.description.profiles.iter().filter(|row| row.value != "alias");
    rows.map(|row| {
        let vm = create(plugin, silicon, &[("kvm".to_owned(), row.name.clone())])?;
        Ok((row.name.clone(), vm.resolved()))
    })
    .collect()
}

fn patch(plugin: &LoadedPlugin, row: &TableRow, profiles: &[Profile]) -> Patch {
    let on = |resolved: &[(String, String)]| resolved.iter().any(|(k, v)| *k == row.name && v == "on");
    Patch {
        id: row.id,
        name: row.name.clone(),
        backends: vec![plugin.name().to_owned()],
        text: row.text.clone(),
        commit: row.commit.clone(),
        subject: row.subject.clone(),
        source: row.source.clone(),
        since: row.since.clone(),
        until: row.until.clone(),
        undone_by: row.undone_by.clone(),
        on_in: profiles.iter().filter(|(_, resolved)| on(resolved)).map(|(name, _)| name.clone()).collect(),
    }
}

/// One paragraph per patch.
pub fn print(out: &mut impl Write, patches: &[Patch]) -> io::Result<()> {
    for patch in patches {
        writeln!(out, "{} ({})", patch.name, patch.backends.join(", "))?;
        if !patch.commit.is_empty() {
            writeln!(out, "    {} {}", patch.commit, patch.subject)?;
        }
        writeln!(out, "    {}", patch.text)?;
        writeln!(out, "    {}; {}", releases(patch), patch.source)?;
    }
    Ok(())
}

fn releases(patch: &Patch) -> String {
    match (patch.on_in.first(), patch.since.as_str(), patch.until.as_str()) {
        (None, ..) => "in no release".to_owned(),
        (Some(_), "", _) if patch.commit.is_empty() => "on in every profile".to_owned(),
        (Some(_), "", _) => format!("in no release, on in profile {}", patch.on_in.join(", ")),
        (_, since, "") => format!("on from {since} on"),
        (_, since, until) => format!("on from {since} on, before {until} (commit {})", patch.undone_by),
    }
}
