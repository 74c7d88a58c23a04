//! What a cause is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How names of a host's properties begin.
pub const HOST: &str = "host: ";

/// What kind of thing a cause is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
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
            Some(known) if self.name.starts_with(HOST) => Self { confirmed: self.confirmed, ..known },
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
