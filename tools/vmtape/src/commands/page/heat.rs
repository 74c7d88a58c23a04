//! The heat map: a square for each moment at which the guest was moved.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Squares in a line, and the size of one.
const LINE: usize = 64;
const SQUARE: usize = 15;
/// Moments that are told in words; the rest have their titles.
const LISTED: usize = 12;

/// One map: of a plain move, or of a class of faults.
#[derive(Serialize)]
pub struct Map {
    name: String,
    class: String,
    text: String,
    squares: Vec<Square>,
    width: usize,
    height: usize,
    safe: usize,
    by_exit: Vec<ByExit>,
    restless: u64,
    told: Vec<Told>,
    untold: usize,
}

#[derive(Serialize)]
struct Square {
    x: usize,
    y: usize,
    verdict: String,
    letter: char,
    title: String,
}

#[derive(Serialize)]
struct ByExit {
    after: String,
    counts: String,
}

#[derive(Serialize)]
struct Told {
    exit: u64,
    verdict: String,
    why: String,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(flatten)]
    plain: Cells,
    #[serde(default)]
    by_class: Vec<Class>,
}

#[derive(Deserialize)]
struct Class {
    class: String,
    #[serde(default)]
    text: String,
    #[serde(flatten)]
    map: Cells,
}

#[derive(Deserialize)]
struct Cells {
    cells: Vec<Cell>,
    #[serde(default)]
    restless: u64,
    by_exit: BTreeMap<String, BTreeMap<String, u64>>,
}

#[derive(Deserialize)]
struct Cell {
    exit: u64,
    instructions: u64,
    after: String,
    verdict: String,
    why: String,
}

impl Map {
    /// All maps of an answer of `migrate --at every-exit`.
    pub fn read(name: String, answer: Value) -> Result<Vec<Self>> {
        let Answer { plain, by_class } = serde_json::from_value(answer).context("a map of migrate")?;
        if by_class.is_empty() {
            return Ok(vec![Self::of(name, String::new(), String::new(), plain)]);
        }
        let maps =
            by_class.into_iter().map(|class| Self::of(name.clone(), class.class, class.text, class.map));
        Ok(maps.collect())
    }

    fn of(name: String, class: String, text: String, map: Cells) -> Self {
        let square = |(n, cell): (usize, &Cell)| Square {
            x: n % LINE * SQUARE,
            y: n / LINE * SQUARE,
            letter: letter(&cell.verdict),
            verdict: cell.verdict.clone(),
            title: format!(
                "exit {}, after {} ({} instructions): {} {}",
                cell.exit, cell.after, cell.instructions, cell.verdict, cell.why
            ),
        };
        let safe = map.cells.iter().filter(|cell| cell.verdict == MOVED).count();
        let worth = map.cells.iter().filter(|cell| cell.verdict != MOVED);
        let told =
            |cell: &Cell| Told { exit: cell.exit, verdict: cell.verdict.clone(), why: cell.why.clone() };
        let counts = |counts: &BTreeMap<String, u64>| {
            let counts: Vec<_> = counts.iter().map(|(verdict, count)| format!("{verdict} {count}")).collect();
            counts.join(", ")
        };
        Self {
            name,
            class,
            text,
            width: map.cells.len().min(LINE) * SQUARE,
            height: map.cells.len().div_ceil(LINE) * SQUARE,
            safe,
            by_exit: map
                .by_exit
                .iter()
                .map(|(after, verdicts)| ByExit { after: after.clone(), counts: counts(verdicts) })
                .collect(),
            restless: map.restless,
            told: worth.take(LISTED).map(told).collect(),
            untold: (map.cells.len() - safe).saturating_sub(LISTED),
            squares: map.cells.iter().enumerate().map(square).collect(),
        }
    }
}

/// As `--json` has it.
const MOVED: &str = "moved";

/// The letter of the map in text.
fn letter(verdict: &str) -> char {
    match verdict {
        MOVED => '.',
        "silent-corruption" => '#',
        "two-running" => '2',
        "lost" => 'x',
        "parked" => 'p',
        "detected" => 'd',
        "refused" => 'r',
        "ended" => 'e',
        _ => '?',
    }
}
