//! What an exit changed in its vCPU's registers, as a digest: no other event tells what a handler left there.
//!
//! The machine that records and one that is fed the tape take it by one rule, over what both know. Registers that the handling
//! uses are told with the exit: of those that changed it has the value. A register that the handling writes whatever was in it
//! has its value too. Of the others nobody who is fed knows what was there before: for them it has what changed, which is
//! nothing where the handler is KVM's. Left out are registers that KVM changes by a state that the tape does not tell.

mod emulation;
mod rest;
mod rule;
#[cfg(test)]
mod tests;
mod words;

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
    /// The entry that comes next follows an exit of the guest itself, at once.
    follows: bool,
    changes: u16,
}

/// What was not told yet, by vCPU.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Changes {
    entered: Vec<Entered>,
    /// The registers before what is going on, in one place: they are copied twice for each exit.
    #[serde(skip)]
    before: Option<Box<VcpuState>>,
    #[serde(skip)]
    words: Words,
}

impl Changes {
    pub(crate) fn new(vcpus: u32) -> Self {
        Self { entered: vec![Entered::default(); vcpus as usize], ..Self::default() }
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
        let entry = self.entered.get_mut(vcpu as usize).map_or(0, |entered| {
            entered.follows = is_plain(exit) && !emulation.exchanged;
            std::mem::take(&mut entered.changes)
        });
        let Some(before) = self.before.as_ref().filter(|_| !emulation.exchanged) else {
            return RegisterChanges { entry, ..RegisterChanges::NONE };
        };
        let handling = Rule::of(exit, emulation, before, after).digest(before, after, &mut self.words);
        RegisterChanges { handling, entry }
    }

    /// Whether the entry that begins follows an exit at once: then what it changes is told. A vCPU that waits enters for what
    /// others did.
    pub(crate) fn begin_entry(&mut self, vcpu: u32) -> bool {
        self.entered.get_mut(vcpu as usize).is_some_and(|entered| std::mem::take(&mut entered.follows))
    }

    /// The exit has been acted on.
    pub(crate) fn end_exit(&mut self, vcpu: u32, activity: Activity) {
        if let Some(entered) = self.entered.get_mut(vcpu as usize) {
            entered.follows &= activity == Activity::ACTIVE;
        }
    }

    /// Such an entry is over.
    pub(crate) fn end_entry(&mut self, vcpu: u32, after: &VcpuState) {
        if let Some((entered, before)) = self.entered.get_mut(vcpu as usize).zip(self.before.as_ref()) {
            entered.changes = Rule::ENTRY.digest(before, after, &mut self.words);
        }
    }
}
