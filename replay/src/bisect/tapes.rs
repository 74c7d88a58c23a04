//! Axis `exits` with two tapes: where they part, in O(log n) reads.
//!
//! A tape has hashes over its guest's whole state, and its index says at which instruction each chunk starts. Two runs
//! that were equal up to an instruction have equal hashes there; so the chunk in which they part is found by halving,
//! with one chunk of each tape read per step. Only that chunk is then compared exit by exit.

use super::{
    Finding, Trial,
    exits::AXIS,
    search::{Mark, turn},
};
use crate::{Error, exits::Seen, report::Verdict, signature::Signature, spec, text};
use vmtape_traces::{Event, ExitGroup, Exits, Tape, reader::Events};

/// A state hash and where the run was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hash {
    icount: u64,
    exits: u64,
    hash: u64,
}

/// Two tapes, and what was read of them.
struct Search<'t> {
    expected: &'t Tape,
    actual: &'t Tape,
    /// The chunks of events of the first tape.
    chunks: Vec<usize>,
    reads: u64,
    trials: Vec<Trial>,
    /// The latest state in which both tapes were equal, and the earliest in which they were not: the first tape's, then the
    /// second tape's.
    good: Option<(Hash, Hash)>,
    bad: Option<(Hash, Hash)>,
}

/// Exits that differ.
struct Parted {
    expected: Option<ExitGroup>,
    actual: Option<ExitGroup>,
    rows: (String, String),
}

pub fn bisect(expected: &Tape, actual: &Tape) -> Result<Finding, Error> {
    let alike = spec::machine(expected)?.backend == spec::machine(actual)?.backend;
    let mut search = Search::new(expected, actual);
    if !search.by_hashes()? {
        if !alike {
            return Err(Error::Other(
                "the tapes have no state hashes at common instructions (`vmtape diff` compares what is on them)".into(),
            ));
        }
        let Some(chunk) = search.by_bytes()? else { return Ok(search.finding(None)) };
        return search.part_at(chunk);
    }
    let Some((bad, _)) = search.bad else { return Ok(search.finding(None)) };
    let (a, b) = search.good.map_or((0, 0), |(a, b)| (a.exits, b.exits));
    let mut pairs = (expected.exits_from(a)?, actual.exits_from(b)?);
    let parted = if alike {
        first_unequal(&mut pairs.0, &mut pairs.1)?
    } else {
        first_seen(&mut pairs.0, &mut pairs.1, bad.icount)?
    };
    Ok(search.finding(parted))
}

impl<'t> Search<'t> {
    fn new(expected: &'t Tape, actual: &'t Tape) -> Self {
        let chunks = (0..expected.chunks().len()).filter(|n| expected.chunks()[*n].events != 0).collect();
        Self { expected, actual, chunks, reads: 0, trials: Vec::new(), good: None, bad: None }
    }

    /// Halves the row of chunks by their last state hashes. False: the tapes have no hashes in common.
    fn by_hashes(&mut self) -> Result<bool, Error> {
        let last = self.chunks.len() as u64;
        if self.test(last)? == Mark::Good {
            return Ok(true);
        }
        turn(0, last, |n| self.test(n))?;
        Ok(self.good.is_some() || self.bad.is_some())
    }

    /// Compares the states at the end of the first `n` chunks.
    fn test(&mut self, n: u64) -> Result<Mark, Error> {
        let Some(chunk) = n.checked_sub(1).map(|n| self.chunks[n as usize]) else { return Ok(Mark::Good) };
        self.reads += 1;
        let Some(ours) = hashes(self.expected.events_of(chunk))?.pop() else { return Ok(Mark::Skip) };
        let theirs = self.hash_at(ours.icount)?;
        let what = format!("the state after {} instructions ({} exits)", ours.icount, ours.exits);
        let (mark, shows) = match theirs {
            Some(theirs) if theirs.hash == ours.hash => (Mark::Good, "equal"),
            Some(_) => (Mark::Bad, "differs"),
            None if self.actual.totals()?.icount < ours.icount => {
                (Mark::Bad, "the other run is over by then")
            }
            None => (Mark::Skip, "the other tape has no hash there"),
        };
        self.trials.push(Trial { what, mark, shows: shows.into() });
        match (mark, theirs) {
            (Mark::Good, Some(theirs)) => self.good = Some((ours, theirs)),
            (Mark::Bad, theirs) => self.bad = Some((ours, theirs.unwrap_or(ours))),
            _ => {}
        }
        Ok(mark)
    }

