//! Exits without their guest: each taped exit is given to a backend's handlers, and what they do is compared.
//!
//! The tape's own machine (another build of its backend, maybe) gets the exit itself and must do the same about it, event by
//! event. For any other machine the stimulus is resolved again by its own silicon, which may take other exits or none; what
//! the guest and the VMM see of the outcome is compared. What depends on memory that the tape does not have, and everything
//! that the guest did between its exits ([`crate::native`]), is unknown: counted, never guessed.
//!
//! A comparison can go on after a difference: the tape's own machine replays beside the other one, which takes its registers
//! and memory whenever it did something else. What KVM keeps for itself stays the other machine's.

mod events;
mod explain;
mod found;
mod replayed;
mod view;

pub use replayed::Method;
pub use view::View;

use crate::{
    Error, exempt, native,
    report::{Class, Divergence, Level, Occurrence, Report},
    sides::Sides,
    state::{Difference, compare_controls},
    text,
};
use explain::{At, Last};
use found::{Found, taped};
use replayed::Replayed;
use vmtape_arch::note::Note;
use vmtape_traces::{ExitGroup, Metadata, Rest, Tape, ahead, event::Control};

/// Feeds the whole tape, or all of it up to the first difference.
pub fn replay(
    sides: &Sides,
    method: Method,
    report: &mut Report,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let replayed = Replayed::new(&sides.actual, sides, method, None)?;
    let mut feeder = Feeder {
        replayed,
        method,
        last: None,
        names: sides.tape.metadata().clone(),
        asked: None,
        found: Vec::new(),
        retired: 0,
        astray: false,
    };
    let reached = ahead::with_exits(sides.tape, 0, 0, |exits| -> Result<_, Error> {
        while let Some(group) = exits.next_exit()? {
            let retired = u64::from(native::retired(group));
            if feeder.take(group, report)? {
                report.compared.exits += 1;
                report.compared.events += group.notes.len() as u64;
                report.compared.instructions += retired;
            }
            feeder.retired += retired;
            if group.number.is_multiple_of(PROGRESS) {
                progress(group.number);
            }
            if !feeder.found.is_empty() && !method.go_on {
                return Ok(group.exit.icount);
            }
        }
        feeder.take_rest(sides, &exits.rest(), report)?;
        Ok(sides.tape.totals()?.icount)
    })?;
    match method.same {
        true => report.compared.instructions = reached,
        false => report.leave_open(native::UNKNOWN, reached.saturating_sub(feeder.retired)),
    }
    if report.unknown.keys().any(|what| what != MISSED) {
        report.settled_by = Some(native::SETTLED_BY);
    }
    // A question that is answered otherwise is a difference, but nothing follows from it.
    if feeder.found.is_empty() {
        feeder.found.extend(feeder.asked.take().map(|found| (found, 1)));
    }
    let mut last = feeder.last.map(|last| At::new(feeder.replayed, last, Vec::new()));
    for (n, (found, times)) in feeder.found.into_iter().enumerate() {
        let mut divergence = divergence(sides, &found)?;
        explain::explain(sides, method, &found, last.take(), &mut divergence)?;
        if method.go_on {
            report.occurrences.push(Occurrence { divergence: divergence.clone(), times });
        }
        if n == 0 {
            report.diverge(divergence);
        }
    }
    report.conclude();
    Ok(())
}

/// Exits between two signs of life.
const PROGRESS: u64 = 4096;
const UNKNOWN: &str = "exits whose handling reads memory or registers that the tape does not have";
const CUT: &str = "exits whose entry, with what it delivers, the tape ends before";
const WOKEN: &str = "entries after a halt that a device ended whose state the tape does not tell";
const UNORDERED: &str =
    "entries behind the last exit, where the tape does not tell which of them came before what the VMM did";
const NOT_TAKEN: &str = "exits that the other silicon does not take";
/// No exit tells them: the other silicon would have to walk what the tape does not have.
const TYPES: &str = "memory types of accesses that do not exit";
pub(crate) const MISSED: &str = "faults of the tape that the other machine does not reach";
/// Divergences of different signatures that are listed; more would each take runs of their own to explain.
const LISTED: usize = 16;

/// A machine on its way through a tape.
struct Feeder {
    replayed: Replayed,
    method: Method,
    last: Option<Last>,
    /// The tape's names for numbers.
    names: Metadata,
    /// The first question of the VMM that got another answer.
    asked: Option<Found>,
    /// The first divergence of each signature, and how often it was there.
    found: Vec<(Found, u64)>,
    /// Instructions of the tape that its exits' handling completed.
    retired: u64,
    /// Since the tape told last what all changes of registers make, an exit was unknown or different.
    astray: bool,
}

