//! THE catalogue of causes: why two machines differ, in one sentence with its source.
//!
//! A cause is found in three ways. [`trial`] runs a side again with one thing changed (a switch of its plugin's tables, a
//! property of its host); if the difference is gone, that thing is the cause. [`configuration`] finds what is the only
//! thing that differs. [`catalogue`] knows causes by what they do to a walk, which says why in words, and is all there is
//! where nothing can be run again. [`supported`] takes tables of KVM_GET_SUPPORTED_CPUID apart.

pub mod catalogue;
pub mod configuration;
mod hosts;
pub mod supported;
pub mod trial;

use crate::{
    across::Sides,
    explain::{Outcome, Widths},
    observer::{Entry, Observation},
    state::Difference,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use vmtape_arch::host::Vendor;
use vmtape_traces::event::Control;

/// What kind of thing a cause is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A clause of a manual, which asks for the difference or allows it.
    Clause,
    /// Behaviour of a vendor's silicon that no manual promises.
    Silicon,
    /// What KVM does: a change that one of the two has and not the other, or a limit of it.
    Patch,
    /// The two machines were told different things: a parameter, a width, a CPUID, another ioctl.
    Configuration,
}

impl Kind {
    pub fn text(self) -> &'static str {
        match self {
            Self::Clause => "clause of the manuals",
            Self::Silicon => "silicon behaviour",
            Self::Patch => "KVM",
            Self::Configuration => "configuration",
        }
    }
}

/// Why two machines differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    pub kind: Kind,
    /// A short name: the catalogue's, or that of a switch as options spell it.
    pub name: String,
    pub sentence: String,
    /// Manual section, or KVM file, function and commit.
    pub source: String,
    /// What showed it: another run, with one thing changed, in which the difference is gone.
    pub confirmed: Option<String>,
}

impl Cause {
    /// A cause found by trial or elimination, in the catalogue's words where it has some.
    pub fn in_words_of(self, known: Option<Self>) -> Self {
        match known {
            // That two hosts differ says less than what follows from it.
            Some(known) if self.name.starts_with(hosts::HOST) => Self { confirmed: self.confirmed, ..known },
            Some(known) => Self {
                confirmed: Some(match self.confirmed {
                    Some(confirmed) => format!("{confirmed} ({})", self.sentence),
                    None => self.sentence,
                }),
                sentence: known.sentence,
                ..self
            },
            None => self,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name, self.kind.text(), self.sentence)
    }
}

/// Why two sides differ: by trial, else by elimination, in the catalogue's words where it has some. `cost`: the instructions
/// that a trial takes.
pub fn find(
    sides: &Sides,
    case: &Case,
    difference: Option<&Difference>,
    cost: u64,
    run: &mut trial::Run,
) -> Option<Cause> {
    let (known, switchable) = catalogue::look_up(case).unzip();
    if switchable == Some(false) {
        return known;
    }
    if let Some(Difference::Ioctl {
        expected: Control::GetSupportedCpuid { entries: expected, .. },
        actual: Control::GetSupportedCpuid { entries: actual, .. },
    }) = difference
    {
        return supported::find(sides, expected, actual);
    }
    // That two machines differ in one thing explains an ioctl's answer; what a guest notices has to be understood as well.
    let ioctl = matches!(difference, Some(Difference::Ioctl { .. }));
    let only = || {
        let (expected, actual) = (&sides.expected, &sides.actual);
        let found = configuration::find(expected, actual, case.what);
        found
            .or_else(|| configuration::built_in(expected, actual, ioctl))
            .filter(|_| ioctl || known.is_some())
    };
    match trial::find(sides, cost, run).or_else(only) {
        Some(found) => Some(found.in_words_of(known)),
        None => known,
    }
}

/// What one side did about an instruction.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The side, for people.
    pub name: String,
    pub vendor: Vendor,
    pub widths: Widths,
    pub observations: Vec<Observation>,
    pub outcome: Outcome,
    /// The guest's entries for the address in question, as memory holds them.
    pub tables: Vec<Entry>,
}

/// An instruction about which two sides differ.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// What differs, as signatures have it.
    pub what: &'a str,
    /// The linear address that it is about.
    pub focus: Option<u64>,
    /// The bytes of the instruction, as far as they are known.
    pub insn: &'a [u8],
    pub expected: &'a Seen,
    pub actual: &'a Seen,
}
