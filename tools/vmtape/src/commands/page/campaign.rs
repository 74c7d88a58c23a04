//! What campaigns came to: verdicts by fault and backend, and findings.

use crate::files;
use anyhow::{Context, Result};
use indicatif::HumanCount;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use vmtape_faults::{
    Verdict,
    campaign::{Campaign, Line, merge},
};

/// Results as they are read, and the plan that they may be held against.
#[derive(Default)]
pub struct Results {
    lines: Vec<Line>,
    plans: Vec<Campaign>,
}

/// Verdicts by fault and backend.
#[derive(Serialize)]
pub struct Verdicts {
    jobs: String,
    backends: Vec<String>,
    rows: Vec<Row>,
    counts: Vec<Count>,
    /// What makes the campaign worth nothing.
    wrong: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    fault: String,
    /// For each backend.
    cells: Vec<Vec<Count>>,
}

#[derive(Serialize)]
struct Count {
    verdict: &'static str,
    count: String,
}

/// A folder that `campaign report` has written.
#[derive(Serialize)]
pub struct Finding {
    name: String,
    title: String,
    text: Vec<String>,
    command: String,
}

impl Results {
    /// Takes lines of results; a file of other lines is an error.
    pub fn take(&mut self, text: &str) -> Result<()> {
        let mut lines = Vec::new();
        for (n, line) in text.lines().enumerate() {
            lines.push(serde_json::from_str(line).with_context(|| format!("line {} is no result", n + 1))?);
        }
        self.lines.extend(lines);
        Ok(())
    }

    /// Takes a campaign's plan, if it is one.
    pub fn plan(&mut self, text: &str) {
        let plan = toml::from_str::<Campaign>(text).ok();
        self.plans.extend(plan.filter(|plan| plan.check().is_ok()));
    }

    pub fn verdicts(self) -> Option<Verdicts> {
        let first = self.lines.first()?.campaign.clone();
        let plan = self.plans.into_iter().find(|plan| format!("{:016x}", plan.hash()) == first);
        let (lines, wrong) = match plan {
            Some(plan) => {
                let merged = merge(&plan, self.lines);
                (merged.lines, merged.wrong)
            }
            None => {
                let known = self.lines.into_iter().map(|line| ((line.campaign.clone(), line.job), line));
                let lines: BTreeMap<_, _> = known.collect();
                let text = "the campaign's plan is not here: whether results are missing is not known";
                (lines.into_values().collect(), vec![text.to_owned()])
            }
        };
        Some(Verdicts::of(&lines, wrong))
    }
}

/// Of each backend and fault, how many of each verdict.
type Counts<'a> = BTreeMap<String, BTreeMap<&'a str, BTreeMap<Verdict, u64>>>;

impl Verdicts {
    fn of(lines: &[Line], wrong: Vec<String>) -> Self {
        let mut by: Counts = BTreeMap::new();
        let mut all: BTreeMap<Verdict, u64> = BTreeMap::new();
        let mut backends: BTreeSet<&str> = BTreeSet::new();
        for signature in lines.iter().filter_map(|line| line.signature.as_ref()) {
            let fault =
                if signature.points.is_empty() { "none".to_owned() } else { signature.points.join(" + ") };
            let backend = signature.backend.as_str();
            backends.insert(backend);
            *by.entry(fault)
                .or_default()
                .entry(backend)
                .or_default()
                .entry(signature.verdict)
                .or_default() += 1;
            *all.entry(signature.verdict).or_default() += 1;
        }
        let row = |(fault, by): (String, BTreeMap<&str, BTreeMap<Verdict, u64>>)| Row {
            fault,
            cells: backends.iter().map(|backend| by.get(backend).map_or(Vec::new(), counts)).collect(),
        };
        Self {
            jobs: HumanCount(lines.len() as u64).to_string(),
            rows: by.into_iter().map(row).collect(),
            counts: counts(&all),
            backends: backends.into_iter().map(str::to_owned).collect(),
            wrong,
        }
    }
}

/// Counts with the verdicts' names: those of a guest that is lost in different phases together.
fn counts(by: &BTreeMap<Verdict, u64>) -> Vec<Count> {
    let mut counts: Vec<(&'static str, u64)> = Vec::new();
    for (verdict, count) in by {
        match counts.last_mut() {
            Some((name, sum)) if *name == verdict.name() => *sum += count,
            _ => counts.push((verdict.name(), *count)),
        }
    }
    let count = |(verdict, count)| Count { verdict, count: HumanCount(count).to_string() };
    counts.into_iter().map(count).collect()
}

impl Finding {
    /// The finding of a folder; `None`: it has none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let (readme, plan) = (folder.join("README.md"), folder.join("plan.toml"));
        if !readme.is_file() || !plan.is_file() {
            return Ok(None);
        }
        let text = files::text(&readme, files::BY_HAND)?;
        // Title, paragraphs, and one block with the command.
        let (mut title, mut command, mut paragraphs) = (String::new(), String::new(), Vec::new());
        for paragraph in text.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty()) {
            if let Some(line) = paragraph.strip_prefix("# ") {
                line.clone_into(&mut title);
            } else if let Some(block) = paragraph.strip_prefix("```sh\n") {
                block.trim_end_matches("```").trim_end().clone_into(&mut command);
            } else {
                paragraphs.push(paragraph.to_owned());
            }
        }
        Ok(Some(Self { name: folder.display().to_string(), title, text: paragraphs, command }))
    }
}
