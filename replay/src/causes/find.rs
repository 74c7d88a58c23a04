//! The cause of a difference, in whichever way it is found.

use super::{
    case::Case,
    catalogue,
    cause::Cause,
    configuration, supported,
    trial::{self, Run},
};
use crate::{sides::Sides, state::Difference};
use vmtape_traces::event::Control;

/// Why two sides differ: by trial, else by elimination, in the catalogue's words where it has some. `cost`: the instructions
/// that a trial takes.
pub fn find(
    sides: &Sides,
    case: &Case,
    difference: Option<&Difference>,
    cost: u64,
    run: &mut Run,
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
