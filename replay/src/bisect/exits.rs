//! Axis `exits` with one tape: the first exit at which another configuration differs, in one lockstep pass.

use super::{Bench, Finding, search::Mark};
use crate::{Error, report::Divergence};
use vmtape_machine::MachineSpec;
use vmtape_traces::Tape;

pub const AXIS: &str = "exits";

pub fn bisect(bench: &mut Bench, actual: MachineSpec, options: &str) -> Result<Finding, Error> {
    let what = actual.backend.clone();
    bench.only = true;
    Ok(match bench.test(&what, actual)? {
        Mark::Bad => {
            let line = match bench.bad.as_ref().and_then(|(_, divergence)| divergence.as_ref()) {
                Some(divergence) => line(divergence, bench.tape)?,
                None => String::new(),
            };
            bench.found(AXIS, line, options)?
        }
        Mark::Good => bench.nothing(AXIS, "no exit differs"),
        Mark::Skip => {
            let why = bench.trials.last().map_or(String::new(), |trial| trial.shows.clone());
            return Err(Error::Other(why));
        }
    })
}

/// A divergence's place on the tape and what it is. Silicon may do without an exit what makes the difference.
fn line(divergence: &Divergence, tape: &Tape) -> Result<String, Error> {
    let exits = tape.events_from_icount(divergence.icount)?.clock().exits;
    let place = match divergence.expected_exit {
        Some(number) if number >= exits => format!("exit {number}"),
        _ => format!("no exit, after {} instructions and {exits} exits", divergence.icount),
    };
    // What exits::replay says begins with the place already.
    let summary = divergence.summary.strip_prefix(&format!("{place}: ")).unwrap_or(&divergence.summary);
    Ok(format!("first bad: {place}, at rip {:#x}: {summary}", divergence.rip))
}
