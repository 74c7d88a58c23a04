//! The whole machine as bytes and back, so that a replay can start in the middle; and a hash over it.
//!
//! A checkpoint holds the memory pages that changed since the one before. What an interpreter caches is not part of it:
//! the machine drops those caches wherever it makes one, so that the run goes on there exactly as a restored one does.

use super::Machine;
use crate::{
    Error,
    devices::Devices,
    memory::{Absent, is_zero},
    services::MemoryTypes,
    tape::Standing,
    time::{Clock, Counts, Milestones, Taken},
    vcpu::{Placement, Progress, Turn},
    vmm::Carried,
};
use serde::{Deserialize, Serialize};
use vmtape_abi::MemoryRegion;
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE, cpuid::CpuidEntry, vcpu::VcpuState};

/// Set in a page's number where the page is zero and its bytes are left out.
const ZERO_PAGE: u64 = 1 << 63;
const PAGE: usize = PAGE_SIZE as usize;

/// Everything but memory.
#[derive(Serialize, Deserialize)]
pub(super) struct Saved<D> {
    vcpus: Vec<(VcpuState, bool, Progress)>,
    devices: D,
    clock: Clock,
    taken: Taken,
    backend: Vec<u8>,
    current: u32,
    turn_ends: u64,
    exits: u64,
    retried: u32,
    next_checkpoint: u64,
    page_hashes: u64,
    /// What the VMM's script has changed, and how far it is.
    cpuid: Vec<Vec<CpuidEntry>>,
    slots: Vec<[u64; 5]>,
    script: Vec<bool>,
    milestones: Milestones,
    fault_counts: Counts,
    placement: Placement,
    absent: Absent,
    carried: Carried,
    tape: Standing,
    memory_types: MemoryTypes,
}

impl Machine {
    /// Called after each exit.
    pub(super) fn checkpoint_if_due(&mut self) -> Result<(), Error> {
        if self.spec.checkpoint_every == 0 || self.exits < self.next_checkpoint {
            return Ok(());
        }
        self.next_checkpoint = self.exits + self.spec.checkpoint_every;
        self.page_hashes.update(&self.services.memory);
        self.tell_hash()?;
        self.drop_caches();
        let wanted = self.services.tape.recorder().is_some_and(|recorder| recorder.wants_checkpoints());
        let bytes = if wanted { self.save()? } else { Vec::new() };
        self.marks.checkpoint = self.services.memory.mark();
        self.services.tape.forget();
        if let Some(recorder) = self.services.tape.recorder().filter(|_| wanted) {
            recorder.checkpoint(self.services.clock.icount, self.exits, bytes);
        }
        Ok(())
    }

