//! What a migration comes to, in a word.

use crate::{Report, report};
use serde::Serialize;
use vmtape_machine::Phase;
use vmtape_migrate::{Outcome, handover::State};

/// The word; where several would do, the first in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The guest runs on both sides.
    TwoRunning,
    /// It runs on, everybody was told that all is well, and it is another guest than its twin.
    SilentCorruption,
    /// The guest had ended by itself before it could move.
    Ended,
    /// It runs nowhere, and nobody has it.
    Lost,
    /// It is kept stopped, because nobody knows whether it runs elsewhere.
    Parked,
    /// Something went wrong, was noticed, and the guest goes on where it was.
    Detected,
    /// It was not to move, and goes on where it was.
    Refused,
    /// Not everything could be compared.
    Unknown,
    /// It has moved, and is its twin.
    Moved,
}

/// A migration and what it came to.
#[derive(Debug, Serialize)]
pub struct Moved {
    pub verdict: Verdict,
    /// Of each move that was begun.
    pub outcomes: Vec<Outcome>,
    /// The comparison with the twin; `None`: there is nothing to compare.
    pub report: Option<Report>,
}

impl Verdict {
    pub fn of(outcomes: &[Outcome], report: Option<&Report>) -> Self {
        let Some(last) = outcomes.last() else { return Self::Unknown };
        let moved = Self::of_move(last);
        match report.map(|report| report.verdict) {
            _ if outcomes.iter().any(|outcome| outcome.two_running) => Self::TwoRunning,
            Some(report::Verdict::Different) => Self::SilentCorruption,
            Some(report::Verdict::Same) => moved,
            _ if last.runners == 0 => moved,
            _ => Self::Unknown,
        }
    }

    /// What became of a move, whatever became of the guest.
    pub fn of_move(outcome: &Outcome) -> Self {
        match () {
            () if outcome.two_running => Self::TwoRunning,
            () if outcome.runners == 0 && outcome.source == State::Parked => Self::Parked,
            () if outcome.source == State::Ended => Self::Ended,
            () if outcome.runners == 0 => Self::Lost,
            () if outcome.destination == State::Running => Self::Moved,
            () if outcome.loaded.findings.iter().any(|finding| finding.refuses) => Self::Refused,
            () => Self::Detected,
        }
    }

    /// In the words of fault plans. `fired`: how many faults happened, the last one in `phase`.
    pub fn of_faults(self, fired: usize, phase: Phase) -> vmtape_faults::Verdict {
        use vmtape_faults::Verdict as Faulty;
        match self {
            Self::TwoRunning => Faulty::TwoRunning,
            Self::SilentCorruption => Faulty::SilentCorruption,
            Self::Lost => Faulty::GuestLost(phase),
            Self::Parked => Faulty::Parked,
            Self::Detected => Faulty::Detected,
            Self::Refused => Faulty::Refused,
            Self::Moved | Self::Ended if fired == 0 => Faulty::NotReached,
            Self::Unknown | Self::Ended => Faulty::Unknown,
            Self::Moved => Faulty::Masked,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Self::TwoRunning => "TWO RUNNING",
            Self::SilentCorruption => "SILENT CORRUPTION",
            Self::Ended => "ENDED",
            Self::Lost => "LOST",
            Self::Parked => "PARKED",
            Self::Detected => "DETECTED",
            Self::Refused => "REFUSED",
            Self::Unknown => "UNKNOWN",
            Self::Moved => "MOVED",
        }
    }
}
