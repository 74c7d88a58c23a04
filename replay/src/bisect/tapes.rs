//! Axis `exits` with two tapes: where they part, by binary search over what their indexes hold.
//!
//! Milestones hash what a guest could observe and every milestone before: two tapes of a guest have the same ones up to
//! where it was treated otherwise, under whatever backends. Digests do the same for the events of one kind of backend.
//! Only the chunks around the first difference are read, and compared exit by exit.

use super::{Finding, Trial, exits::AXIS, search::Mark};
use crate::{
    Error,
    aligned::{Aligned, AllExits},
    report::Verdict,
    seen::Seen,
    signature::Signature,
    spec, text,
};
use vmtape_machine::MachineSpec;
use vmtape_traces::{ExitGroup, Tape, event::Milestone};

/// An exit at which the tapes part, as each of them has it.
struct Parted {
    number: u64,
    rip: u64,
    /// What differs in a word, and how it is on both sides.
    what: String,
    expected: String,
    actual: String,
}

/// What two tapes can be compared in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// In every event.
    Same,
    /// One kind of backend, but what an exit's reader is told of registers and memory follows other checkpoints.
    Alike,
    /// Two kinds of backends: in what the guests saw.
    Unlike,
}

pub fn bisect(expected: &Tape, actual: &Tape) -> Result<Finding, Error> {
    let (a, b) = (spec::machine(expected)?, spec::machine(actual)?);
    let pace = |machine: &MachineSpec| (machine.checkpoint_every, machine.milestone_every);
    let kind = match a.backend == b.backend {
        true if pace(&a) == pace(&b) => Kind::Same,
        true => Kind::Alike,
        false => Kind::Unlike,
    };
    let alike = kind != Kind::Unlike;
    let (good, bad) = expected.alike_until(actual);
    let searched = good.is_some() || bad.is_some();
    if !searched && !alike {
        return Err(Error::Other(
            "the tapes have no milestones in common, by which tapes of two kinds of backends are searched \
             (`vmtape diff` compares what is on them)"
                .into(),
        ));
    }
    let chunk = expected.first_difference(actual);
    let over = chunk >= expected.chunks().len() && chunk >= actual.chunks().len();
    let parted = match (kind, good) {
        (Kind::Same, _) if over => None,
        // All before the chunk is equal on both tapes.
        (Kind::Same, None) => {
            let from = |tape| AllExits::from_chunk(tape, chunk);
            part(Aligned { expected: from(expected)?, actual: from(actual)? }, kind, bad)?
        }
        _ => {
            let from = |tape| AllExits::from_icount(tape, good.map_or(0, |good| good.icount));
            part(Aligned { expected: from(expected)?, actual: from(actual)? }, kind, bad)?
        }
    };
    let longer = expected.totals()?.icount != actual.totals()?.icount;
    if parted.is_none() && bad.is_none() && !longer {
        let mut found = Finding::same(AXIS, "the tapes do not part");
        if !alike {
            // A difference may come and go between two milestones.
            found.verdict = Verdict::Unknown;
            found.notes.push(
                "that is not certain: between milestones only what both guests saw at their exits is compared \
                 (`vmtape replay` compares all)"
                    .into(),
            );
        }
        return Ok(finding(found, expected, (good, bad)));
    }
    let mut found = Finding::same(AXIS, "");
    found.verdict = Verdict::Different;
    found.reproduce = format!("vmtape diff {} {}", expected.name(), actual.name());
    if bad.is_none() && searched {
        found
            .notes
            .push("what the guests could observe is the same up to the last milestone in common".into());
    }
    match parted {
        Some(Parted { number, rip, what, expected, actual }) => {
            found.line = format!("first bad: exit {number} at rip {rip:#x}: {actual} instead of {expected}");
            found.signature = Some(Signature::new(&what, rip));
        }
        None => {
            let exits =
                |milestone: Option<Milestone>, end| milestone.map_or(end, |milestone| milestone.exits);
            let (first, last) = (exits(good, 0), exits(bad, expected.totals()?.exits));
            found.line =
                format!("first bad: between exits {first} and {last}, without an exit that both have");
            found.reproduce = format!("vmtape replay {} -b {} --host {}", expected.name(), b.backend, b.host);
        }
    }
    Ok(finding(found, expected, (good, bad)))
}

