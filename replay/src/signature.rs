//! What makes two divergences the same one: what differs and at which instruction, not how late or after how many exits.
//!
//! A divergence has one signature, whichever way it is seen: the guest running again, its taped exits fed, or two tapes. All
//! of them name alike what the guest takes (`outcome:`), what ioctls give (`ioctl:`, at no instruction), and events of a
//! machine that no longer repeats itself (`EVENT>EVENT`); the first two also what silicon and KVM leave in the guest's paging
//! entries (`entry:`). What they cannot all see:
//!
//! - What comes without an exit on the tape, an exception that silicon raises by itself or a register that an instruction
//!   sets, is on no tape: there the first divergence is a later one with a name of its own, or none.
//! - Accessed and dirty bits of an access that goes on natively are set after its exit, so fed exits do not compare them.
//!   Two tapes do not tell where entries lie, and go by the outcome.
//! - Notes tell what a device answered, not which register or memory it went to, by which a run is named: without a run it is
//!   `seen:NOTE>NOTE`.
//! - What the guest does between its exits only a run compares ([`crate::native`]).

use crate::{explain::Outcome, state::Difference};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// A divergence's name, equal in all runs that show it. As text: `WHAT@RIP`, as in `outcome:#PF(0x9)>none@0x1004a2`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Signature {
    what: String,
    rip: u64,
}

/// The place of a divergence that is at no instruction: an ioctl is the VMM's.
pub const NOWHERE: u64 = 0;

/// What differs about an instruction, as signatures have it and in a sentence; `differences`: the most telling first. What
/// silicon leaves in an entry that is illegal for the guest says most, unless the access just completes; then what the guest
/// takes.
pub fn what(
    differences: &[Difference],
    expected: &Outcome,
    actual: &Outcome,
    guest_width: u8,
) -> (String, String) {
    let first = differences.first();
    if let Some(ioctl @ Difference::Ioctl { .. }) = first {
        return (ioctl.name(), ioctl.text());
    }
    let completes = [expected, actual].contains(&&Outcome::Completes);
    let illegal = first.is_some_and(|difference| difference.is_illegal_entry(guest_width) && !completes);
    if !illegal && expected.word() != actual.word() {
        let what = format!("outcome:{}>{}", expected.word(), actual.word());
        return (what, format!("{actual}; expected: {expected}"));
    }
    let text = |difference: &Difference| difference.accessed_dirty().unwrap_or_else(|| difference.text());
    first.map(|difference| (difference.name(), text(difference))).unwrap_or_default()
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
