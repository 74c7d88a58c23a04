//! Comparisons in words.

use crate::output::{ExitCode, print_json, printable};
use anyhow::Result;
use std::io::{self, Write};
use vmtape_replay::{
    Cause, Report,
    islands::Alignment,
    report::{Divergence, Level, Occurrence, Row, Verdict},
};

/// How much is told of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What fits a screen.
    Short,
    /// Walks, rules, exits, costs.
    All,
}

impl Detail {
    /// By the option `--explain`.
    pub fn of(explain: bool) -> Self {
        if explain { Self::All } else { Self::Short }
    }
}

/// Prints a comparison and gives its exit code.
pub fn print(report: &Report, json: bool, detail: Detail) -> Result<ExitCode> {
    if json {
        print_json(report)?;
    } else {
        write(&mut printable(), report, detail)?;
    }
    Ok(match report.verdict {
        Verdict::Same => ExitCode::SAME,
        Verdict::Different => ExitCode::DIFFERENT,
        Verdict::Unknown | Verdict::Nothing => ExitCode::COULD_NOT_TEST,
    })
}

pub fn write(out: &mut impl Write, report: &Report, detail: Detail) -> io::Result<()> {
    let all = detail == Detail::All;
    writeln!(out, "expected: {}", report.expected)?;
    writeln!(out, "actual:   {}", report.actual)?;
    let c = &report.compared;
    let word = match report.verdict {
        Verdict::Same => "SAME",
        Verdict::Different => "DIFFERENT",
        Verdict::Unknown => "NO DIFFERENCE FOUND, BUT NOT ALL IS KNOWN",
        Verdict::Nothing => "NOTHING COULD BE COMPARED",
    };
    writeln!(
        out,
        "{word}: {} instructions, {} exits, {} events compared",
        c.instructions, c.exits, c.events
    )?;
    // How it was compared says what `same` means.
    if all || report.verdict != Verdict::Different {
        writeln!(out, "  ({})", report.method)?;
    }
    write_ends(out, report, all)?;
    for (name, count) in &report.exempted {
        writeln!(out, "  exempt: {name}: {count}")?;
    }
    for (name, count) in &report.unknown {
        writeln!(out, "  unknown: {name}: {count}")?;
    }
    if let Some(how) = report.settled_by.filter(|_| all || report.verdict != Verdict::Different) {
        writeln!(out, "  (what is unknown is not judged; {how}, settles it)")?;
    }
    write_answers(out, &report.answers, all)?;
    if let Some(divergence) = &report.divergence {
        write_divergence(out, divergence, detail)?;
    }
    write_occurrences(out, &report.occurrences)?;
    if let Some(alignment) = &report.alignment {
        write_alignment(out, alignment)?;
    }
    if all { write_cost(out, report) } else { Ok(()) }
}

/// How the two ended: that both did alike is worth no lines.
fn write_ends(out: &mut impl Write, report: &Report, all: bool) -> io::Result<()> {
    let ends = [("expected", &report.expected_end), ("actual", &report.actual_end)];
    if !all && ends[0].1 == ends[1].1 {
        return Ok(());
    }
    for (side, end) in ends {
        if let Some(end) = end {
            writeln!(out, "  {side} end: {end}")?;
        }
    }
    Ok(())
}

/// Questions of the VMM that were answered otherwise.
fn write_answers(out: &mut impl Write, answers: &[Row], all: bool) -> io::Result<()> {
    /// Those that are printed; JSON has all.
    const ANSWERS: usize = 2;
    let shown = if all { answers.len() } else { ANSWERS };
    for row in answers.iter().take(shown) {
        writeln!(out, "  the VMM asks: {}", row.expected)?;
        writeln!(out, "    and here:   {}", row.actual)?;
    }
    match answers.len().saturating_sub(shown) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more questions that are answered otherwise"),
    }
}

/// How much is the same, and where it is not.
fn write_alignment(out: &mut impl Write, alignment: &Alignment) -> io::Result<()> {
    let stretches: u64 = alignment.count.values().sum();
    writeln!(
        out,
        "\n{:.2} % of the exits are the same: {} of them; {} stretches differ, of {} exits expected and {} actual",
        alignment.share(),
        alignment.equal,
        stretches,
        alignment.expected,
        alignment.actual
    )?;
    for (why, count) in &alignment.count {
        writeln!(out, "  {count} x {}", why.text())?;
    }
    /// Stretches that are printed; JSON has more.
    const SHOWN: usize = 8;
    let number = |exit: Option<u64>| exit.map_or("-".to_owned(), |exit| exit.to_string());
    for island in alignment.islands.iter().take(SHOWN) {
        let (expected, actual) = (number(island.expected_exit), number(island.actual_exit));
        writeln!(
            out,
            "  exit {expected} expected, {actual} actual: {} and {} exits: {}: {}",
            island.expected,
            island.actual,
            island.why.text(),
            island.summary
        )?;
    }
    if alignment.lost {
        writeln!(out, "  behind the last one no place was found where both go on alike")?;
    }
    Ok(())
}