/// The evidence: the milestones between which the guests part.
fn finding(mut found: Finding, tape: &Tape, (good, bad): (Option<Milestone>, Option<Milestone>)) -> Finding {
    let trial = |mark, milestone: Milestone| Trial {
        what: format!("the guest after {} instructions and {} exits", milestone.icount, milestone.exits),
        mark,
        shows: if mark == Mark::Good { "same" } else { "different" }.to_owned(),
    };
    found.trials.extend(good.map(|good| trial(Mark::Good, good)));
    found.trials.extend(bad.map(|bad| trial(Mark::Bad, bad)));
    found.notes.push(match good.is_some() || bad.is_some() {
        true => format!("searched {} milestones", tape.milestones().len()),
        false => format!("no milestones in common; searched the digests of {} chunks", tape.chunks().len()),
    });
    found
}

/// The first difference before a milestone.
fn part(
    mut pairs: Aligned<AllExits<'_>>,
    kind: Kind,
    bad: Option<Milestone>,
) -> Result<Option<Parted>, Error> {
    let until = bad.map_or(u64::MAX, |bad| bad.icount);
    while pairs.icount().is_some_and(|icount| icount < until) {
        let [ours, theirs] = pairs.advance()?;
        let parted = match kind {
            Kind::Unlike => seen_otherwise(ours.as_ref(), theirs.as_ref()),
            kind => unequal(ours.as_ref(), theirs.as_ref(), kind),
        };
        if parted.is_some() {
            return Ok(parted);
        }
    }
    Ok(None)
}

/// Two exits of one kind of backend at one moment, if anything differs.
fn unequal(expected: Option<&ExitGroup>, actual: Option<&ExitGroup>, kind: Kind) -> Option<Parted> {
    let bare = |group: &ExitGroup| {
        // Entries are compared with the exit of their own vCPU.
        let mut bare = ExitGroup { number: 0, others: Vec::new(), earlier: (0, 0), ..group.clone() };
        if kind == Kind::Alike {
            (bare.registers, bare.reads) = (Vec::new(), Vec::new());
        }
        bare
    };
    if expected.map(bare) == actual.map(bare) {
        return None;
    }
    let (ours, theirs) = (lines(expected), lines(actual));
    let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    let at = differs.unwrap_or(ours.len().min(theirs.len()));
    let line = |lines: &[String], group: Option<&ExitGroup>| match lines.get(at) {
        Some(line) => line.trim().to_owned(),
        // Nothing is printed of what else an exit's group holds.
        None if differs.is_none() && ours == theirs => {
            let told = group.map(|group| (&group.registers, &group.reads));
            format!("registers and memory {told:x?}")
        }
        None => "nothing".to_owned(),
    };
    let word = |line: &str| line.split([' ', ':']).next().unwrap_or_default().to_owned();
    let (ours, theirs) = (line(&ours, expected), line(&theirs, actual));
    let what = format!("exit:{}>{}", word(&ours), word(&theirs));
    Some(parted(expected.or(actual)?, what, ours.clone(), theirs.clone()))
}

/// Two exits of different kinds at one moment, if the guest saw something on both sides, and something else.
fn seen_otherwise(expected: Option<&ExitGroup>, actual: Option<&ExitGroup>) -> Option<Parted> {
    let seen = |group: &ExitGroup| -> Vec<String> {
        group.notes.iter().filter_map(Seen::of).map(|seen| seen.text().to_owned()).collect()
    };
    let (ours, theirs) = (seen(expected?), seen(actual?));
    if ours.is_empty() || theirs.is_empty() || ours == theirs {
        return None;
    }
    Some(parted(expected?, "what-the-guest-sees".into(), ours.join("; "), theirs.join("; ")))
}

fn parted(group: &ExitGroup, what: String, expected: String, actual: String) -> Parted {
    Parted { number: group.number, rip: group.exit.rip, what, expected, actual }
}

/// An exit and its notes, without its number and time.
fn lines(group: Option<&ExitGroup>) -> Vec<String> {
    let Some(group) = group else { return vec!["no exit".to_owned()] };
    let exit = &group.exit.exit;
    let mut lines = text::group_lines(group);
    if let Some(first) = lines.first_mut() {
        *first = format!("{} (info1 {:#x}, info2 {:#x})", text::reason(exit), exit.info1, exit.info2);
    }
    lines
}
