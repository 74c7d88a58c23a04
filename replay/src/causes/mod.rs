//! THE catalogue of causes: why two machines differ, in one sentence with its source.
//!
//! A cause is found in two ways. [`trial`] runs a side again with one thing changed (a switch of its plugin's tables, a
//! property of its host); if the difference is gone, that thing is the cause. [`configuration`] finds what is the only
//! thing that differs. [`catalogue`] knows causes by what they do
//! to a walk, which says why in words, and is all there is where nothing can be run again.

pub mod catalogue;
pub mod configuration;
pub mod trial;

use crate::{
    explain::{Outcome, Widths},
    witness::{Deed, Entry},
};
use serde::{Deserialize, Serialize};
use std::fmt;
use vmtape_arch::host::Vendor;

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
    /// A cause found by trial, in the catalogue's words where it has some.
    pub fn in_words_of(self, known: Option<Self>) -> Self {
        match known {
            // That two hosts differ says less than what follows from it.
            Some(known) if self.name.starts_with(trial::HOST) => Self { confirmed: self.confirmed, ..known },
            Some(known) => Self {
                confirmed: self.confirmed.map(|confirmed| format!("{confirmed} ({})", self.sentence)),
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

/// What one side did about an instruction.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The side, for people.
    pub name: String,
    pub vendor: Vendor,
    pub widths: Widths,
    pub deeds: Vec<Deed>,
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
