//! A comparison: its verdict, and its first divergence with the page walks drawn.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What `replay --json` printed, or what a move came to beside its twin.
#[derive(Serialize)]
pub struct Comparison {
    name: String,
    verdict: String,
    method: String,
    expected: String,
    actual: String,
    pub divergence: Option<Divergence>,
}

#[derive(Serialize)]
pub struct Divergence {
    summary: String,
    class: String,
    cause: Option<Cause>,
    icount: u64,
    rip: String,
    vcpu: u32,
    rows: Vec<Row>,
    stories: Vec<Story>,
    rules: Vec<Rule>,
    reproduce: String,
}

#[derive(Serialize)]
struct Story {
    side: String,
    outcome: String,
    parts: Vec<Part>,
}

/// A line, or a walk that is drawn.
#[derive(Debug, PartialEq, Serialize)]
struct Part {
    line: Option<String>,
    steps: Vec<Step>,
}

/// An entry of a walk.
#[derive(Debug, PartialEq, Serialize)]
struct Step {
    level: String,
    /// Where it stands.
    place: String,
    entry: String,
    flags: String,
    /// What is to be said of it.
    mark: Option<String>,
    decides: bool,
}

#[derive(Deserialize)]
struct Answer {
    verdict: String,
    method: String,
    expected: String,
    actual: String,
    divergence: Option<Told>,
}

#[derive(Deserialize)]
struct Told {
    summary: String,
    class: String,
    cause: Option<Cause>,
    vcpu: u32,
    icount: u64,
    rip: String,
    #[serde(default)]
    rows: Vec<Row>,
    #[serde(default)]
    stories: Vec<Lines>,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    reproduce: String,
}

#[derive(Deserialize)]
struct Lines {
    side: String,
    lines: Vec<String>,
    #[serde(rename = "came_of_it")]
    outcome: String,
}

#[derive(Serialize, Deserialize)]
struct Cause {
    sentence: String,
    source: String,
}

#[derive(Serialize, Deserialize)]
struct Row {
    what: String,
    expected: String,
    actual: String,
}

#[derive(Serialize, Deserialize)]
struct Rule {
    backend: String,
    name: String,
    text: String,
    source: String,
}

impl Comparison {
    pub fn read(name: String, answer: Value) -> Result<Self> {
        let Answer { verdict, method, expected, actual, divergence } =
            serde_json::from_value(answer).context("a comparison")?;
        Ok(Self { name, verdict, method, expected, actual, divergence: divergence.map(Divergence::of) })
    }
}

impl Divergence {
    fn of(told: Told) -> Self {
        let story = |Lines { side, lines, outcome }| Story { side, outcome, parts: parts(lines) };
        Self {
            summary: told.summary,
            class: told.class,
            cause: told.cause,
            icount: told.icount,
            rip: told.rip,
            vcpu: told.vcpu,
            rows: told.rows,
            stories: told.stories.into_iter().map(story).collect(),
            rules: told.rules,
            reproduce: told.reproduce,
        }
    }
}

/// Lines of a story, those of a walk together.
fn parts(lines: Vec<String>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for line in lines {
        match (step(&line), parts.last_mut()) {
            (Some(step), Some(part)) if part.line.is_none() => part.steps.push(step),
            (Some(step), _) => parts.push(Part { line: None, steps: vec![step] }),
            (None, _) => parts.push(Part { line: Some(line), steps: Vec::new() }),
        }
    }
    parts
}

/// An entry of a walk as stories tell it: `  level 4 at 0x1000: 0x2007 -> 0x2027 [P W]   <-- why`. What does not read like that
/// stays a line.
fn step(line: &str) -> Option<Step> {
    let rest = line.trim_start().strip_prefix("level ")?;
    let (head, rest) = rest.split_once(": ")?;
    let (level, place) = head.split_once(" at ").unwrap_or((head, ""));
    let (entry, rest) = rest.split_once(" [")?;
    let (flags, mark) = rest.split_once(']')?;
    let mark = mark.trim_start().strip_prefix("<-- ").map(str::to_owned);
    Some(Step {
        level: level.to_owned(),
        place: place.to_owned(),
        entry: entry.to_owned(),
        flags: flags.to_owned(),
        decides: mark.as_ref().is_some_and(|mark| mark.starts_with("decides")),
        mark,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_is_its_entries_and_everything_else_stays_a_line() {
        let lines = [
            "silicon walks the guest's tables",
            "  level 4 at 0x104920: 0x2100007 -> 0x2100027 [P W U A]   <-- accessed bit set here",
            "  level 1: 0x0 []   <-- decides: not present",
            "  an exit",
            "level of detail",
        ];
        let parts = parts(lines.map(str::to_owned).to_vec());
        assert_eq!(parts.iter().map(|part| part.steps.len()).collect::<Vec<_>>(), [0, 2, 0, 0]);
        let [first, last] = &parts[1].steps[..] else { panic!("{parts:?}") };
        assert_eq!((first.level.as_str(), first.place.as_str()), ("4", "0x104920"));
        assert_eq!((first.entry.as_str(), first.flags.as_str()), ("0x2100007 -> 0x2100027", "P W U A"));
        assert!(last.decides && !first.decides && last.place.is_empty());
    }
}
