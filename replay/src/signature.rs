//! What makes two divergences the same one: what differs and at which instruction, not how late or after how many exits.

use crate::report::Divergence;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// A divergence's name, equal in all runs that show it. As text: `WHAT@RIP`, as in `outcome:#PF(0x9)>none@0x1004a2`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Signature {
    what: String,
    rip: u64,
}

/// The text is no signature.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a divergence's signature (WHAT@0xRIP)")]
pub struct NotASignature(String);

impl Signature {
    /// The signature of a difference at an instruction. Spaces become dashes: a signature is one word of a command line.
    pub fn new(what: &str, rip: u64) -> Self {
        Self { what: what.replace(char::is_whitespace, "-"), rip }
    }

    pub fn of(divergence: &Divergence) -> Self {
        divergence.signature.clone()
    }

    /// What differs, without the place.
    pub fn what(&self) -> &str {
        &self.what
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:#x}", self.what, self.rip)
    }
}

impl FromStr for Signature {
    type Err = NotASignature;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = || {
            let (what, rip) = text.rsplit_once('@')?;
            let rip = u64::from_str_radix(rip.strip_prefix("0x")?, 16).ok()?;
            (!what.is_empty() && !what.contains(char::is_whitespace)).then(|| Self { what: what.into(), rip })
        };
        parsed().ok_or_else(|| NotASignature(text.to_owned()))
    }
}

impl From<Signature> for String {
    fn from(signature: Signature) -> Self {
        signature.to_string()
    }
}

impl TryFrom<String> for Signature {
    type Error = NotASignature;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_both_ways() {
        let signature = Signature::new("vCPU 0 CR2", 0x10_04a2);
        assert_eq!(signature.to_string(), "vCPU-0-CR2@0x1004a2");
        assert_eq!(signature.to_string().parse(), Ok(signature));
        for bad in ["", "@0x1", "what@12", "two words@0x1", "what"] {
            assert_eq!(bad.parse::<Signature>(), Err(NotASignature(bad.into())), "{bad}");
        }
    }
}