    /// The other tape's hash at an instruction count.
    fn hash_at(&mut self, icount: u64) -> Result<Option<Hash>, Error> {
        let chunks = self.actual.chunks();
        let after = chunks.partition_point(|chunk| chunk.first_icount <= icount);
        // The chunk that ends with the hash may be followed by one that starts at the same instruction.
        let candidates = (0..after).rev().filter(|n| chunks[*n].events != 0).take(2);
        for chunk in candidates {
            self.reads += 1;
            let found = hashes(self.actual.events_of(chunk))?.into_iter().rfind(|hash| hash.icount == icount);
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The first chunk whose bytes differ: equal runs of one backend give equal bytes.
    fn by_bytes(&mut self) -> Result<Option<usize>, Error> {
        for &chunk in &self.chunks {
            self.reads += 2;
            let same = self.actual.chunks().get(chunk).is_some_and(|other| {
                let ours = &self.expected.chunks()[chunk];
                (ours.first_exit, ours.first_icount, ours.events)
                    == (other.first_exit, other.first_icount, other.events)
            });
            if !same || self.expected.stored_bytes(chunk)? != self.actual.stored_bytes(chunk)? {
                return Ok(Some(chunk));
            }
        }
        let more = self.actual.chunks().iter().filter(|chunk| chunk.events != 0).count() > self.chunks.len();
        Ok(more.then_some(self.chunks.len()))
    }

    /// Where the tapes part, from a chunk on.
    fn part_at(&self, chunk: usize) -> Result<Finding, Error> {
        let exits = |tape: &'t Tape| -> Exits<Events<'t>> {
            let first = tape.chunks().get(chunk).map_or(0, |chunk| chunk.first_exit);
            Exits::new(tape.events_from(chunk), first)
        };
        let parted = first_unequal(&mut exits(self.expected), &mut exits(self.actual))?;
        Ok(self.finding(parted))
    }

    fn finding(&self, parted: Option<Parted>) -> Finding {
        let differs = parted.is_some() || self.bad.is_some();
        let mut finding = Finding::same(AXIS, "the tapes do not part");
        finding.trials.clone_from(&self.trials);
        let chunks = self.expected.chunks().len() + self.actual.chunks().len();
        finding.notes.push(format!("{} of {chunks} chunks read", self.reads));
        if !differs {
            return finding;
        }
        finding.verdict = Verdict::Different;
        let state = |pair: Option<(Hash, Hash)>| pair.map_or((0, 0), |(ours, _)| (ours.icount, ours.exits));
        let ((good, first), (bad, last)) = (state(self.good), state(self.bad));
        if self.bad.is_some() {
            finding
                .notes
                .push(format!("the guests are equal after {good} instructions and differ after {bad}"));
        }
        let Some(parted) = parted else {
            finding.line =
                format!("first bad: exit {first} or one up to {last}: silicon alone made the difference");
            return finding;
        };
        let group = parted.expected.as_ref().or(parted.actual.as_ref());
        let (number, rip) = group.map_or((0, 0), |group| (group.number, group.exit.rip));
        let (ours, theirs) = &parted.rows;
        finding.line = format!("first bad: exit {number} at rip {rip:#x}: {theirs} instead of {ours}");
        finding.signature = Some(Signature::new(&format!("exit:{ours}>{theirs}"), rip));
        finding.reproduce = format!("vmtape diff {} {}", self.expected.name(), self.actual.name());
        finding
    }
}

/// The state hashes among events.
fn hashes(events: Events) -> Result<Vec<Hash>, Error> {
    let mut found = Vec::new();
    for event in events {
        if let Event::StateHash { icount, exits, hash } = event? {
            found.push(Hash { icount, exits, hash });
        }
    }
    Ok(found)
}

/// The first exit that is not the same on both tapes, in anything.
fn first_unequal(
    expected: &mut Exits<Events<'_>>,
    actual: &mut Exits<Events<'_>>,
) -> Result<Option<Parted>, Error> {
    loop {
        let (a, b) = (expected.next().transpose()?, actual.next().transpose()?);
        let lines = |group: &Option<ExitGroup>| match group {
            Some(group) => text::group_lines(group),
            None => vec!["the run is over".to_owned()],
        };
        let same = |a: &ExitGroup, b: &ExitGroup| {
            ExitGroup { number: 0, ..a.clone() } == ExitGroup { number: 0, ..b.clone() }
        };
        match (&a, &b) {
            (None, None) => return Ok(None),
            (Some(a), Some(b)) if same(a, b) => {}
            _ => {
                let (ours, theirs) = (lines(&a), lines(&b));
                let at = ours
                    .iter()
                    .zip(&theirs)
                    .position(|(a, b)| a != b)
                    .unwrap_or(ours.len().min(theirs.len()));
                let line = |lines: &[String]| {
                    lines.get(at).map_or("nothing".to_owned(), |line| line.trim().to_owned())
                };
                return Ok(Some(Parted { rows: (line(&ours), line(&theirs)), expected: a, actual: b }));
            }
        }
    }
}

/// The first exits at one instruction in which the guests of two backends see something else, up to an instruction count.
fn first_seen(
    expected: &mut Exits<Events<'_>>,
    actual: &mut Exits<Events<'_>>,
    until: u64,
) -> Result<Option<Parted>, Error> {
    let seen = |group: &ExitGroup| -> Vec<String> {
        group.notes.iter().filter_map(Seen::of).map(|seen| seen.text()).collect()
    };
    let (mut a, mut b) = (expected.next().transpose()?, actual.next().transpose()?);
    while let (Some(ours), Some(theirs)) = (&a, &b) {
        let at = |group: &ExitGroup| (group.exit.icount, group.exit.vcpu);
        if ours.exit.icount.min(theirs.exit.icount) > until {
            break;
        }
        match at(ours).cmp(&at(theirs)) {
            std::cmp::Ordering::Less => a = expected.next().transpose()?,
            std::cmp::Ordering::Greater => b = actual.next().transpose()?,
            std::cmp::Ordering::Equal => {
                let (x, y) = (seen(ours), seen(theirs));
                if !x.is_empty() && !y.is_empty() && x != y {
                    return Ok(Some(Parted { rows: (x.join("; "), y.join("; ")), expected: a, actual: b }));
                }
                (a, b) = (expected.next().transpose()?, actual.next().transpose()?);
            }
        }
    }
    Ok(None)
}
