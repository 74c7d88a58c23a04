//! The results of all shards together.

use super::{run::is_result, whole};
use crate::{
    files,
    output::{ExitCode, print_json, printable},
};
use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::Path,
};
use vmtape_faults::{
    Verdict,
    campaign::{Campaign, Line, Merged, merge},
};

#[derive(Serialize, JsonSchema)]
struct Report<'a> {
    jobs: u64,
    equal_duplicates: u64,
    verdicts: BTreeMap<Verdict, u64>,
    /// By signature, with how many jobs and the first of them.
    findings: Vec<Finding>,
    wrong: &'a [String],
}

#[derive(Serialize, JsonSchema)]
struct Finding {
    signature: String,
    jobs: usize,
    first: u64,
}

/// Results of one shard are no larger.
const LARGEST: u64 = 1 << 30;

/// Reads all results in a folder and brings them together.
pub fn read(campaign: &Campaign, folder: &Path) -> Result<Merged> {
    let named = || folder.display().to_string();
    let entries = fs::read_dir(folder).with_context(named)?;
    let mut paths: Vec<_> =
        entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>().with_context(named)?;
    paths.retain(|path| is_result(path));
    paths.sort();
    let mut lines: Vec<Line> = Vec::new();
    for path in &paths {
        let text = files::text(path, LARGEST)?;
        for (n, line) in text.lines().enumerate() {
            let line = serde_json::from_str(line);
            lines.push(line.with_context(|| format!("{}: line {}", path.display(), n + 1))?);
        }
    }
    Ok(merge(campaign, lines))
}

pub fn run(campaign: &Campaign, folder: &Path, output: Option<&Path>, json: bool) -> Result<ExitCode> {
    let merged = read(campaign, folder)?;
    if let Some(path) = output {
        let lines: Result<Vec<String>, _> = merged.lines.iter().map(serde_json::to_string).collect();
        whole(path, (lines.context("the results")?.join("\n") + "\n").as_bytes())?;
    }
    let findings = merged.findings().into_iter().map(|(signature, lines)| Finding {
        signature: signature.to_string(),
        jobs: lines.len(),
        first: lines[0].job,
    });
    let report = Report {
        jobs: campaign.jobs(),
        equal_duplicates: merged.equal_duplicates,
        verdicts: merged.verdicts(),
        findings: findings.collect(),
        wrong: &merged.wrong,
    };
    match json {
        true => print_json(&report)?,
        false => write(&mut printable(), &report).context("stdout")?,
    }
    Ok(if merged.wrong.is_empty() { ExitCode::SAME } else { ExitCode::COULD_NOT_TEST })
}

fn write(out: &mut impl Write, report: &Report<'_>) -> io::Result<()> {
    let counts = report.verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}"));
    writeln!(out, "{} jobs: {}", report.jobs, counts.collect::<Vec<_>>().join(", "))?;
    writeln!(out, "  {} were run twice with the same result", report.equal_duplicates)?;
    for finding in &report.findings {
        writeln!(out, "  {:6}  {} (job {})", finding.jobs, finding.signature, finding.first)?;
    }
    for wrong in report.wrong {
        writeln!(out, "  WRONG: {wrong}")?;
    }
    Ok(())
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[crate::output::schema::<Report<'static>>];
