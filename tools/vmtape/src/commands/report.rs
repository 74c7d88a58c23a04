//! Comparisons in words.

use crate::output::{ExitCode, Printable, print_json};
use anyhow::Result;
use std::io::{self, Write};
use vmtape_replay::{
    Cause, Report,
    islands::Alignment,
    report::{Divergence, Level, Occurrence, Verdict},
};

/// Prints a comparison and gives its exit code.
pub fn print(report: &Report, json: bool) -> Result<ExitCode> {
    if json {
        print_json(report)?;
    } else {
        write(&mut Printable(io::stdout().lock()), report)?;
    }
    Ok(match report.verdict {
        Verdict::Same => ExitCode::SAME,
        Verdict::Different => ExitCode::DIFFERENT,
        Verdict::Unknown | Verdict::Nothing => ExitCode::COULD_NOT_TEST,
    })
}

pub fn write(out: &mut impl Write, report: &Report) -> io::Result<()> {
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
    writeln!(out, "  ({})", report.method)?;
    for (side, end) in [("expected", &report.expected_end), ("actual", &report.actual_end)] {
        if let Some(end) = end {
            writeln!(out, "  {side} end: {end}")?;
        }
    }
    for (name, count) in &report.exempted {
        writeln!(out, "  exempt: {name}: {count}")?;
    }
    for (name, count) in &report.unknown {
        writeln!(out, "  unknown: {name}: {count}")?;
    }
    if !report.unknown.is_empty() {
        writeln!(
            out,
            "  (what is unknown is not judged; `vmtape replay` without --mode runs the guest and settles it)"
        )?;
    }
    for row in &report.answers {
        writeln!(out, "  the VMM asks: {}", row.expected)?;
        writeln!(out, "    and here:   {}", row.actual)?;
    }
    if let Some(divergence) = &report.divergence {
        write_divergence(out, divergence)?;
    }
    write_occurrences(out, &report.occurrences)?;
    if let Some(alignment) = &report.alignment {
        write_alignment(out, alignment)?;
    }
    write_cost(out, report)
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

/// The first difference with everything that is known of it.
pub fn write_divergence(out: &mut impl Write, d: &Divergence) -> io::Result<()> {
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
    /// Rows that are printed; JSON has all.
    const ROWS: usize = 8;
    for row in d.rows.iter().take(ROWS) {
        writeln!(out, "  {}", row.what)?;
        writeln!(out, "    expected {}", row.expected)?;
        writeln!(out, "    actual   {}", row.actual)?;
    }
    if d.rows.len() > ROWS {
        writeln!(out, "  and {} more registers or words of memory that follow from it", d.rows.len() - ROWS)?;
    }
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
    if !d.reproduce.is_empty() {
        writeln!(out, "  again: {}", d.reproduce)?;
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
