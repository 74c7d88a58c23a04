//! What an exit changed in its vCPU's registers, as a digest: no other event tells what a handler left there.
//!
//! The machine that records and one that is fed the tape take it by one rule, over what both know. Registers that the handling
//! uses are told with the exit: of those that changed it has the value. A register that the handling writes whatever was in it
//! has its value too. Of the others nobody who is fed knows what was there before: for them it has what changed, which is
//! nothing where the handler is KVM's. Left out are registers that KVM changes by a state that the tape does not tell.
//!
//! An exit tells 16 bits of its digest, which are mostly those of the exit like it before, so that a tape hardly grows. What all
//! digests of a vCPU make together is told in full now and then, so that one that is missed is found there.

mod chain;
mod emulation;
mod rest;
mod rule;
#[cfg(test)]
mod tests;
mod words;

use crate::spec::ChangesTold;
use chain::Chain;
pub(crate) use emulation::Emulation;
use rule::{Rule, is_plain};
use serde::{Deserialize, Serialize};
use vmtape_arch::{
    exit::Exit,
    vcpu::{Activity, VcpuState},
};
use vmtape_traces::event::RegisterChanges;
use words::Words;

/// What is to be told of the entries of a vCPU, with its next exit.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Entered {
    /// The entry that comes next follows an exit of the guest itself, at once. Chained: nobody but the guest itself has run since.
    follows: bool,
    changes: u16,
    chain: Chain,
    /// As it was before the entries that followed the last exit.
    handled: Chain,
}

/// What was not told yet, by vCPU.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Changes {
    entered: Vec<Entered>,
    told: ChangesTold,
    /// The registers before what is going on, in one place: they are copied twice for each exit.
    #[serde(skip)]
    before: Option<Box<VcpuState>>,
    #[serde(skip)]
    words: Words,
}

impl Changes {
    pub(crate) fn new(vcpus: u32, told: ChangesTold) -> Self {
        // A vCPU begins with a guest of its own, and not with one of its guests.
        let first = Entered { follows: told == ChangesTold::Chained, ..Entered::default() };
        Self { entered: vec![first; vcpus as usize], told, ..Self::default() }
    }

    pub(crate) fn are_told(&self) -> bool {
        self.told != ChangesTold::Nothing
    }

    fn are_chained(&self) -> bool {
        self.told == ChangesTold::Chained
    }

    /// A handling or an entry begins, of which [`Changes::of_handling`] or [`Changes::end_entry`] tells.
    pub(crate) fn begin(&mut self, state: &VcpuState) {
        match &mut self.before {
            Some(before) => **before = *state,
            none => *none = Some(Box::new(*state)),
        }
    }

    /// What the handling of an exit changed, and the entry before it.
    pub(crate) fn of_handling(
        &mut self,
        vcpu: u32,
        exit: &Exit,
        emulation: &Emulation,
        after: &VcpuState,
    ) -> RegisterChanges {
        let chained = self.are_chained();
        let Some(entered) = self.entered.get_mut(vcpu as usize) else { return RegisterChanges::NONE };
        entered.follows = is_plain(exit) && !emulation.exchanged;
        entered.handled = entered.chain;
        let entry = std::mem::take(&mut entered.changes);
        let Some(before) = self.before.as_ref().filter(|_| !emulation.exchanged) else {
            return RegisterChanges { entry, ..RegisterChanges::NONE };
        };
        let rule = Rule::of(exit, emulation, before, after);
        let rule = if chained { rule.chained(Some(exit), before, after) } else { rule };
        let Some(digest) = rule.digest(before, after, &mut self.words) else {
            return RegisterChanges { entry, ..RegisterChanges::NONE };
        };
        entered.chain.add(digest);
        entered.handled = entered.chain;
        RegisterChanges { handling: told(digest), entry }
    }

    /// Whether what the entry that begins changes is told. A vCPU that waits enters for what others did: only chained digests tell
    /// of that.
    pub(crate) fn begin_entry(&mut self, vcpu: u32) -> bool {
        let chained = self.are_chained();
        self.entered.get_mut(vcpu as usize).is_some_and(|entered| match chained {
            true => entered.follows,
            false => std::mem::take(&mut entered.follows),
        })
    }

    /// The exit has been acted on.
    pub(crate) fn end_exit(&mut self, vcpu: u32, activity: Activity) {
        let chained = self.are_chained();
        if let Some(entered) = self.entered.get_mut(vcpu as usize) {
            entered.follows &= chained || activity == Activity::ACTIVE;
        }
    }

    /// Such an entry is over. `exchanged`: with all registers, in which case nothing is told.
    pub(crate) fn end_entry(&mut self, vcpu: u32, after: &VcpuState, exchanged: bool) {
        let chained = self.are_chained();
        let Some((entered, before)) = self.entered.get_mut(vcpu as usize).zip(self.before.as_ref()) else {
            return;
        };
        if exchanged {
            entered.follows = false;
            return;
        }
        let rule = if chained { Rule::ENTRY.chained(None, before, after) } else { Rule::ENTRY };
        if let Some(digest) = rule.digest(before, after, &mut self.words) {
            entered.chain.add(digest);
            // Several of them may come before the next exit.
            entered.changes = told(u64::from(entered.changes.rotate_left(1)) ^ digest);
        }
    }

    /// What all digests of a vCPU make together, where it is time to tell it.
    pub(crate) fn take_chain(&mut self, vcpu: u32, at_end: bool) -> Option<u64> {
        let chained = self.are_chained();
        self.entered.get_mut(vcpu as usize).filter(|_| chained)?.chain.take(at_end)
    }

    /// The tape ends before the entry that follows the last exit.
    pub(crate) fn forget_entry(&mut self, vcpu: u32) {
        if let Some(entered) = self.entered.get_mut(vcpu as usize) {
            entered.chain = entered.handled;
        }
    }

    /// The tape tells what they make together on it. True: here they make the same.
    pub(crate) fn compare_chain(&mut self, vcpu: u32, expected: u64) -> bool {
        self.entered.get_mut(vcpu as usize).is_none_or(|entered| entered.chain.replace(expected))
    }
}

/// What an exit tells of a digest; zero stands for none.
fn told(digest: u64) -> u16 {
    (digest as u16).max(1)
}
