//! Exits over time by kind, with the faults that were injected.

use anyhow::Result;
use indicatif::HumanCount;
use serde::Serialize;
use std::collections::BTreeMap;
use vmtape_replay::text;
use vmtape_traces::{
    Event, Tape,
    event::{End, Skip},
    text::fault_text,
};

/// Columns of the plot, and its size in its own units.
const COLUMNS: usize = 120;
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 180.0;
/// Kinds that have a colour of their own; the rest share one.
const KINDS: usize = 7;
/// Faults that are drawn and listed.
const MARKS: usize = 300;

/// A tape.
#[derive(Serialize)]
pub struct Timeline {
    name: String,
    backend: String,
    options: Vec<String>,
    guest: String,
    end: Option<String>,
    damage: Option<String>,
    exits: String,
    /// What the axis counts, and its end.
    unit: &'static str,
    last: String,
    /// Exits of the highest column.
    most: String,
    kinds: Vec<Kind>,
    bars: Vec<Bar>,
    marks: Vec<Mark>,
    /// Faults that are not drawn.
    more_marks: usize,
}

#[derive(Serialize)]
struct Kind {
    name: String,
    count: String,
    /// Number of its colour.
    colour: usize,
}

#[derive(Serialize)]
struct Bar {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    colour: usize,
    title: String,
}

#[derive(Serialize)]
struct Mark {
    x: f64,
    text: String,
    skipped: bool,
}

/// Counts by kind in columns of equal width, which grow as time goes on: a tape is read once, whatever its length.
#[derive(Default)]
struct Columns {
    counts: BTreeMap<String, [u64; COLUMNS]>,
    /// A column has two to the power of so many units.
    shift: u32,
    last: u64,
}

impl Columns {
    fn add(&mut self, at: u64, kind: String) {
        while at >> self.shift >= COLUMNS as u64 {
            for counts in self.counts.values_mut() {
                for n in 0..COLUMNS {
                    let of = |n: usize| counts.get(n).copied().unwrap_or(0);
                    counts[n] = of(2 * n) + of(2 * n + 1);
                }
            }
            self.shift += 1;
        }
        self.last = self.last.max(at);
        self.counts.entry(kind).or_insert([0; COLUMNS])[(at >> self.shift) as usize] += 1;
    }

    /// Kinds by how often they are there, the rare ones together.
    fn ranked(&self) -> Vec<(String, [u64; COLUMNS])> {
        let mut all: Vec<_> = self.counts.iter().map(|(kind, counts)| (kind.clone(), *counts)).collect();
        let sum = |counts: &[u64; COLUMNS]| counts.iter().sum::<u64>();
        all.sort_by_key(|(_, counts)| std::cmp::Reverse(sum(counts)));
        if all.len() > KINDS + 1 {
            let rest = all.split_off(KINDS);
            let name = format!("{} other kinds", rest.len());
            let mut together = [0; COLUMNS];
            for (_, counts) in rest {
                together.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
            all.push((name, together));
        }
        all
    }
}

impl Timeline {
    pub fn of(tape: &Tape, name: String) -> Result<Self> {
        let meta = tape.metadata();
        let imported = meta.origin == vmtape_traces::import::ORIGIN;
        let (mut columns, mut exits, mut end, mut faults) = (Columns::default(), 0u64, None, Vec::new());
        let mut more_marks = 0;
        for event in tape.events() {
            match event? {
                Event::Exit(exit) => {
                    exits += 1;
                    // An imported clock counts no instructions, and does not begin at zero.
                    columns.add(if imported { exits } else { exit.icount }, text::reason(&exit.exit));
                }
                Event::Fault(fault) if faults.len() < MARKS => {
                    let at = if imported { exits } else { fault.icount };
                    columns.last = columns.last.max(at);
                    let text = format!("after {} instructions: {}", fault.icount, fault_text(&fault, meta));
                    faults.push((at, text, fault.skipped != Skip::NONE));
                }
                Event::Fault(_) => more_marks += 1,
                Event::End { end: how, icount, .. } => {
                    columns.last = columns.last.max(if imported { exits } else { icount });
                    end = (how != End::Cut).then(|| text::end_text(&how));
                }
                _ => {}
            }
        }
        let options = meta.options.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut timeline = Self {
            name,
            backend: meta.backend.clone(),
            options,
            guest: format!("{} {}", meta.guest, meta.command_line).trim_end().to_owned(),
            end,
            damage: tape.damage().map(ToString::to_string),
            exits: HumanCount(exits).to_string(),
            unit: if imported { "exits" } else { "instructions" },
            last: HumanCount(columns.last).to_string(),
            most: String::new(),
            kinds: Vec::new(),
            bars: Vec::new(),
            marks: Vec::new(),
            more_marks,
        };
        timeline.draw(&columns, faults);
        Ok(timeline)
    }

    fn draw(&mut self, columns: &Columns, faults: Vec<(u64, String, bool)>) {
        let ranked = columns.ranked();
        let column = |n: usize| ranked.iter().map(|(_, counts)| counts[n]).sum::<u64>();
        let most = (0..COLUMNS).map(column).max().unwrap_or(0).max(1);
        self.most = HumanCount(most).to_string();
        // The last column ends where the run does.
        let units = (columns.last + 1) as f64;
        let width = WIDTH * (1u64 << columns.shift) as f64 / units;
        let mut below = [0.0; COLUMNS];
        for (colour, (name, counts)) in ranked.into_iter().enumerate() {
            for (n, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
                let height = HEIGHT * count as f64 / most as f64;
                below[n] += height;
                let x = n as f64 * width;
                let from = HumanCount((n as u64) << columns.shift);
                let title = format!("{name}: {} from {from} {} on", HumanCount(count), self.unit);
                self.bars.push(Bar {
                    x: short(x),
                    y: short(HEIGHT - below[n]),
                    width: short(width.min(WIDTH - x).max(0.5)),
                    height: short(height),
                    colour,
                    title,
                });
            }
            let count = HumanCount(counts.iter().sum()).to_string();
            self.kinds.push(Kind { name, count, colour });
        }
        let mark = |(at, text, skipped): (u64, String, bool)| Mark {
            x: short(WIDTH * at as f64 / units),
            text,
            skipped,
        };
        self.marks = faults.into_iter().map(mark).collect();
    }
}

/// A coordinate with as many digits as are seen.
fn short(coordinate: f64) -> f64 {
    (coordinate * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_grow_and_no_exit_is_lost() {
        let mut columns = Columns::default();
        for at in 0..10_000 {
            columns.add(at, if at % 3 == 0 { "a" } else { "b" }.to_owned());
        }
        let sums: Vec<u64> = columns.counts.values().map(|counts| counts.iter().sum()).collect();
        assert_eq!((sums, columns.shift), (vec![3334, 6666], 7));
        assert_eq!(columns.counts["a"][0] + columns.counts["b"][0], 128);
    }

    #[test]
    fn rare_kinds_are_together() {
        let mut columns = Columns::default();
        for kind in 0..20u64 {
            (0..=kind).for_each(|_| columns.add(kind, format!("kind {kind:02}")));
        }
        let ranked = columns.ranked();
        assert_eq!(
            (ranked.len(), ranked[0].0.as_str(), ranked[7].0.as_str()),
            (8, "kind 19", "13 other kinds")
        );
        let all: u64 = ranked.iter().flat_map(|(_, counts)| counts).sum();
        assert_eq!(all, 210);
    }
}
