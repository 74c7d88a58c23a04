//! `vmtape backends`: what plugins there are and what they know.

mod patches;

use crate::{
    machine_args::{PluginArgs, create, default_host, parse_kvm},
    output::{ExitCode, print_json, printable},
};
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::io::{self, Write};
use vmtape_abi::TableRow;
use vmtape_backends::LoadedPlugin;

/// List the backend plugins found, their capabilities, profiles, parameters and patches
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::BACKENDS)]
pub struct Args {
    #[command(flatten)]
    plugins: PluginArgs,
    /// Only this backend, with all its tables
    name: Option<String>,
    /// List the changes in KVM that can be switched: commit, subject, and the releases that have each
    #[arg(long)]
    patches: bool,
    /// Show capabilities and parameters as this KVM has them: RELEASE, then +PATCH, -PATCH and PARAMETER=VALUE
    #[arg(long, value_name = "PROFILE", allow_hyphen_values = true, conflicts_with = "patches")]
    kvm: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, JsonSchema)]
struct Row {
    id: u32,
    name: String,
    text: String,
    source: String,
    value: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    commit: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    subject: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    since: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    until: String,
}

#[derive(Serialize, JsonSchema)]
struct Backend<'a> {
    name: &'a str,
    summary: &'a str,
    vendor: String,
    build: &'a str,
    path: String,
    profiles: Vec<Row>,
    capabilities: Vec<Row>,
    parameters: Vec<Row>,
    patches: Vec<Row>,
    fault_points: Vec<Row>,
    rules: Vec<Row>,
}

#[derive(Serialize, JsonSchema)]
struct Patches {
    patches: Vec<patches::Patch>,
}

#[derive(Serialize, JsonSchema)]
struct Report<'a> {
    backends: Vec<Backend<'a>>,
    errors: Vec<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let search = args.plugins.search();
    let (mut plugins, mut errors) = (Vec::new(), Vec::new());
    match &args.name {
        Some(name) => plugins.push(search.load(name)?),
        None => {
            for found in search.all() {
                match found {
                    Ok(plugin) => plugins.push(plugin),
                    Err(error) => errors.push(error.to_string()),
                }
            }
        }
    }
    if args.patches {
        print_patches(&plugins, args.json)?;
    } else if args.json {
        let backends = plugins.iter().map(|plugin| backend(plugin, args)).collect::<Result<_>>()?;
        print_json(&Report { backends, errors: errors.clone() })?;
    } else {
        let mut out = printable();
        for plugin in &plugins {
            print_backend(&mut out, plugin, args)?;
        }
        if plugins.is_empty() {
            writeln!(out, "no backend found; looked in: {}", search.places().join(", "))?;
        }
    }
    if args.patches || !args.json {
        for error in &errors {
            writeln!(io::stderr(), "vmtape: {error}")?;
        }
    }
    Ok(if plugins.is_empty() || !errors.is_empty() { ExitCode::COULD_NOT_TEST } else { ExitCode::SAME })
}

fn print_patches(plugins: &[LoadedPlugin], json: bool) -> Result<()> {
    let patches = patches::collect(plugins)?;
    if json {
        print_json(&Patches { patches })?;
    } else {
        patches::print(&mut printable(), &patches)?;
    }
    Ok(())
}

fn backend<'a>(plugin: &'a LoadedPlugin, args: &Args) -> Result<Backend<'a>> {
    let d = &plugin.description;
    let seen = Seen::of(plugin, args.kvm.as_deref())?;
    Ok(Backend {
        name: &d.name,
        summary: &d.summary,
        vendor: d.vendor.to_string(),
        build: &plugin.build,
        path: plugin.origin.to_string(),
        profiles: rows(&d.profiles),
        capabilities: rows(&seen.capabilities),
        parameters: rows(&seen.parameters),
        patches: rows(&d.patches),
        fault_points: rows(&d.fault_points),
        rules: rows(&d.rules),
    })
}

