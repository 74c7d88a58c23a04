//! What a comparison found.

pub use crate::row::Row;

use crate::{
    causes::{Cause, Kind},
    explain::Story,
    islands::Alignment,
    signature::Signature,
};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;
use vmtape_traces::hex;

/// The answer to "same or not", by which the program's exit code goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything was compared, and nothing differs.
    Same,
    Different,
    /// Nothing differs of what was compared, but not everything could be: [`Report::unknown`] says what.
    Unknown,
    /// Nothing could be compared, so there is nothing to judge by.
    Nothing,
}

/// Where a difference shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Registers, memory, exceptions, CPUID and MSR values, device accesses: a divergence.
    GuestVisible,
    /// What ioctls give the VMM.
    VmmVisible,
    /// Which exits, how many, with which qualification.
    HostVisible,
}

/// What kind of difference it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The manuals ask for it or leave it open.
    Architecture,
    /// Known behaviour of a vendor's silicon, named by a rule.
    Silicon,
    /// Known behaviour of KVM in this profile, named by a patch.
    Kvm,
    /// The machines were told different things.
    Configuration,
    Unexplained,
}

impl Class {
    /// The class of a cause.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Clause => Self::Architecture,
            Kind::Silicon => Self::Silicon,
            Kind::Patch => Self::Kvm,
            Kind::Configuration => Self::Configuration,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Self::Architecture => "as the manuals say",
            Self::Silicon => "known silicon behaviour",
            Self::Kvm => "known KVM behaviour of this profile",
            Self::Configuration => "configured otherwise",
            Self::Unexplained => "unexplained",
        }
    }
}

/// A rule of a backend's table that decided an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Rule {
    pub id: u32,
    pub backend: String,
    pub name: String,
    pub text: String,
    pub source: String,
}

/// The first difference, with what is needed to understand and repeat it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Divergence {
    pub level: Level,
    pub class: Class,
    /// Its name, by which other runs are asked whether they show the same.
    pub signature: Signature,
    /// Out of the catalogue; `None`: unexplained.
    pub cause: Option<Cause>,
    pub summary: String,
    pub vcpu: u32,
    /// Instructions retired before the one that differs.
    pub icount: u64,
    #[serde(serialize_with = "hex::word")]
    #[schemars(with = "String")]
    pub rip: u64,
    /// Where a guest's guest ran: its level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nested: Option<String>,
    /// Number of the exit on each side, where there is one.
    pub expected_exit: Option<u64>,
    pub actual_exit: Option<u64>,
    pub rows: Vec<Row>,
    /// What each side did, expected and actual: page walks, exits, what was injected.
    pub stories: Vec<Story>,
    pub expected_context: Vec<String>,
    pub actual_context: Vec<String>,
    pub rules: Vec<Rule>,
    /// Command line that shows it again.
    pub reproduce: String,
}

impl Divergence {
    /// The entry of a walk on which it hangs, on each side that has one that the other has not: the side's name, and the line.
    pub fn deciding(&self) -> Vec<(&str, &str)> {
        let [expected, actual] = &self.stories[..] else { return Vec::new() };
        let pairs = [(expected, actual), (actual, expected)];
        pairs.into_iter().filter_map(|(side, other)| Some((&*side.side, side.deciding(other)?))).collect()
    }
}

/// A divergence of a comparison that goes on after it, and how often it is there.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Occurrence {
    /// Where it is for the first time.
    pub divergence: Divergence,
    pub times: u64,
}

/// How often one exit reason was taken on each side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Cost {
    pub expected: u64,
    pub actual: u64,
}

/// How much was compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Compared {
    pub instructions: u64,
    pub exits: u64,
    pub events: u64,
}

impl Compared {
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A comparison.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report {
    pub verdict: Verdict,
    /// How it was compared, in one sentence.
    pub method: String,
    pub expected: String,
    pub actual: String,
    pub compared: Compared,
    /// Differences that do not count, by exemption.
    pub exempted: BTreeMap<&'static str, u64>,
    /// What could not be decided, by reason: counted, never guessed.
    pub unknown: BTreeMap<String, u64>,
    /// What would decide what is unknown, where something would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled_by: Option<&'static str>,
    pub divergence: Option<Divergence>,
    /// All of them, each signature once, where the comparison went on after the first one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub occurrences: Vec<Occurrence>,
    /// Where a comparison went on after differences: how much of both sides is the same, and the stretches that are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment: Option<Alignment>,
    /// Questions of the VMM that got other answers.
    pub answers: Vec<Row>,
    /// Exits by reason, expected and actual, where the two sides take different ones.
    pub cost: BTreeMap<String, Cost>,
    pub expected_end: Option<String>,
    pub actual_end: Option<String>,
}

impl Report {
    /// A report of a comparison that has not begun.
    pub fn new(method: impl Into<String>, expected: impl Into<String>, actual: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Nothing,
            method: method.into(),
            expected: expected.into(),
            actual: actual.into(),
            compared: Compared::default(),
            exempted: BTreeMap::new(),
            unknown: BTreeMap::new(),
            settled_by: None,
            divergence: None,
            occurrences: Vec::new(),
            alignment: None,
            answers: Vec::new(),
            cost: BTreeMap::new(),
            expected_end: None,
            actual_end: None,
        }
    }

    /// Records the first difference; a guest-visible one decides the verdict.
    pub fn diverge(&mut self, divergence: Divergence) {
        self.verdict = Verdict::Different;
        self.divergence.get_or_insert(divergence);
    }

    /// The comparison is over. Without a difference the verdict goes by how much of it could be compared.
    pub fn conclude(&mut self) {
        self.verdict = match () {
            () if self.divergence.is_some() => Verdict::Different,
            () if self.compared.is_nothing() => Verdict::Nothing,
            () if !self.unknown.is_empty() => Verdict::Unknown,
            () => Verdict::Same,
        };
    }

    /// Counts what could not be decided.
    pub fn leave_open(&mut self, what: impl Into<String>, count: u64) {
        if count > 0 {
            *self.unknown.entry(what.into()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_verdict_over_nothing() {
        let mut report = Report::new("", "", "");
        assert_eq!(report.verdict, Verdict::Nothing, "before the comparison");
        report.conclude();
        assert_eq!(report.verdict, Verdict::Nothing);
        report.compared.events = 1;
        report.conclude();
        assert_eq!(report.verdict, Verdict::Same);
    }

    #[test]
    fn what_is_unknown_is_not_the_same() {
        let mut report = Report::new("", "", "");
        report.compared.exits = 1;
        report.leave_open("instructions", 0);
        report.conclude();
        assert_eq!(report.verdict, Verdict::Same);
        report.leave_open("instructions", 1);
        report.conclude();
        assert_eq!(report.verdict, Verdict::Unknown);
    }
}
