//! What came of the faults of a run, in one word.
//!
//! Several may hold at once: the first in the order of [`Verdict`] counts. A failure of this program itself is none of them, and
//! is an error.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use thiserror::Error;
use vmtape_machine::Phase;

/// What came of faults, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Verdict {
    /// Two copies of the guest run.
    TwoRunning,
    /// The guest goes on with other data than it would have, and nobody was told: neither it nor the VMM.
    SilentCorruption,
    /// The guest is gone: it crashed, or the VMM cannot run it on. [`Phase::NONE`] where nothing was migrating.
    GuestLost(Phase),
    /// The guest was told, by an exception or an answer that it would not have got, and goes on.
    GuestVisible,
    /// It runs without end, or without progress.
    Hang,
    /// The VMM was told, and the guest goes on as if nothing had happened.
    Detected,
    /// What was asked for was refused before anything changed.
    Refused,
    /// The guest stands still, and somebody outside must say which copy goes on.
    Parked,
    /// It cannot be judged.
    Unknown,
    /// Faults happened, and nothing differs.
    Masked,
    /// No fault happened, so nothing was tested.
    NotReached,
}

/// The text is no verdict.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}` is no verdict: there are {all}", all = Verdict::names().join(", "))]
pub struct NoVerdict(String);

impl Verdict {
    /// All of them, the worst first, the guest lost outside a migration.
    pub const ALL: [Self; 11] = [
        Self::TwoRunning,
        Self::SilentCorruption,
        Self::GuestLost(Phase::NONE),
        Self::GuestVisible,
        Self::Hang,
        Self::Detected,
        Self::Refused,
        Self::Parked,
        Self::Unknown,
        Self::Masked,
        Self::NotReached,
    ];

    /// The word, without a phase.
    pub fn name(self) -> &'static str {
        match self {
            Self::TwoRunning => "two-running",
            Self::SilentCorruption => "silent-corruption",
            Self::GuestLost(_) => "guest-lost",
            Self::GuestVisible => "guest-visible",
            Self::Hang => "hang",
            Self::Detected => "detected",
            Self::Refused => "refused",
            Self::Parked => "parked",
            Self::Unknown => "unknown",
            Self::Masked => "masked",
            Self::NotReached => "not-reached",
        }
    }

    fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(|verdict| verdict.name()).collect()
    }

    /// The one that counts of two that hold.
    pub fn or_worse(self, other: Self) -> Self {
        self.min(other)
    }

    /// What it says, in a sentence without its full stop.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::TwoRunning => "two copies of the guest run",
            Self::SilentCorruption => "the guest has other data than without the faults, and nobody was told",
            Self::GuestLost(_) => "the guest is lost",
            Self::GuestVisible => "the guest sees something else than without the faults, and goes on",
            Self::Hang => "the guest hangs",
            Self::Detected => "the VMM was told of the faults, and the guest goes on as without them",
            Self::Refused => "it was refused before anything changed",
            Self::Parked => "the guest stands still until somebody decides",
            Self::Unknown => "it cannot be judged",
            Self::Masked => "faults happened, and the guest is as without them",
            Self::NotReached => "no fault happened",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestLost(phase) if *phase != Phase::NONE => f.pad(&format!("{}:{phase}", self.name())),
            _ => f.pad(self.name()),
        }
    }
}

impl FromStr for Verdict {
    type Err = NoVerdict;

    fn from_str(text: &str) -> Result<Self, NoVerdict> {
        let no = || NoVerdict(text.to_owned());
        if let Some((name, phase)) = text.split_once(':') {
            let phase = Phase::from_name(phase).ok_or_else(no)?;
            return if name == "guest-lost" { Ok(Self::GuestLost(phase)) } else { Err(no()) };
        }
        Self::ALL.into_iter().find(|verdict| verdict.name() == text).ok_or_else(no)
    }
}

impl From<Verdict> for String {
    fn from(verdict: Verdict) -> Self {
        verdict.to_string()
    }
}

impl TryFrom<String> for Verdict {
    type Error = NoVerdict;

    fn try_from(text: String) -> Result<Self, NoVerdict> {
        text.parse()
    }
}

/// What a plan expects: any of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Expected {
    #[default]
    Anything,
    One(Verdict),
    OneOf(Vec<Verdict>),
}

impl Expected {
    /// Whether a verdict is as expected. A guest that is lost without a phase is lost in any.
    pub fn allows(&self, verdict: Verdict) -> bool {
        let is = |expected: &Verdict| {
            *expected == verdict
                || *expected == Verdict::GuestLost(Phase::NONE) && matches!(verdict, Verdict::GuestLost(_))
        };
        match self {
            Self::Anything => true,
            Self::One(expected) => is(expected),
            Self::OneOf(expected) => expected.iter().any(is),
        }
    }

    /// Whether the plan says nothing.
    pub fn is_open(&self) -> bool {
        *self == Self::Anything
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names =
            |verdicts: &[Verdict]| verdicts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        match self {
            Self::Anything => f.write_str("anything"),
            Self::One(verdict) => write!(f, "{verdict}"),
            Self::OneOf(verdicts) => f.write_str(&names(verdicts)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_counts() {
        use Verdict::*;
        assert!(Verdict::ALL.is_sorted());
        assert_eq!(Masked.or_worse(TwoRunning), TwoRunning);
        assert_eq!(Detected.or_worse(GuestVisible), GuestVisible);
        assert_eq!(Unknown.or_worse(Masked), Unknown, "what cannot be judged is not masked");
        assert_eq!(Hang.or_worse(GuestLost(Phase::STATE)), GuestLost(Phase::STATE));
    }

    #[test]
    fn text_goes_both_ways() {
        for verdict in Verdict::ALL.into_iter().chain([Verdict::GuestLost(Phase::HAND_OVER)]) {
            assert_eq!(verdict.to_string().parse(), Ok(verdict));
        }
        for bad in ["", "lost", "masked:state", "guest-lost:soon"] {
            assert!(bad.parse::<Verdict>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plan_may_expect_one_of_several() {
        let lost = Expected::One(Verdict::GuestLost(Phase::NONE));
        assert!(lost.allows(Verdict::GuestLost(Phase::STATE)) && !lost.allows(Verdict::Hang));
        let exact = Expected::One(Verdict::GuestLost(Phase::STATE));
        assert!(!exact.allows(Verdict::GuestLost(Phase::STOP)));
        assert!(Expected::OneOf(vec![Verdict::Hang, Verdict::Masked]).allows(Verdict::Masked));
        assert!(Expected::Anything.allows(Verdict::TwoRunning));
    }
}
