//! A migration in words.

use crate::commands::report::{self, Detail};
use std::io::{self, Write};
use vmtape_migrate::{Outcome, report::Round};
use vmtape_replay::migration::Moved;

/// Rounds that are listed; JSON has all.
const ROUNDS: usize = 12;
/// Things dropped that are listed.
const DROPPED: usize = 6;

pub fn print(out: &mut impl Write, moved: &Moved, detail: Detail) -> io::Result<()> {
    for outcome in &moved.outcomes {
        write_outcome(out, outcome)?;
    }
    writeln!(out, "{}", moved.fate.text())?;
    match &moved.report {
        Some(report) => report::write(out, report, detail),
        None => writeln!(out, "  (nothing is compared: there is no one guest that goes on)"),
    }
}

pub fn write_outcome(out: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
    let sent = &outcome.sent;
    writeln!(
        out,
        "move {}, hand-over {}: source {}, destination {}",
        outcome.epoch, outcome.handover, outcome.source, outcome.destination
    )?;
    if let Some(failure) = &outcome.failure {
        writeln!(out, "  {failure}")?;
    }
    for finding in &outcome.loaded.findings {
        let word = if finding.refuses { "refuses" } else { "notes" };
        writeln!(out, "  {word}, {}: {}", finding.rule, finding.text)?;
    }
    if let Some(log) = &sent.log {
        writeln!(out, "  pre-copy, dirty log {log}: {} rounds", sent.rounds.len())?;
    }
    for (n, round) in sent.rounds.iter().enumerate().take(ROUNDS) {
        let throttle = if round.throttle == 0 {
            String::new()
        } else {
            format!(", slowed down by {} %", round.throttle)
        };
        let text = round_text(round);
        writeln!(out, "    round {}: {text}; meanwhile {} pages were written{throttle}", n + 1, round.dirty)?;
    }
    if sent.rounds.len() > ROUNDS {
        writeln!(out, "    and {} more", sent.rounds.len() - ROUNDS)?;
    }
    if sent.stopped.pages != 0 {
        writeln!(
            out,
            "  stopped after {} instructions and {} exits: {}; downtime {} us",
            sent.instructions,
            sent.exits,
            round_text(&sent.stopped),
            sent.stopped.ns / 1000
        )?;
    }
    if sent.bytes != 0 {
        writeln!(out, "  {} bytes in all", sent.bytes)?;
    }
    if outcome.loaded.waited != 0 {
        writeln!(out, "  the guest waited for {} pages", outcome.loaded.waited)?;
    }
    let dropped = &outcome.loaded.dropped;
    if !dropped.is_empty() {
        let more = dropped.len().saturating_sub(DROPPED);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let listed: Vec<_> = dropped.iter().take(DROPPED).map(String::as_str).collect();
        writeln!(out, "  not taken: {}{more}", listed.join(", "))?;
    }
    for fault in &outcome.faults {
        let name = vmtape_migrate::points::MovePoint(fault.point);
        writeln!(
            out,
            "  fault {name}, occurrence {}: a {:#x}, b {:#x}, answer {:#x}",
            fault.occurrence, fault.a, fault.b, fault.answer
        )?;
    }
    for event in &outcome.witness {
        writeln!(out, "  witness: {event}")?;
    }
    Ok(())
}

fn round_text(round: &Round) -> String {
    format!("{} pages, {} of them zero, {} bytes", round.pages, round.zero, round.bytes)
}
