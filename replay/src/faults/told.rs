//! What a tape says of its faults, and of errors that reached the VMM.

use crate::{Error, text};
use std::collections::BTreeMap;
use vmtape_arch::exit::ResumeKind;
use vmtape_traces::{
    Event, Tape,
    event::{End, Fault, Skip},
    flat::tag,
};

/// The faults on a tape: those that happened, and those that were due and were skipped.
pub fn fired(tape: &Tape) -> Result<(Vec<Fault>, Vec<Fault>), Error> {
    let mut faults = Vec::new();
    for event in tape.events_with(tag::FAULT) {
        if let Event::Fault(fault) = event? {
            faults.push(fault);
        }
    }
    Ok(faults.into_iter().partition(|fault| fault.skipped == Skip::NONE))
}

/// What a VMM hears of a run: errors of KVM_RUN and of other ioctls, each with how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub errors: BTreeMap<String, u64>,
    pub end: Option<End>,
}

impl Told {
    pub fn of(tape: &Tape) -> Result<Self, Error> {
        let mut told = Self::default();
        for event in tape.events() {
            match event? {
                Event::Resume { resume, .. } if resume.kind == ResumeKind::ERRNO => {
                    told.count(format!("KVM_RUN: {}", text::resume_text(&resume)));
                }
                Event::Entry(entry) if entry.outcome.resume.kind == ResumeKind::ERRNO => {
                    told.count(format!("KVM_RUN: {}", text::resume_text(&entry.outcome.resume)));
                }
                Event::Control { control, .. } if control.result() < 0 => {
                    told.count(format!("{}: {}", control.name(), control.result()));
                }
                Event::End { end, .. } => told.end = Some(end),
                _ => {}
            }
        }
        Ok(told)
    }

    fn count(&mut self, what: String) {
        *self.errors.entry(what).or_default() += 1;
    }

    /// Errors that another run does not have, or not so often.
    pub fn beyond(&self, other: &Self) -> Vec<String> {
        let more = |(what, count): (&String, &u64)| {
            (*count > other.errors.get(what).copied().unwrap_or(0)).then(|| what.clone())
        };
        self.errors.iter().filter_map(more).collect()
    }
}
