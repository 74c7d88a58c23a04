//! Axis `plugin`: the first of several builds of a backend that does not repeat the tape.

use super::{
    Bench, Finding, Pair,
    search::{Mark, turn},
};
use crate::{Error, player::Create};

const AXIS: &str = "plugin";

/// A build of the tape's backend.
pub struct Build<'a> {
    /// Its file, as the user named it.
    pub name: String,
    pub create: Create<'a>,
}

/// Searches builds in the order in which they were made.
pub fn bisect(bench: &mut Bench, builds: &[Build]) -> Result<Finding, Error> {
    let test = |bench: &mut Bench, n: usize| {
        let machine = bench.machine.clone();
        let pair = Pair { tape: None, expected: machine.clone(), actual: machine };
        bench.test_pair(&builds[n].name, pair, builds[n].create)
    };
    let Some(last) = builds.len().checked_sub(1) else {
        return Err(Error::Other("no builds were given".into()));
    };
    let no_end = |bench: &Bench, n: usize| {
        let why = bench.trials.last().map_or("", |trial| trial.shows.as_str());
        Error::Other(format!("{}: {why}", builds[n].name))
    };
    match test(bench, last)? {
        Mark::Good => return Ok(bench.nothing(AXIS, "the last build repeats the tape")),
        Mark::Skip => return Err(no_end(bench, last)),
        Mark::Bad => {}
    }
    let first = if last == 0 { Mark::Bad } else { test(bench, 0)? };
    match first {
        Mark::Good => {}
        Mark::Skip => return Err(no_end(bench, 0)),
        Mark::Bad => return bench.found(AXIS, format!("first bad: {}", builds[0].name), &option(&builds[0])),
    }
    let found = turn(0, last as u64, |n| test(bench, n as usize))?;
    let (before, first) = (found.last_good as usize, found.first_bad as usize);
    // A build that answers by chance would lead the search anywhere.
    for (n, mark) in [(before, Mark::Good), (first, Mark::Bad)] {
        if test(bench, n)? != mark {
            let name = &builds[n].name;
            return Err(Error::Other(format!(
                "{name}: two trials gave two answers: it is not deterministic"
            )));
        }
    }
    let mut finding =
        bench.found(AXIS, format!("first bad: {}", builds[first].name), &option(&builds[first]))?;
    finding.notes.push(format!("{} is the last good one", builds[before].name));
    let skipped = found.first_bad - found.last_good - 1;
    if skipped != 0 {
        finding.notes.push(format!("{skipped} builds between them could not be judged"));
    }
    Ok(finding)
}

fn option(build: &Build) -> String {
    format!("--plugin {}", build.name)
}
