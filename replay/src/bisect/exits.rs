//! Axis `exits` with one tape: the first exit at which another configuration differs, in one lockstep pass.

use super::{Bench, Finding, search::Mark};
use crate::{Error, report::Divergence};
use vmtape_machine::MachineSpec;

pub const AXIS: &str = "exits";

pub fn bisect(bench: &mut Bench, actual: MachineSpec, options: &str) -> Result<Finding, Error> {
    let what = actual.backend.clone();
    Ok(match bench.test(&what, actual)? {
        Mark::Bad => {
            let divergence = bench.bad.as_ref().and_then(|(_, divergence)| divergence.as_ref());
            let line = divergence.map_or_else(String::new, line);
            bench.found(AXIS, line, options)?
        }
        Mark::Good => bench.nothing(AXIS, "no exit differs"),
        Mark::Skip => {
            let why = bench.trials.last().map_or(String::new(), |trial| trial.shows.clone());
            return Err(Error::Other(why));
        }
    })
}

/// A divergence's place and what it is.
pub fn line(divergence: &Divergence) -> String {
    let place = match divergence.expected_exit.or(divergence.actual_exit) {
        Some(exit) => format!("exit {exit}"),
        None => format!("instruction {}", divergence.icount),
    };
    // What exits::replay says begins with the place already.
    let summary = divergence.summary.strip_prefix(&format!("{place}: ")).unwrap_or(&divergence.summary);
    format!("first bad: {place} at rip {:#x}: {summary}", divergence.rip)
}