    /// Silicon starts with nothing cached, as it does after [`Machine::restore`].
    pub(super) fn drop_caches(&mut self) {
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.cpu.forget_translations());
    }

    /// Everything but memory.
    pub(super) fn save_state(&self) -> Result<Vec<u8>, Error> {
        let saved = Saved {
            vcpus: self.vcpus.iter().map(|v| (v.state, v.needs_entry, v.progress)).collect(),
            devices: &self.services.devices,
            clock: self.services.clock,
            taken: self.services.inputs.taken(),
            backend: self.backend.save(),
            current: self.turn.vcpu,
            turn_ends: self.turn.ends,
            exits: self.exits,
            retried: self.retried,
            next_checkpoint: self.next_checkpoint,
            page_hashes: self.page_hashes.sum(),
            cpuid: self.services.cpuid.clone(),
            slots: self.services.memory.slots().iter().map(slot_words).collect(),
            script: self.script.done().to_vec(),
            milestones: self.milestones,
            fault_counts: self.services.inputs.counts().clone(),
            placement: self.placement.clone(),
            absent: self.services.memory.absent.clone(),
            carried: self.carried.clone(),
            tape: self.services.tape.standing(),
            memory_types: self.services.memory_types.clone(),
        };
        postcard::to_stdvec(&saved).map_err(|cause| Error::Encode { what: "a checkpoint", cause })
    }

    pub(super) fn save(&self) -> Result<Vec<u8>, Error> {
        let state = self.save_state()?;
        let mut out = (state.len() as u64).to_le_bytes().to_vec();
        out.extend_from_slice(&state);
        let mut bytes = [0; PAGE];
        for page in self.services.memory.written_since(self.marks.checkpoint) {
            if !self.services.ram().read(page << PAGE_SHIFT, &mut bytes) {
                continue;
            }
            if is_zero(&bytes) {
                out.extend_from_slice(&(page | ZERO_PAGE).to_le_bytes());
            } else {
                out.extend_from_slice(&page.to_le_bytes());
                out.extend_from_slice(&bytes);
            }
        }
        Ok(out)
    }

    /// Brings a machine that was just built from the same specification, or has started over ([`Machine::start_over`]), to where the
    /// last checkpoint of a chain was made. The chain begins with the first checkpoint of the run.
    pub fn restore<'a>(&mut self, chain: impl IntoIterator<Item = &'a [u8]>) -> Result<(), Error> {
        let mut last = None;
        for checkpoint in chain {
            let (state, pages) = split(checkpoint).ok_or_else(damaged)?;
            self.restore_pages(pages).ok_or_else(damaged)?;
            last = Some(state);
        }
        let state = last.ok_or_else(|| Error::Checkpoint("none was given".to_owned()))?;
        let saved = postcard::from_bytes(state).map_err(|e| Error::Checkpoint(e.to_string()))?;
        self.page_hashes.update(&self.services.memory);
        self.restore_state(saved)
    }

    fn restore_pages(&mut self, mut pages: &[u8]) -> Option<()> {
        while !pages.is_empty() {
            let number;
            (number, pages) = pages.split_first_chunk::<8>()?;
            let number = u64::from_le_bytes(*number);
            let page = number & !ZERO_PAGE;
            let bytes: &[u8; PAGE];
            if number & ZERO_PAGE != 0 {
                bytes = &[0; PAGE];
            } else {
                (bytes, pages) = pages.split_first_chunk::<PAGE>()?;
            }
            let hpa = page.checked_mul(PAGE_SIZE)?;
            let known = self.services.memory.is_backed(hpa, PAGE_SIZE);
            if !known || !self.services.ram().write(hpa, bytes) {
                return None;
            }
        }
        Some(())
    }

    /// The backend restores on a VM that has the slots of the saved one.
    fn restore_slots(&mut self, saved: &[[u64; 5]]) -> Result<(), Error> {
        let saved = saved.iter().map(|&[slot, flags, gpa, size, hpa]| MemoryRegion {
            slot: slot as u32,
            flags: flags as u32,
            gpa,
            size,
            hpa,
        });
        let saved: Vec<_> = saved.collect();
        let now = self.services.memory.slots().to_vec();
        let gone = now.iter().filter(|slot| !saved.contains(slot));
        let deleted = gone.map(|slot| MemoryRegion { size: 0, ..*slot });
        let new = saved.iter().filter(|slot| !now.contains(slot)).copied();
        for region in deleted.chain(new) {
            if !self.services.memory.is_backed(region.hpa, region.size) {
                return Err(damaged());
            }
            self.backend
                .set_memory_region(&region, &mut self.services)
                .map_err(|errno| Error::Backend { what: format!("memory slot {}", region.slot), errno })?;
            self.services.memory.set_slot(&region);
        }
        Ok(())
    }

    pub(super) fn restore_state(&mut self, saved: Saved<Devices>) -> Result<(), Error> {
        let vcpus_fit = saved.vcpus.len() == self.vcpus.len() && (saved.current as usize) < self.vcpus.len();
        if !vcpus_fit || !saved.devices.fit(self.vcpus.len()) {
            return Err(Error::Checkpoint("it is of a machine with another number of vCPUs".to_owned()));
        }
        if saved.page_hashes != self.page_hashes.sum() {
            return Err(Error::Checkpoint("memory differs from what was saved".to_owned()));
        }
        if saved.cpuid.len() != self.vcpus.len() || saved.script.len() != self.script.done().len() {
            return Err(damaged());
        }
        if !saved.placement.fits(self.vcpus.len()) {
            return Err(damaged());
        }
        self.restore_slots(&saved.slots)?;
        self.backend
            .restore(&saved.backend)
            .map_err(|errno| Error::Backend { what: "its saved state".to_owned(), errno })?;
        for (vcpu, (state, needs_entry, progress)) in self.vcpus.iter_mut().zip(saved.vcpus) {
            (vcpu.state, vcpu.needs_entry, vcpu.progress) = (state, needs_entry, progress);
        }
        self.services.cpuid = saved.cpuid;
        self.script.resume(saved.script);
        self.milestones = saved.milestones;
        self.services.inputs.resume(saved.taken, saved.fault_counts);
        self.placement = saved.placement;
        self.services.memory.absent = saved.absent;
        self.carried = saved.carried;
        self.services.devices.resume(saved.devices);
        self.services.clock = saved.clock;
        self.turn = Turn { vcpu: saved.current, ends: saved.turn_ends };
        self.exits = saved.exits;
        self.retried = saved.retried;
        self.uncompleted = None;
        self.next_checkpoint = saved.next_checkpoint;
        self.drop_caches();
        self.marks.checkpoint = self.services.memory.mark();
        self.services.memory_types = saved.memory_types;
        self.services.tape.resume(&saved.tape);
        Ok(())
    }
}

/// A slot as a checkpoint has it: number, flags, gpa, size, hpa.
fn slot_words(slot: &MemoryRegion) -> [u64; 5] {
    [slot.slot.into(), slot.flags.into(), slot.gpa, slot.size, slot.hpa]
}

fn split(checkpoint: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = checkpoint.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)
}

pub(super) fn damaged() -> Error {
    Error::Checkpoint("it is damaged".to_owned())
}