fn plugin_host(plugin: &LoadedPlugin) -> String {
    default_host(plugin.description.vendor).map_or_else(|_| "no host".to_owned(), |(name, _)| name)
}

/// What a VM on the default host says of itself.
struct Seen {
    capabilities: Vec<TableRow>,
    parameters: Vec<TableRow>,
}

impl Seen {
    /// Capabilities with the answers of KVM_CHECK_EXTENSION; parameters as they are for these options, otherwise their defaults.
    fn of(plugin: &LoadedPlugin, kvm: Option<&str>) -> Result<Self> {
        let d = &plugin.description;
        let mut seen = Self { capabilities: d.capabilities.clone(), parameters: d.parameters.clone() };
        let options = kvm.map(parse_kvm).transpose()?.unwrap_or_default();
        let vm = default_host(d.vendor).and_then(|(_, silicon)| create(plugin, silicon, &options));
        let vm = match vm {
            Err(error) if kvm.is_some() => return Err(error),
            // A backend for silicon that no named host has.
            Err(_) => return Ok(seen),
            Ok(vm) => vm,
        };
        for row in &mut seen.capabilities {
            row.value = vm.check_extension(row.id).to_string();
        }
        if kvm.is_some() {
            let resolved = vm.resolved();
            for row in &mut seen.parameters {
                if let Some((_, value)) = resolved.iter().find(|(name, _)| *name == row.name) {
                    row.value.clone_from(value);
                }
            }
        }
        Ok(seen)
    }
}

fn rows(rows: &[TableRow]) -> Vec<Row> {
    rows.iter()
        .map(|row| Row {
            id: row.id,
            name: row.name.clone(),
            text: row.text.clone(),
            source: row.source.clone(),
            value: row.value.clone(),
            commit: row.commit.clone(),
            subject: row.subject.clone(),
            since: row.since.clone(),
            until: row.until.clone(),
        })
        .collect()
}

fn print_backend(out: &mut impl Write, plugin: &LoadedPlugin, args: &Args) -> Result<()> {
    let d = &plugin.description;
    let seen = Seen::of(plugin, args.kvm.as_deref())?;
    writeln!(out, "{}: {}", d.name, d.summary)?;
    writeln!(out, "  {} host, {}, {}", d.vendor, plugin.build, plugin.origin)?;
    let profiles: Vec<_> = d.profiles.iter().map(|row| row.name.as_str()).collect();
    writeln!(out, "  profiles: {}", profiles.join(", "))?;
    print_rows(out, &format!("capabilities on {}", plugin_host(plugin)), &seen.capabilities)?;
    print_rows(out, "parameters", &seen.parameters)?;
    if args.name.is_some() {
        print_rows(out, "patches", &d.patches)?;
        print_points(out, &d.fault_points)?;
        print_rows(out, "rules", &d.rules)?;
    }
    Ok(writeln!(out)?)
}

/// Fault points, each with what its two words are and what an answer means.
fn print_points(out: &mut impl Write, rows: &[TableRow]) -> io::Result<()> {
    if !rows.is_empty() {
        writeln!(out, "  fault points (record --fault NAME,n=N,value=ANSWER):")?;
    }
    for row in rows {
        writeln!(out, "    {:>5}  {}: {} ({})", row.id, row.name, row.text, row.source)?;
        writeln!(out, "           {}", row.value)?;
    }
    Ok(())
}

fn print_rows(out: &mut impl Write, title: &str, rows: &[TableRow]) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "  {title}:")?;
    let width = rows.iter().map(|row| row.name.len() + row.value.len()).max().unwrap_or(0) + 3;
    for row in rows {
        let value = if row.value.is_empty() { String::new() } else { format!(" = {}", row.value) };
        let name = format!("{}{value}", row.name);
        writeln!(out, "    {:>5}  {name:width$}  {} ({})", row.id, row.text, row.source)?;
    }
    Ok(())
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] =
    &[crate::output::schema::<Report<'static>>, crate::output::schema::<Patches>];
