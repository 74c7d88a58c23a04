//! The rows: those built in, and those of a user's file.

use super::expect::Line;
use crate::files;
use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path};
use toml::Spanned;

/// The files built in, in the order in which they are shown.
const BUILT_IN: &[(&str, &str)] = &[
    ("smaller_maxphyaddr.toml", include_str!("../../scenarios/smaller_maxphyaddr.toml")),
    ("guest_width.toml", include_str!("../../scenarios/guest_width.toml")),
    ("ept_5level.toml", include_str!("../../scenarios/ept_5level.toml")),
    ("cpuid_after_run.toml", include_str!("../../scenarios/cpuid_after_run.toml")),
    ("nested_pat.toml", include_str!("../../scenarios/nested_pat.toml")),
    ("nested_svm.toml", include_str!("../../scenarios/nested_svm.toml")),
    ("smm.toml", include_str!("../../scenarios/smm.toml")),
    ("fleet.toml", include_str!("../../scenarios/fleet.toml")),
    ("local_apic.toml", include_str!("../../scenarios/local_apic.toml")),
    ("event_vectoring.toml", include_str!("../../scenarios/event_vectoring.toml")),
    ("dirty_logging.toml", include_str!("../../scenarios/dirty_logging.toml")),
    ("crash.toml", include_str!("../../scenarios/crash.toml")),
    ("faults.toml", include_str!("../../scenarios/faults.toml")),
    ("migration.toml", include_str!("../../scenarios/migration.toml")),
];

/// What holds for every backend.
const KIT: (&str, &str) = ("kit.toml", include_str!("../../scenarios/kit.toml"));

/// A file of rows about one subject.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// One word, for filters.
    history: String,
    #[serde(rename = "scenario", default)]
    scenarios: Vec<Spanned<Entry>>,
}

/// One row as it stands in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    text: String,
    source: String,
    #[serde(default)]
    setup: Vec<String>,
    command: String,
    /// Files that the commands read, by name; `{dir}` in a command is their folder.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// Minutes rather than moments: run on request.
    #[serde(default)]
    slow: bool,
    /// KVM_CAP numbers that a backend claims.
    #[serde(default)]
    needs: Vec<u32>,
    /// What the command must show, by what follows `-b`; a row without a backend has one entry, named `any`.
    expect: toml::Table,
}

/// A row: one subject, one command, several backends.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub history: String,
    pub name: String,
    pub text: String,
    pub source: String,
    pub setup: Vec<String>,
    pub command: String,
    pub files: BTreeMap<String, String>,
    pub slow: bool,
    pub needs: Vec<u32>,
    pub cases: Vec<Case>,
}

/// A row on one backend.
#[derive(Clone, Debug)]
pub struct Case {
    /// What stands for `{backend}`: `svm-npt`, `vmx,allow_smaller_maxphyaddr=on`, `vmx --kvm v5.9`; `any` for none.
    pub on: String,
    pub lines: Vec<Line>,
}

/// A case whose command names no backend.
pub const ANY: &str = "any";

impl Case {
    /// The backend's name, without options.
    pub fn backend(&self) -> &str {
        self.on.split([',', ' ']).next().unwrap_or_default()
    }
}

/// Everything built in.
pub fn built_in() -> Result<Vec<Scenario>> {
    let mut all = Vec::new();
    for (name, text) in BUILT_IN {
        all.extend(parse(text).with_context(|| name.to_owned())?);
    }
    unique(&all)?;
    Ok(all)
}

/// What holds for every backend, for one that is looked at: its name and options, as `-b` takes them.
pub fn kit(backend: &str) -> Result<Vec<Scenario>> {
    let mut rows = parse(KIT.1).context(KIT.0)?;
    for case in rows.iter_mut().flat_map(|row| &mut row.cases) {
        backend.clone_into(&mut case.on);
    }
    unique(&rows)?;
    Ok(rows)
}

/// The rows of a user's file.
pub fn read(path: &Path) -> Result<Vec<Scenario>> {
    let text = files::text(path, files::BY_HAND)?;
    let rows = parse(&text).with_context(|| path.display().to_string())?;
    unique(&rows)?;
    Ok(rows)
}

fn parse(text: &str) -> Result<Vec<Scenario>> {
    let file: File = toml::from_str(text)?;
    let row = |entry: Spanned<Entry>| {
        let line = text[..entry.span().start].lines().count() + 1;
        scenario(&file.history, entry.into_inner()).with_context(|| format!("line {line}"))
    };
    file.scenarios.into_iter().map(row).collect()
}

fn scenario(history: &str, entry: Entry) -> Result<Scenario> {
    let name = entry.name;
    if entry.source.is_empty() || entry.expect.is_empty() {
        bail!("scenario {name}: a source and an expectation are needed");
    }
    let names_backend = entry.command.contains("{backend}");
    let case = |(on, value): (String, toml::Value)| {
        if names_backend == (on == ANY) {
            bail!("scenario {name}, {on}: {{backend}} and a backend go together, as `any` and none");
        }
        let lines: Vec<String> =
            value.try_into().map_err(|_| anyhow!("scenario {name}, {on}: a list of lines is needed"))?;
        let parse =
            |line: &String| Line::parse(line).map_err(|cause| anyhow!("scenario {name}, {on}: {cause}"));
        Ok(Case { lines: lines.iter().map(parse).collect::<Result<_>>()?, on })
    };
    Ok(Scenario {
        cases: entry.expect.into_iter().map(case).collect::<Result<_>>()?,
        history: history.to_owned(),
        name,
        text: entry.text,
        source: entry.source,
        setup: entry.setup,
        command: entry.command,
        files: entry.files,
        slow: entry.slow,
        needs: entry.needs,
    })
}

fn unique(rows: &[Scenario]) -> Result<()> {
    for (n, row) in rows.iter().enumerate() {
        if rows[..n].iter().any(|other| other.name == row.name) {
            bail!("two scenarios are named {}", row.name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_rows_are_well_formed() {
        assert!(!built_in().unwrap().is_empty());
        let kit = kit("mine").unwrap();
        assert!(
            !kit.is_empty() && kit.iter().all(|row| row.cases.len() == 1 && row.name.starts_with("kit-"))
        );
    }

    #[test]
    fn rows_that_say_nothing_are_refused() {
        let row = |rest: &str| {
            format!("history = 'x'\n[[scenario]]\nname = 'a'\ntext = 't'\ncommand = 'backends'\n{rest}")
        };
        for (rest, mentions) in [
            ("source = ''\nexpect.any = ['status: 0']", "source"),
            ("source = 's'\nexpect.any = ['nonsense']", "nonsense"),
            ("source = 's'\nexpect.any = 'status: 0'", "list"),
            ("source = 's'\nexpected.any = []", "line 7"),
            ("source = 's'\nexpect.vmx = ['status: 0']", "line 2: scenario a, vmx: {backend}"),
        ] {
            let error = format!("{:#}", parse(&row(rest)).unwrap_err());
            assert!(error.contains(mentions), "{rest}: {error}");
        }
    }
}