impl Feeder {
    /// Compares an exit. False: it is unknown.
    fn take(&mut self, group: &ExitGroup, report: &mut Report) -> Result<bool, Error> {
        let last = Last::of(&mut self.replayed, group)?;
        if !last.controls.is_empty() {
            self.compare_ioctls(group, &last.controls, report);
        }
        let entries = self.replayed.machine.other_entries();
        if let Some((expected, actual)) = entries.first().filter(|_| self.method.same && !last.unknown) {
            self.keep(Found::of_entry(group, expected, actual), report);
        }
        if let Some(woken) = self.replayed.take_woken() {
            match woken.known && !last.unknown {
                true => self.keep(Found::of_woken(group, &woken), report),
                false => {
                    self.astray = true;
                    report.leave_open(WOKEN, 1);
                }
            }
        }
        if let Some(equal) = self.replayed.machine.take_chain_is_equal().filter(|_| self.method.same) {
            if !equal && !self.astray {
                self.keep(Found::of_chain(group, group.exit.vcpu), report);
            }
            self.astray = false;
        }
        let handling = &last.handling;
        let mut known = true;
        if last.unknown {
            known = false;
            self.astray = true;
            report.leave_open(UNKNOWN, 1);
        } else if let Some(fault) = last.missed.first().filter(|_| self.method.same) {
            let found = Found::of_missed_fault(group, fault, &self.names);
            self.keep(found, report);
        } else if self.method.same {
            match self.replayed.take_compared() {
                events::Compared::Equal => {}
                events::Compared::Exempt => {
                    *report.exempted.entry(exempt::SILICON_BITS.name).or_default() += 1;
                }
                events::Compared::Different(differ) => {
                    self.astray = true;
                    let [expected, actual] = *differ;
                    self.keep(Found::of_events(group, expected.as_ref(), actual.as_ref()), report);
                }
            }
        } else if handling.is_untold(group) {
            // Silicon executes what the other one exited for; its result is not on any tape.
            known = false;
            report.leave_open(NOT_TAKEN, 1);
        } else if self.replayed.goes_on_behind(group) {
            known = false;
            report.leave_open(CUT, 1);
        } else if !self.replayed.is_alike(group, handling) {
            let (expected, actual) =
                (View::of_tape(&self.replayed, group), View::of_replayed(&self.replayed, group, handling));
            let found = Found::of_views(&self.replayed, group, &expected, &actual);
            found.into_iter().for_each(|found| self.keep(found, report));
        }
        if !self.method.same {
            report.leave_open(MISSED, last.missed.len() as u64);
        }
        if !self.method.same {
            let types = group.before.iter().filter(|note| matches!(note, Note::MemoryType { .. })).count();
            if types > 0 {
                *report.unknown.entry(TYPES.into()).or_default() += types as u64;
            }
        }
        self.last = Some(last);
        Ok(known)
    }

    /// What the tape has behind its last exit.
    fn take_rest(&mut self, sides: &Sides, rest: &Rest, report: &mut Report) -> Result<(), Error> {
        let last = self.last.as_ref().filter(|last| self.method.same && !last.handling.has_ended());
        let Some(number) = last.map(Last::number) else { return Ok(()) };
        if !rest.is_ordered() {
            report.leave_open(UNORDERED, 1);
            return Ok(());
        }
        let Some((compared, changed)) = self.replayed.take_rest(rest) else {
            report.leave_open(WOKEN, 1);
            return Ok(());
        };
        let entries = self.replayed.machine.other_entries();
        let group = || sides.tape.exits_from(number)?.next().transpose().map(Option::unwrap_or_default);
        let found = match (entries.first(), compared, changed.first().filter(|_| !self.astray)) {
            (Some((expected, actual)), ..) => Found::of_entry(&group()?, expected, actual),
            (None, events::Compared::Different(differ), _) => {
                Found::of_events(&group()?, differ[0].as_ref(), differ[1].as_ref())
            }
            (None, _, Some(vcpu)) => Found::of_chain(&group()?, *vcpu),
            _ => return Ok(()),
        };
        self.keep(found, report);
        Ok(())
    }

    fn compare_ioctls(&mut self, group: &ExitGroup, done: &[Control], report: &mut Report) {
        let (changes, questions) = compare_controls(taped(group), done.to_vec(), false);
        report.answers.extend(questions.iter().map(Difference::row));
        if let Some(question) = questions.into_iter().next() {
            self.asked.get_or_insert_with(|| Found::of_differences(group, vec![question]));
        }
        if !changes.is_empty() {
            self.keep(Found::of_differences(group, changes), report);
        }
    }

    fn keep(&mut self, found: Found, report: &mut Report) {
        let signature = found.signature();
        match self.found.iter().position(|(other, _)| other.signature() == signature) {
            Some(known) => self.found[known].1 += 1,
            None if self.found.len() < LISTED => self.found.push((found, 1)),
            None => report.leave_open(format!("divergences beyond the first {LISTED} kinds"), 1),
        }
    }
}

fn divergence(sides: &Sides, found: &Found) -> Result<Divergence, Error> {
    let exit = &found.group.exit;
    Ok(Divergence {
        signature: found.signature(),
        cause: None,
        level: if found.is_ioctl() { Level::VmmVisible } else { Level::GuestVisible },
        class: Class::Unexplained,
        summary: format!("exit {}: {}", found.group.number, found.what.1),
        vcpu: exit.vcpu,
        icount: exit.icount,
        rip: exit.rip,
        nested: text::nested(exit),
        expected_exit: Some(found.group.number),
        actual_exit: None,
        rows: found.rows.clone(),
        stories: Vec::new(),
        expected_context: context(sides.tape, found.group.number, sides.context)?,
        actual_context: Vec::new(),
        rules: Vec::new(),
        reproduce: sides.reproduce.clone(),
    })
}

/// The exits up to this one, for people.
fn context(tape: &Tape, exit: u64, count: usize) -> Result<Vec<String>, Error> {
    let first = (exit + 1).saturating_sub(count as u64);
    let exits = tape.exits_from(first)?.take_while(|group| group.as_ref().is_ok_and(|g| g.number <= exit));
    let exits = exits.collect::<Result<Vec<_>, _>>()?;
    Ok(text::context(exits.iter(), count))
}