/// What a comparison found that went on, one line each and why.
fn write_occurrences(out: &mut impl Write, all: &[Occurrence]) -> io::Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nall divergences, each signature once:")?;
    for Occurrence { divergence, times } in all {
        let cause = divergence.cause.as_ref().map_or("unexplained".to_owned(), Cause::to_string);
        writeln!(out, "  {times} x {}: {}", divergence.signature, divergence.summary)?;
        writeln!(out, "    cause: {cause}")?;
    }
    Ok(())
}

/// The first difference: what, why, where, and with all details what each side did.
pub fn write_divergence(out: &mut impl Write, d: &Divergence, detail: Detail) -> io::Result<()> {
    let level = match d.level {
        Level::GuestVisible => "the guest can see it",
        Level::VmmVisible => "the VMM can see it",
        Level::HostVisible => "the host can see it",
    };
    writeln!(out)?;
    writeln!(out, "first divergence: {}", d.summary)?;
    writeln!(out, "  class: {}; {level}", d.class.text())?;
    match &d.cause {
        Some(cause) => write_cause(out, cause)?,
        None => writeln!(out, "  cause: unexplained")?,
    }
    writeln!(out, "  signature: {}", d.signature)?;
    let nested = d.nested.as_ref().map_or(String::new(), |level| format!(", in {level}"));
    writeln!(out, "  after {} instructions, vCPU {}, rip {:#x}{nested}", d.icount, d.vcpu, d.rip)?;
    match detail {
        Detail::Short => write_outcomes(out, d)?,
        Detail::All => write_details(out, d)?,
    }
    if !d.reproduce.is_empty() {
        writeln!(out, "  again: {}", d.reproduce)?;
    }
    if detail == Detail::Short {
        writeln!(out, "  more: --explain has the page walks, the rules, and the exits up to there")?;
    }
    Ok(())
}

/// What came of it on each side, and the entry of a walk that decided.
fn write_outcomes(out: &mut impl Write, d: &Divergence) -> io::Result<()> {
    let deciding = d.deciding();
    for (side, story) in ["expected", "actual"].iter().zip(&d.stories) {
        writeln!(out, "  {side}, {}: {}", story.side, story.outcome)?;
        if let Some((_, line)) = deciding.iter().find(|(decides, _)| *decides == story.side) {
            writeln!(out, "    {line}")?;
        }
    }
    if d.stories.is_empty() {
        write_rows(out, d, 1)?;
    }
    Ok(())
}

/// What differs, row by row.
fn write_rows(out: &mut impl Write, d: &Divergence, rows: usize) -> io::Result<()> {
    for row in d.rows.iter().take(rows) {
        writeln!(out, "  {}", row.what)?;
        writeln!(out, "    expected {}", row.expected)?;
        writeln!(out, "    actual   {}", row.actual)?;
    }
    match d.rows.len().saturating_sub(rows) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more registers or words of memory that follow from it"),
    }
}

/// Everything that is known of it.
fn write_details(out: &mut impl Write, d: &Divergence) -> io::Result<()> {
    /// Rows that are printed; JSON has all.
    const ROWS: usize = 8;
    write_rows(out, d, ROWS)?;
    for (side, story) in ["expected", "actual"].iter().zip(&d.stories) {
        writeln!(out, "  {side}, {}: {}", story.side, story.outcome)?;
        for line in &story.lines {
            writeln!(out, "    {line}")?;
        }
    }
    for rule in &d.rules {
        writeln!(out, "  rule of {}: {}: {}", rule.backend, rule.name, rule.text)?;
        writeln!(out, "    See: {}", rule.source)?;
    }
    for (side, context) in [("expected", &d.expected_context), ("actual", &d.actual_context)] {
        if !context.is_empty() {
            writeln!(out, "  {side}, the exits up to there:")?;
            for line in context {
                writeln!(out, "    {line}")?;
            }
        }
    }
    Ok(())
}

fn write_cause(out: &mut impl Write, cause: &Cause) -> io::Result<()> {
    writeln!(out, "  cause: {cause}")?;
    if let Some(confirmed) = &cause.confirmed {
        writeln!(out, "    confirmed: {confirmed}")?;
    }
    writeln!(out, "    See: {}", cause.source)
}

/// The exits that the two sides took differently often.
fn write_cost(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let differing: Vec<_> = report.cost.iter().filter(|(_, cost)| cost.expected != cost.actual).collect();
    if differing.is_empty() {
        return Ok(());
    }
    writeln!(out, "\ncost (exits by reason, expected and actual):")?;
    for (reason, cost) in differing {
        writeln!(out, "  {reason:24} {:>10} {:>10}", cost.expected, cost.actual)?;
    }
    Ok(())
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[crate::output::schema::<Report>];
