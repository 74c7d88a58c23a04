//! Where the guest is, as one number: the hash over everything, and the milestones.

use super::Machine;
use crate::vcpu::{guest_visible, observable};
use vmtape_traces::event::{Event, Milestone};
use xxhash_rust::xxh3::xxh3_64;

impl Machine {
    /// Puts the hash over registers and memory on the tape.
    pub(super) fn tell_hash(&mut self) {
        if self.services.tape.is_on() {
            let hash = self.state_hash();
            let (icount, exits) = (self.services.clock.icount, self.exits);
            self.services.tape.event(Event::StateHash { icount, exits, hash });
        }
    }

    /// A hash over the registers that guests see and all memory.
    pub fn state_hash(&mut self) -> u64 {
        self.page_hashes.update(&self.services.memory);
        let mut words = vec![self.page_hashes.sum()];
        for vcpu in &self.vcpus {
            let registers = postcard::to_stdvec(&guest_visible(&vcpu.state)).unwrap_or_default();
            words.push(xxh3_64(&registers));
        }
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        xxh3_64(&bytes)
    }

    /// Called at every instruction count at which the guest was left.
    pub(super) fn milestone_if_due(&mut self) {
        let icount = self.services.clock.icount;
        if !self.milestones.take_due(icount, self.spec.milestone_every) || !self.services.tape.is_on() {
            return;
        }
        self.page_hashes.update(&self.services.memory);
        let mut words = vec![self.milestones.hash, icount, self.page_hashes.sum()];
        for vcpu in &self.vcpus {
            let registers = postcard::to_stdvec(&observable(&vcpu.state)).unwrap_or_default();
            words.push(xxh3_64(&registers));
        }
        let hash = xxh3_64(&words.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>());
        self.milestones.hash = hash;
        self.services.tape.event(Event::Milestone(Milestone { icount, exits: self.exits, hash }));
    }
}
