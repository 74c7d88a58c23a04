//! The heat map: a guest moved at every exit, one at a time, and with each class of faults.

use super::{Args, classes};
use crate::output::{ExitCode, print_json, printable};
use crate::progress::progress;
use anyhow::Result;
use std::io::{self, Write};
use vmtape_faults::Verdict;
use vmtape_replay::{
    across::Sides,
    migration::{Cell, Fate, Heat, Journey, Map, OfClass},
};

/// Moments in a line.
const LINE: usize = 64;
/// Moments that are listed with what is wrong with them; JSON has all.
const LISTED: usize = 8;

pub fn run(args: &Args, step: u64, sides: &Sides, journey: &Journey) -> Result<ExitCode> {
    let bar = progress("migrate");
    let classes = classes(&args.classes)?;
    let heat = sides.heat(journey, step, &classes, &mut |exit| bar.set_message(format!("exit {exit}")))?;
    bar.finish_and_clear();
    if args.json {
        print_json(&heat)?;
    } else {
        print(&mut printable(), args, &heat)?;
    }
    let safe = heat.map.cells.iter().all(|cell| cell.fate == Fate::Moved);
    Ok(if safe { ExitCode::SAME } else { ExitCode::DIFFERENT })
}

fn letter(fate: Fate) -> char {
    match fate {
        Fate::Moved => '.',
        Fate::Ended => 'e',
        Fate::Wrong(verdict) => match verdict {
            Verdict::SilentCorruption => '#',
            Verdict::TwoRunning => '2',
            Verdict::GuestLost(_) => 'x',
            Verdict::Parked => 'p',
            Verdict::Detected => 'd',
            Verdict::Refused => 'r',
            _ => '?',
        },
    }
}

fn letters(cells: &[Cell]) -> String {
    cells.iter().map(|cell| letter(cell.fate)).collect()
}

fn safe(map: &Map) -> usize {
    map.cells.iter().filter(|cell| cell.fate == Fate::Moved).count()
}

fn print(out: &mut impl Write, args: &Args, heat: &Heat) -> io::Result<()> {
    writeln!(
        out,
        ". moved and the same  # silent corruption  d detected  r refused  p parked  x lost  2 two running"
    )?;
    if !heat.by_class.is_empty() {
        return by_class(out, args, heat);
    }
    for line in heat.map.cells.chunks(LINE) {
        writeln!(out, "{:>8}  {}", line[0].exit, letters(line))?;
    }
    writeln!(out, "\nafter the exit")?;
    for (after, verdicts) in &heat.map.by_exit {
        let counts: Vec<_> = verdicts.iter().map(|(verdict, count)| format!("{verdict} {count}")).collect();
        writeln!(out, "  {after:24} {}", counts.join(", "))?;
    }
    let unsafe_ones: Vec<_> = heat.map.cells.iter().filter(|cell| cell.fate != Fate::Moved).collect();
    for cell in unsafe_ones.iter().take(LISTED) {
        writeln!(out, "exit {}, {}: {}", cell.exit, cell.fate.text(), cell.why)?;
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
    writeln!(
        out,
        "{} moments, {} of them safe",
        heat.map.cells.len(),
        heat.map.cells.len() - unsafe_ones.len()
    )
}

/// A line or more for each class, below each other.
fn by_class(out: &mut impl Write, args: &Args, heat: &Heat) -> io::Result<()> {
    let width = heat.by_class.iter().map(|of| of.class.len()).max().unwrap_or(0);
    for (n, line) in heat.map.cells.chunks(LINE).enumerate() {
        writeln!(out, "\nfrom exit {} on, after {} instructions", line[0].exit, line[0].instructions)?;
        for OfClass { class, map, .. } in &heat.by_class {
            let cells = map.cells.chunks(LINE).nth(n).unwrap_or_default();
            writeln!(out, "  {class:width$}  {}", letters(cells))?;
        }
    }
    writeln!(out)?;
    for OfClass { class, text, reached, map } in &heat.by_class {
        let never = if *reached == 0 && class != "plain" { "; it never happened" } else { "" };
        writeln!(out, "{class:width$}  {text}: {} of {} safe{never}", safe(map), map.cells.len())?;
        if let Some(cell) = map.cells.iter().find(|cell| cell.fate != Fate::Moved) {
            writeln!(out, "  exit {}, {}: {}", cell.exit, cell.fate.text(), cell.why)?;
        }
    }
    writeln!(
        out,
        "the same of one class: vmtape migrate {} --at every-exit --to {} --classes NAME",
        args.tape.display(),
        args.to.join(" ")
    )?;
    if heat.restless != 0 {
        writeln!(out, "{} exits after which the guest does not come to rest", heat.restless)?;
    }
    writeln!(out, "{} moments, {} of them safe with every class", heat.map.cells.len(), safe(&heat.map))
}
