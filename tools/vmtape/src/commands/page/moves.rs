//! Moves: rounds, pages that were sent and pages that were written meanwhile.

use anyhow::{Context, Result};
use indicatif::{HumanBytes, HumanCount};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A plot of rounds, in its own units.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 140.0;

/// What `migrate --json` printed.
#[derive(Serialize)]
pub struct Moves {
    name: String,
    verdict: String,
    moves: Vec<Move>,
}

#[derive(Serialize)]
struct Move {
    epoch: u64,
    handover: String,
    source: String,
    destination: String,
    failure: Option<String>,
    log: Option<String>,
    rounds: Vec<Drawn>,
    stopped: Drawn,
    bytes: String,
    instructions: String,
    /// Height of the plot in pages.
    most: String,
    faults: u64,
    dropped: Vec<String>,
    findings: Vec<String>,
}

/// A round with its two bars.
#[derive(Default, Serialize)]
struct Drawn {
    number: usize,
    pages: String,
    zero: String,
    bytes: String,
    microseconds: String,
    dirty: String,
    throttle: u64,
    x: f64,
    width: f64,
    sent_height: f64,
    dirty_height: f64,
}

#[derive(Deserialize)]
struct Answer {
    verdict: String,
    outcomes: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    epoch: u64,
    handover: String,
    #[serde(rename = "source_became")]
    source: String,
    #[serde(rename = "destination_became")]
    destination: String,
    failure: Option<String>,
    sent: Sent,
    #[serde(default)]
    loaded: Loaded,
    #[serde(default)]
    faults: Vec<Value>,
}

#[derive(Deserialize)]
struct Sent {
    log: Option<String>,
    rounds: Vec<Round>,
    stopped: Round,
    bytes: u64,
    instructions: u64,
}

#[derive(Clone, Copy, Deserialize)]
struct Round {
    pages: u64,
    zero: u64,
    bytes: u64,
    ns: u64,
    dirty: u64,
    throttle: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Loaded {
    findings: Vec<Finding>,
    dropped: Vec<String>,
}

#[derive(Deserialize)]
struct Finding {
    rule: String,
    refuses: bool,
    text: String,
}

impl Moves {
    pub fn read(name: String, answer: Value) -> Result<Self> {
        let answer: Answer = serde_json::from_value(answer).context("an answer of migrate")?;
        Ok(Self { name, verdict: answer.verdict, moves: answer.outcomes.into_iter().map(Move::of).collect() })
    }
}

impl Move {
    fn of(outcome: Outcome) -> Self {
        let Sent { log, rounds, stopped, bytes, instructions } = outcome.sent;
        let most = rounds.iter().flat_map(|round| [round.pages, round.dirty]).chain([stopped.pages, 1]);
        let most = most.max().unwrap_or(1);
        let places = rounds.len() + 1;
        let draw = |n: usize, round: Round| {
            let width = WIDTH / places as f64;
            let height = |pages: u64| HEIGHT * pages as f64 / most as f64;
            Drawn {
                number: n + 1,
                pages: HumanCount(round.pages).to_string(),
                zero: HumanCount(round.zero).to_string(),
                bytes: HumanBytes(round.bytes).to_string(),
                microseconds: HumanCount(round.ns / 1000).to_string(),
                dirty: HumanCount(round.dirty).to_string(),
                throttle: round.throttle,
                x: n as f64 * width,
                width: (width * 0.35).min(60.0),
                sent_height: height(round.pages),
                dirty_height: height(round.dirty),
            }
        };
        let finding = |finding: Finding| {
            let word = if finding.refuses { "refuses" } else { "notes" };
            format!("{word}, {}: {}", finding.rule, finding.text)
        };
        Self {
            epoch: outcome.epoch,
            handover: outcome.handover,
            source: outcome.source,
            destination: outcome.destination,
            failure: outcome.failure,
            log,
            stopped: draw(rounds.len(), stopped),
            rounds: rounds.into_iter().enumerate().map(|(n, round)| draw(n, round)).collect(),
            bytes: HumanBytes(bytes).to_string(),
            instructions: HumanCount(instructions).to_string(),
            most: HumanCount(most).to_string(),
            faults: outcome.faults.len() as u64,
            dropped: outcome.loaded.dropped,
            findings: outcome.loaded.findings.into_iter().map(finding).collect(),
        }
    }
}
