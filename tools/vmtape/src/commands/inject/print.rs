//! What `inject` prints.

use super::{Injection, members::Members, shrink::Smallest};
use crate::output::{ExitCode, print_json, printable};
use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::Serialize;
use std::io::{self, Write};
use vmtape_faults::{Point, Verdict};
use vmtape_replay::{faults::Run, report::Divergence};
use vmtape_traces::{event::Fault, text::fault_text};

#[derive(Serialize, JsonSchema)]
struct Report<'a> {
    verdict: Verdict,
    #[serde(rename = "expects")]
    expected: String,
    as_expected: bool,
    why: &'a str,
    signature: String,
    faults: Vec<Fault>,
    skipped: Vec<Fault>,
    told: &'a [String],
    end_without_faults: &'a str,
    end: &'a str,
    divergence: Option<&'a Divergence>,
    smallest: Option<&'a Smallest>,
}

fn code(as_expected: bool) -> ExitCode {
    if as_expected { ExitCode::SAME } else { ExitCode::DIFFERENT }
}

/// What came of a run.
pub(super) fn run(injection: &Injection<'_>, run: &Run, smallest: Option<&Smallest>) -> Result<ExitCode> {
    let judged = &run.judgement;
    let expect = &injection.source.plan.expect;
    let as_expected = expect.allows(judged.verdict);
    if injection.result.json {
        print_json(&Report {
            verdict: judged.verdict,
            expected: expect.to_string(),
            as_expected,
            why: &judged.why,
            signature: judged.signature.to_string(),
            faults: judged.fired.clone(),
            skipped: judged.skipped.clone(),
            told: &judged.told,
            end_without_faults: &judged.ends[0],
            end: &judged.ends[1],
            divergence: judged.divergence.as_ref(),
            smallest,
        })?;
    } else {
        write_run(&mut printable(), injection, run, smallest).context("stdout")?;
    }
    Ok(code(as_expected))
}

fn write_run(
    out: &mut impl Write,
    injection: &Injection<'_>,
    run: &Run,
    smallest: Option<&Smallest>,
) -> io::Result<()> {
    let judged = &run.judgement;
    let expect = &injection.source.plan.expect;
    let expected = match expect {
        expect if expect.is_open() => String::new(),
        expect if expect.allows(judged.verdict) => ", as expected".to_owned(),
        expect => format!(", expected: {expect}"),
    };
    writeln!(out, "{}{expected}: {}", judged.verdict, judged.why)?;
    let names = injection.bed.twin().metadata();
    writeln!(out, "  faults: {} happened, {} were skipped", judged.fired.len(), judged.skipped.len())?;
    /// With more nobody reads them: `vmtape show` has all.
    const LISTED: usize = 10;
    for fault in judged.fired.iter().chain(&judged.skipped).take(LISTED) {
        writeln!(out, "    after {} instructions: {}", fault.icount, fault_text(fault, names))?;
    }
    for told in &judged.told {
        writeln!(out, "  the VMM was told: {told}")?;
    }
    writeln!(out, "  without the faults: {}", judged.ends[0])?;
    writeln!(out, "  with them:          {}", judged.ends[1])?;
    if let Some(divergence) = &judged.divergence {
        let (icount, rip) = (divergence.icount, divergence.rip);
        writeln!(
            out,
            "  first difference, after {icount} instructions at rip {rip:#x}: {}",
            divergence.summary
        )?;
    }
    writeln!(out, "  signature: {}", judged.signature)?;
    if let Some(smallest) = smallest {
        let [before, after] = smallest.rules;
        let more = if smallest.stopped { "; with more --tries it may get smaller" } else { "" };
        writeln!(out, "  smallest plan: {before} rules became {after} in {} runs{more}", smallest.runs)?;
        writeln!(out, "  again: {}", smallest.command)?;
    }
    Ok(())
}

/// What came of the runs of an exhaustive plan.
pub(super) fn members(injection: &Injection<'_>, all: &Members) -> Result<ExitCode> {
    let expect = &injection.source.plan.expect;
    // A plan that is reached nowhere has tested nothing.
    let as_expected = match all.members.is_empty() {
        true => expect.allows(Verdict::NotReached) && !expect.is_open(),
        false => all.members.iter().all(|member| member.as_expected),
    };
    if injection.result.json {
        print_json(all)?;
        return Ok(code(as_expected));
    }
    let mut out = printable();
    let mut write = || -> io::Result<()> {
        let counts = all.verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}"));
        let counts = counts.collect::<Vec<_>>().join(", ");
        let counts = if counts.is_empty() { "not-reached".to_owned() } else { counts };
        writeln!(out, "{} occurrences, each failed in a run of its own: {counts}", all.members.len())?;
        let mut last: Option<(&str, u64, u64)> = None;
        for member in &all.members {
            let (verdict, why) = (member.verdict, &member.why);
            let mark = if member.as_expected { "" } else { " (not as expected)" };
            match last {
                Some((signature, ..)) if signature == member.signature => {
                    last = last.map(|(signature, first, _)| (signature, first, member.n));
                }
                _ => {
                    if let Some((_, first, end)) = last.filter(|(_, first, end)| first < end) {
                        writeln!(out, "    {}-{end}: the same", first + 1)?;
                    }
                    writeln!(out, "  {:5}  {verdict}{mark}: {why}", member.n)?;
                    last = Some((&member.signature, member.n, member.n));
                }
            }
        }
        if let Some((_, first, end)) = last.filter(|(_, first, end)| first < end) {
            writeln!(out, "    {}-{end}: the same", first + 1)?;
        }
        Ok(())
    };
    write().context("stdout")?;
    Ok(code(as_expected))
}

#[derive(Serialize, JsonSchema)]
struct Table {
    points: Vec<Row>,
}

#[derive(Serialize, JsonSchema)]
struct Row {
    name: String,
    number: u32,
    text: String,
    words: String,
}

/// The fault points.
pub(super) fn points(points: &[Point], json: bool) -> Result<ExitCode> {
    if json {
        let row = |point: &Point| Row {
            name: point.name.clone(),
            number: point.number,
            text: point.text.clone(),
            words: point.words.clone(),
        };
        print_json(&Table { points: points.iter().map(row).collect() })?;
        return Ok(ExitCode::SAME);
    }
    let mut out = printable();
    for point in points {
        writeln!(out, "{}\n    {}\n    {}", point.name, point.text, point.words).context("stdout")?;
    }
    Ok(ExitCode::SAME)
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[
    crate::output::schema::<Report<'static>>,
    crate::output::schema::<Members>,
    crate::output::schema::<Table>,
];
