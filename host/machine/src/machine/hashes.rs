//! Where the guest is, as one number: the hash over everything, and the milestones.

use super::Machine;
use crate::{
    Error,
    devices::Seen,
    services::MemoryTypes,
    vcpu::{Vcpu, guest_visible},
};
use vmtape_arch::{
    exit::{Resume, ResumeKind},
    vcpu::VcpuState,
};
use vmtape_traces::event::{End, Event, Milestone};
use xxhash_rust::xxh3::xxh3_64;

/// Everything that happened to a guest. Two guests that are equal after each instruction, and get the same from what
/// surrounds them, have equal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// See [`vmtape_cpu::Ram::changes`].
    pub memory: u128,
    /// Registers after each sensitive instruction, each event and each instruction that left the guest, with the instruction
    /// count.
    pub outcomes: u64,
    /// What devices saw.
    pub devices: Seen,
    /// With which memory types pages were accessed.
    pub memory_types: u64,
}

impl Digest {
    /// What happened since another moment. What devices saw moves with them.
    pub fn since(&self, then: &Self) -> Self {
        Self {
            memory: self.memory.wrapping_sub(then.memory),
            outcomes: self.outcomes.wrapping_sub(then.outcomes),
            devices: self.devices,
            memory_types: self.memory_types.wrapping_sub(then.memory_types),
        }
    }
}

impl Machine {
    /// Keeps [`Machine::digest`] from here on. What devices saw is kept in any case.
    pub fn keep_digest(&mut self) {
        self.services.ram().keep_changes();
        self.services.outcomes.keep();
    }

    /// Looks at registers also where another machine's guest left: at instruction counts in order, of [`Machine::take_left`].
    /// Two machines' digests are comparable where each has been told of the other's, in time.
    pub fn sample_at(&mut self, counts: impl Iterator<Item = u64>) {
        let icount = self.icount();
        self.services.outcomes.sample_at(icount, counts);
    }

    /// The instruction counts that the instructions completed that left the guest since the last call.
    pub fn take_left(&mut self) -> Vec<u64> {
        self.services.outcomes.take_left()
    }

    /// Everything that happened to the guest since [`Machine::keep_digest`].
    pub fn digest(&self) -> Digest {
        Digest {
            memory: self.services.ram().changes().wrapping_sub(self.services.memory.uncounted),
            outcomes: self.services.outcomes.sum(),
            devices: self.services.devices.seen(),
            memory_types: self.services.memory_types.sum(),
        }
    }

    /// With which memory types pages were last accessed.
    pub fn memory_types(&self) -> &MemoryTypes {
        &self.services.memory_types
    }

    /// Puts on the tape what devices saw so far.
    pub(super) fn tell_devices(&mut self) {
        let Seen { accesses, hash } = self.services.devices.seen();
        let icount = self.services.clock.icount;
        self.services.tape.event(Event::Devices { icount, accesses, hash });
    }

    /// Puts the hash over registers and memory on the tape.
    pub(super) fn tell_hash(&mut self) -> Result<(), Error> {
        if self.services.tape.is_on() {
            let hash = self.state_hash()?;
            let (icount, exits) = (self.services.clock.icount, self.exits);
            self.services.tape.event(Event::StateHash { icount, exits, hash });
        }
        Ok(())
    }

    /// A hash over the registers that guests see and all memory.
    pub fn state_hash(&mut self) -> Result<u64, Error> {
        self.page_hashes.update(&self.services.memory);
        hash(&[self.page_hashes.sum()], &self.vcpus, guest_visible)
    }

    /// Called at every instruction count at which the guest was left. True: there was one.
    pub(super) fn milestone_if_due(&mut self) -> Result<bool, Error> {
        let icount = self.services.clock.icount;
        let due = self.milestones.take_due(icount, self.spec.milestone_every);
        if !due || !self.services.tape.is_on() {
            return Ok(due);
        }
        self.page_hashes.update(&self.services.memory);
        let words = [self.milestones.hash, icount, self.page_hashes.sum()];
        let hash = hash(&words, &self.vcpus, VcpuState::observable)?;
        self.milestones.hash = hash;
        self.tell_devices();
        self.services.tape.event(Event::Milestone(Milestone { icount, exits: self.exits, hash }));
        Ok(true)
    }

    /// The end of a run whose machine cannot be told.
    pub(super) fn failed(&self, error: &Error) -> End {
        let resume = Resume::new(ResumeKind::INTERNAL_ERROR);
        End::Fatal { vcpu: self.turn.vcpu, resume, reason: error.to_string() }
    }
}

/// From `nested_tsc_offset` to `last_exception`.
const NUMBERS_SINCE_SCHEMA_2: u32 = 6;

/// Over some words, and what is seen of each vCPU's registers.
fn hash(words: &[u64], vcpus: &[Vcpu], seen: fn(&VcpuState) -> VcpuState) -> Result<u64, Error> {
    let mut words = words.to_vec();
    for vcpu in vcpus {
        let registers = postcard::to_stdvec(&seen(&vcpu.state));
        let mut registers = registers.map_err(|cause| Error::Encode { what: "a vCPU's registers", cause })?;
        // The last numbers, where they are zero: tapes of schema 2 have hashes without them.
        for _ in 0..NUMBERS_SINCE_SCHEMA_2 {
            registers.pop_if(|byte| *byte == 0);
        }
        words.push(xxh3_64(&registers));
    }
    Ok(xxh3_64(&words.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>()))
}
