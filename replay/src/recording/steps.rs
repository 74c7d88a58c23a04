//! The exits of a tape one by one, and what a first look at a whole recording tells: nothing here grows with a tape.

use super::pages::Pages;
use crate::exempt;
use std::collections::{BTreeSet, VecDeque};
use vmtape_arch::note::{Note, NoteKind};
use vmtape_traces::{ExitGroup, Exits, Result, Tape, reader::Events, text::MODE_UNTOLD};

/// An exit of vCPU 0, and whether the host has taken pages back before it.
pub(super) struct Step {
    pub group: ExitGroup,
    pub unmapped: bool,
}

/// The exits of vCPU 0 of a tape, with a look at the one to come and the last few that were taken.
pub(super) struct Steps<'t> {
    exits: Exits<Events<'t>>,
    unmapped: bool,
    /// Exits that were read and not taken, the next one first.
    ahead: VecDeque<Step>,
    /// Taken exits, the youngest last.
    recent: VecDeque<ExitGroup>,
    /// How many of them are kept.
    context: usize,
    /// Which exits there are for the reader.
    filter: Box<dyn FnMut(&ExitGroup) -> bool + 't>,
}

impl<'t> Steps<'t> {
    pub fn new(tape: &'t Tape, context: usize, filter: impl FnMut(&ExitGroup) -> bool + 't) -> Result<Self> {
        let mut steps = Self {
            exits: Exits::new(tape.events(), 0),
            unmapped: false,
            ahead: VecDeque::new(),
            recent: VecDeque::new(),
            context,
            filter: Box::new(filter),
        };
        steps.advance()?;
        Ok(steps)
    }

    /// The exit to come.
    pub fn peek(&self) -> Option<&Step> {
        self.ahead.front()
    }

    /// Goes on to the next exit.
    pub fn advance(&mut self) -> Result<()> {
        if let Some(step) = self.ahead.pop_front() {
            self.recent.push_back(step.group);
            if self.recent.len() > self.context {
                self.recent.pop_front();
            }
        }
        self.look(1)?;
        Ok(())
    }

    /// Reads so many exits ahead; false where the tape has fewer.
    pub fn look(&mut self, count: usize) -> Result<bool> {
        while self.ahead.len() < count {
            if !self.read()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The exits that were read and not taken.
    pub fn window(&self) -> impl ExactSizeIterator<Item = &Step> + Clone {
        self.ahead.iter()
    }

    fn read(&mut self) -> Result<bool> {
        while let Some(group) = self.exits.next().transpose()? {
            self.unmapped |= self.exits.other.drain(..).any(|event| exempt::unmaps(&event));
            if group.exit.vcpu == 0 && (self.filter)(&group) {
                self.ahead.push_back(Step { group, unmapped: self.unmapped });
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many exits are left, which ends the reading.
    pub fn count_rest(&mut self) -> Result<u64> {
        let mut left = 0;
        while !self.ahead.is_empty() {
            left += 1;
            self.advance()?;
        }
        Ok(left)
    }

    /// The last exits that were taken, and the one to come.
    pub fn context(&self) -> impl DoubleEndedIterator<Item = &ExitGroup> {
        self.recent.iter().chain(self.ahead.front().map(|step| &step.group))
    }
}

/// What a recording tells at a first look.
#[derive(Default)]
pub(super) struct Survey {
    /// Exits before the guest's entry point: the firmware's.
    pub firmware_exits: u64,
    /// What the firmware mapped.
    pub firmware: Pages,
    /// Kinds of events that were traced.
    pub traced: BTreeSet<NoteKind>,
    /// Exit reasons of the guest.
    pub reasons: BTreeSet<u32>,
    /// The guest's exits, without those that are the host's own business.
    pub exits: u64,
    /// Exits that are the host's own business.
    pub host_exits: u64,
    /// kvm_emulate_insn does not tell the processor's mode.
    pub modes_untold: bool,
}

impl Survey {
    /// Looks at a recording whose guest begins at an entry point. One without it has no firmware's exits.
    pub fn of(tape: &Tape, entry: u64) -> Result<Self> {
        let mut survey = Self::default();
        let mut found = false;
        let mut steps = Steps::new(tape, 0, |_| true)?;
        while let Some(Step { group, .. }) = steps.peek() {
            if !found && group.exit.rip == entry {
                found = true;
                survey.begin_guest();
            }
            if !found {
                survey.firmware.add(group);
            }
            survey.add(group);
            steps.advance()?;
        }
        if !found {
            survey.firmware = Pages::default();
        }
        Ok(survey)
    }

    /// Everything up to here was the firmware's.
    fn begin_guest(&mut self) {
        self.firmware_exits = self.exits + self.host_exits;
        (self.exits, self.host_exits) = (0, 0);
        self.reasons.clear();
    }

    fn add(&mut self, group: &ExitGroup) {
        self.traced.extend(group.notes.iter().map(|note| note.to_raw().kind));
        self.modes_untold |=
            group.notes.iter().any(|note| matches!(note, Note::EmulateInsn { mode: MODE_UNTOLD, .. }));
        if exempt::is_host_exit(&group.exit.exit) {
            self.host_exits += 1;
        } else {
            self.exits += 1;
            self.reasons.insert(group.exit.exit.reason);
        }
    }
}
