//! What is asked for a cause.

use crate::{
    explain::{Outcome, Widths},
    observer::{Entry, Observation},
};
use vmtape_arch::host::Vendor;

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
