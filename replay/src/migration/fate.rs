//! What a migration comes to, in a word.

use crate::{Report, report};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use vmtape_faults::Verdict;
use vmtape_machine::Phase;
use vmtape_migrate::{Outcome, handover::State};

/// What became of a guest that was to move; the worst first, by the one order of [`Verdict`]. A guest that has moved and is its twin is no
/// fault's doing, so it is none of those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Something went wrong, whether or not a plan had it go wrong. A guest that is lost has no phase here.
    Wrong(Verdict),
    /// The guest had ended by itself before it could move.
    Ended,
    /// It has moved, and is its twin.
    Moved,
}

/// A migration and what it came to.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Moved {
    #[serde(rename = "verdict")]
    pub fate: Fate,
    /// Of each move that was begun.
    pub outcomes: Vec<Outcome>,
    /// The comparison with the twin; `None`: there is nothing to compare.
    pub report: Option<Report>,
}

impl Fate {
    pub const LOST: Self = Self::Wrong(Verdict::GuestLost(Phase::NONE));
    pub const CORRUPT: Self = Self::Wrong(Verdict::SilentCorruption);

    pub fn of(outcomes: &[Outcome], report: Option<&Report>) -> Self {
        let Some(last) = outcomes.last() else { return Self::Wrong(Verdict::Unknown) };
        let moved = Self::of_move(last);
        match report.map(|report| report.verdict) {
            _ if outcomes.iter().any(|outcome| outcome.two_running) => Self::Wrong(Verdict::TwoRunning),
            Some(report::Verdict::Different) => Self::CORRUPT,
            Some(report::Verdict::Same) => moved,
            _ if last.runners == 0 => moved,
            _ => Self::Wrong(Verdict::Unknown),
        }
    }

    /// What became of a move, whatever became of the guest.
    pub fn of_move(outcome: &Outcome) -> Self {
        let refuses = outcome.loaded.findings.iter().any(|finding| finding.refuses);
        match () {
            () if outcome.two_running => Self::Wrong(Verdict::TwoRunning),
            () if outcome.runners == 0 && outcome.source == State::Parked => Self::Wrong(Verdict::Parked),
            () if outcome.source == State::Ended => Self::Ended,
            () if outcome.source == State::Unheard && refuses => Self::Wrong(Verdict::Refused),
            // Who sends has the guest, or had it: nothing of it was ever here.
            () if outcome.source == State::Unheard => Self::Wrong(Verdict::Unknown),
            () if outcome.runners == 0 => Self::LOST,
            () if outcome.destination == State::Running => Self::Moved,
            () if refuses => Self::Wrong(Verdict::Refused),
            () => Self::Wrong(Verdict::Detected),
        }
    }

    /// The verdict about the faults of a plan. `fired`: how many happened, the last one in `phase`.
    pub fn of_faults(self, fired: usize, phase: Phase) -> Verdict {
        match self {
            Self::Wrong(Verdict::GuestLost(_)) => Verdict::GuestLost(phase),
            Self::Wrong(verdict) => verdict,
            _ if fired == 0 => Verdict::NotReached,
            Self::Ended => Verdict::Unknown,
            Self::Moved => Verdict::Masked,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Wrong(Verdict::GuestLost(_)) => "lost",
            Self::Wrong(verdict) => verdict.name(),
            Self::Ended => "ended",
            Self::Moved => "moved",
        }
    }

    /// As a report writes it.
    pub fn text(self) -> String {
        self.word().replace('-', " ").to_uppercase()
    }
}

impl Serialize for Fate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl JsonSchema for Fate {
    fn schema_name() -> Cow<'static, str> {
        "Fate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let all = Verdict::ALL.into_iter().map(Self::Wrong).chain([Self::Ended, Self::Moved]);
        json_schema!({ "type": "string", "enum": all.map(Self::word).collect::<Vec<_>>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first() {
        let wrong = Verdict::ALL.map(Fate::Wrong);
        assert!(
            wrong.is_sorted() && wrong.iter().all(|wrong| *wrong < Fate::Ended && Fate::Ended < Fate::Moved)
        );
        assert_eq!([Fate::LOST.text(), Fate::CORRUPT.text()], ["LOST", "SILENT CORRUPTION"]);
    }

    #[test]
    fn what_a_plan_hears_of_it() {
        assert_eq!(Fate::LOST.of_faults(1, Phase::STATE), Verdict::GuestLost(Phase::STATE));
        assert_eq!(
            [0, 1].map(|fired| Fate::Moved.of_faults(fired, Phase::DONE)),
            [Verdict::NotReached, Verdict::Masked]
        );
        // What differs without a fault is no less corrupt.
        assert_eq!(Fate::CORRUPT.of_faults(0, Phase::NONE), Verdict::SilentCorruption);
        assert_eq!(Fate::Wrong(Verdict::Unknown).of_faults(0, Phase::NONE), Verdict::Unknown);
    }
}
