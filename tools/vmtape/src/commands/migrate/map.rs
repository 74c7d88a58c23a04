//! The heat map: a guest moved at every exit, one at a time.

use super::Args;
use crate::output::{ExitCode, print_json, progress};
use anyhow::Result;
use std::io::{self, Write};
use vmtape_replay::{
    across::Sides,
    migration::{Heat, Journey, Verdict},
};

/// Moments in a line.
const LINE: usize = 64;
/// Moments that are listed with what is wrong with them; JSON has all.
const LISTED: usize = 8;

pub fn run(args: &Args, step: u64, sides: &Sides, journey: &Journey) -> Result<ExitCode> {
    let bar = progress("migrate");
    let heat = sides.heat(journey, step, &mut |exit| bar.set_message(format!("exit {exit}")))?;
    bar.finish_and_clear();
    if args.json {
        print_json(&heat)?;
    } else {
        print(&mut io::stdout().lock(), args, &heat)?;
    }
    let safe = heat.cells.iter().all(|cell| cell.verdict == Verdict::Moved);
    Ok(if safe { ExitCode::SAME } else { ExitCode::DIFFERENT })
}

fn letter(verdict: Verdict) -> char {
    match verdict {
        Verdict::Moved => '.',
        Verdict::SilentCorruption => '#',
        Verdict::TwoRunning => '2',
        Verdict::Lost => 'x',
        Verdict::Parked => 'p',
        Verdict::Detected => 'd',
        Verdict::Refused => 'r',
        Verdict::Ended => 'e',
        Verdict::Unknown => '?',
    }
}

fn print(out: &mut impl Write, args: &Args, heat: &Heat) -> io::Result<()> {
    writeln!(
        out,
        ". moved and the same  # silent corruption  d detected  r refused  p parked  x lost  2 two running"
    )?;
    for line in heat.cells.chunks(LINE) {
        let letters: String = line.iter().map(|cell| letter(cell.verdict)).collect();
        writeln!(out, "{:>8}  {letters}", line[0].exit)?;
    }
    writeln!(out, "\nafter the exit")?;
    for (after, verdicts) in &heat.by_exit {
        let counts: Vec<_> = verdicts.iter().map(|(verdict, count)| format!("{verdict} {count}")).collect();
        writeln!(out, "  {after:24} {}", counts.join(", "))?;
    }
    let unsafe_ones: Vec<_> = heat.cells.iter().filter(|cell| cell.verdict != Verdict::Moved).collect();
    for cell in unsafe_ones.iter().take(LISTED) {
        writeln!(out, "exit {}, {}: {}", cell.exit, cell.verdict.text(), cell.why)?;
        writeln!(
            out,
            "  vmtape migrate {} --at exit={} --to {}",
            args.tape.display(),
            cell.exit,
            args.to.join(" ")
        )?;
    }
    if unsafe_ones.len() > LISTED {
        writeln!(out, "and {} more", unsafe_ones.len() - LISTED)?;
    }
    if heat.restless != 0 {
        writeln!(out, "{} exits after which the guest does not come to rest", heat.restless)?;
    }
    writeln!(out, "{} moments, {} of them safe", heat.cells.len(), heat.cells.len() - unsafe_ones.len())
}
