//! A guest that moves, in parts, as a VMM reads them of its source and gives them to its destination one by one.
//!
//! Everything that the guest can observe is among them, and nothing of what a backend keeps for itself. State in KVM's words
//! stands in the list of state kinds, which says the order ([`Machine::get_state`], [`Machine::set_state`]); memory goes page by
//! page; the VMM's own models and books are bytes of this program's.

use super::Machine;
use crate::{
    Error,
    devices::Devices,
    memory::Absent,
    services::{MemoryTypes, Pager},
    time::{Counts, Taken},
    vcpu::{Progress, Turn},
    vmm::Carried,
};
use serde::{Deserialize, Serialize};
use vmtape_abi::{Errno, MemoryRegion, MemoryStatus};
use vmtape_arch::{
    PAGE_SIZE,
    cpuid::CpuidEntry,
    state::{Layout, NestedState, Owner, Regs, StateKind, msrs_from_bytes},
};
use vmtape_traces::{event::Control, ioctl::RingEntry};

/// KVM_MEM_LOG_DIRTY_PAGES.
pub(super) const LOG_DIRTY_PAGES: u32 = 1;
const PAGE: usize = PAGE_SIZE as usize;

/// Memory of one slot, whether the guest has the slot now or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    pub slot: u32,
    pub pages: u64,
}

/// A capability that the VMM has enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    pub cap: u32,
    pub flags: u32,
    pub arg: u64,
}

/// The VMM's books: where the run is, and what its script has done.
#[derive(Serialize, Deserialize)]
struct Books {
    icount: u64,
    exits: u64,
    turn: (u32, u64),
    taken: Taken,
    fault_counts: Counts,
    done: Vec<bool>,
    log: Vec<(u64, Control)>,
    /// Per vCPU: instruction count, time-stamp counter, and what its watchdog remembers.
    vcpus: Vec<(u64, u64, Progress)>,
    absent: Absent,
    carried: Carried,
    memory_types: MemoryTypes,
}

impl Machine {
    /// Whether nothing has happened here: only such a machine takes a guest.
    pub fn is_fresh(&self) -> bool {
        self.services.clock.icount == 0 && self.exits == 0 && !self.used
    }

    /// Memory, slot by slot.
    pub fn blocks(&self) -> Vec<Block> {
        let block = |slot: &MemoryRegion| Block { slot: slot.slot, pages: slot.size / PAGE_SIZE };
        self.services.memory.backed().iter().map(block).collect()
    }

    /// A page of a block. `None`: there is no such page.
    pub fn page(&self, slot: u32, page: u64) -> Option<[u8; PAGE]> {
        let mut bytes = [0; PAGE];
        let hpa = self.services.memory.page_of_block(slot, page)?;
        self.services.ram().read(hpa, &mut bytes).then_some(bytes)
    }

    /// Writes a page of a block. `false`: there is no such page.
    #[must_use]
    pub fn set_page(&mut self, slot: u32, page: u64, bytes: &[u8; PAGE]) -> bool {
        let hpa = self.services.memory.page_of_block(slot, page);
        hpa.is_some_and(|hpa| self.services.ram().write(hpa, bytes))
    }

    /// A page of a block is still where the guest has come from. `false`: there is no such page.
    #[must_use]
    pub fn page_follows(&mut self, slot: u32, page: u64) -> bool {
        let hpa = self.services.memory.page_of_block(slot, page);
        hpa.inspect(|hpa| self.services.pages_follow(*hpa)).is_some()
    }

    /// The pages that are still where the guest has come from.
    pub fn following(&self) -> Vec<(u32, u64)> {
        self.services.memory.remote.iter().filter_map(|hpa| self.services.memory.block_page(*hpa)).collect()
    }

    /// Who brings the pages that follow.
    pub fn set_pager(&mut self, pager: Box<dyn Pager>) {
        self.services.pager = Some(pager);
    }

    /// Has every page come that follows; gives how many do not.
    pub fn pull(&mut self) -> usize {
        let mut lost = 0;
        while let Some(hpa) = self.services.memory.remote.iter().nth(lost).copied() {
            lost += usize::from(self.services.fetch(hpa) != MemoryStatus::READY);
        }
        lost
    }

    /// The slots that the guest has now. Where their memory lies is each host's own affair.
    pub fn slots(&self) -> Vec<MemoryRegion> {
        self.services.memory.slots().iter().map(|slot| MemoryRegion { hpa: 0, ..*slot }).collect()
    }

    /// Capabilities that the VMM has enabled, in order.
    pub fn capabilities(&self) -> Vec<Capability> {
        let enabled = self.script.enabled_caps();
        enabled.map(|(cap, flags, arg)| Capability { cap, flags, arg }).collect()
    }

    /// Enables what a source's VMM had enabled, but for what is enabled already: some capabilities have a meaning before there
    /// are vCPUs only, so they are part of how a machine is built.
    pub fn take_capabilities(&mut self, enabled: &[Capability]) -> Result<(), Error> {
        let mut own = self.capabilities();
        for enabled in enabled {
            if let Some(at) = own.iter().position(|own| own == enabled) {
                own.swap_remove(at);
                continue;
            }
            self.backend
                .enable_cap(enabled.cap, enabled.flags, enabled.arg)
                .map_err(|errno| Error::Backend { what: format!("capability {}", enabled.cap), errno })?;
        }
        Ok(())
    }

    /// Gives the guest the slots of its source, and no others.
    pub fn take_slots(&mut self, slots: &[MemoryRegion]) -> Result<(), Error> {
        self.used = true;
        let mut wanted = Vec::new();
        for slot in slots {
            let no_place = || Error::Checkpoint(format!("there is no memory for its slot {}", slot.slot));
            let hpa = self.services.memory.backing(slot.slot).ok_or_else(no_place)?;
            if !self.services.memory.is_backed(hpa, slot.size) {
                return Err(no_place());
            }
            wanted.push(MemoryRegion { hpa, ..*slot });
        }
        let now = self.services.memory.slots().to_vec();
        let gone = now.iter().filter(|slot| !wanted.contains(slot));
        let gone = gone.map(|slot| MemoryRegion { size: 0, ..*slot });
        for region in gone.chain(wanted.iter().filter(|slot| !now.contains(slot)).copied()) {
            self.backend
                .set_memory_region(&region, &mut self.services)
                .map_err(|errno| Error::Backend { what: format!("memory slot {}", region.slot), errno })?;
            self.services.memory.set_slot(&region);
        }
        Ok(())
    }

    /// Gives a vCPU another CPUID than it was built with.
    pub fn take_cpuid(&mut self, n: u32, cpuid: &[CpuidEntry]) -> Result<(), Error> {
        let what = || format!("the CPUID of vCPU {n}");
        let refused = |errno| Error::Backend { what: what(), errno };
        if self.services.cpuid.get(n as usize).is_some_and(|own| own == cpuid) {
            return Ok(());
        }
        self.set_cpuid(n, cpuid).unwrap_or(Err(Errno::ENOENT)).map_err(refused)
    }

    /// A vCPU's state in the list's order. What says that there is nothing is left out, as QEMU does not send it: the other
    /// vendor would refuse its format.
    pub fn states(&mut self, n: u32) -> Result<Vec<(StateKind, Vec<u8>)>, Error> {
        let mut states = Vec::new();
        for kind in StateKind::ALL {
            let refused = |errno| Error::Backend { what: format!("{kind} of vCPU {n}"), errno };
            let bytes = self.get_state(n, kind).map_err(refused)?;
            let nothing = kind == StateKind::NESTED_STATE
                && NestedState::from_bytes(&bytes).is_some_and(|nested| nested.is_none());
            if !nothing {
                states.push((kind, bytes));
            }
        }
        Ok(states)
    }

    /// The vCPU whose exit went to userspace last, and the general registers that state has which is saved before it is completed.
    /// `None`: the last exit was none, or the guest has run on since.
    pub fn before_completion(&self) -> Option<(u32, Regs)> {
        let exit = self.uncompleted.as_ref().filter(|exit| self.icount() <= exit.icount + 1)?;
        Some((exit.vcpu, exit.registers(self.state(exit.vcpu)?)))
    }

    /// Sets a part of a vCPU's state. Of MSRs those are set that KVM lists here too, and one that it refuses stays as it is: gives
    /// the numbers of those that are not set.
    pub fn take_state(&mut self, n: u32, kind: StateKind, bytes: &[u8]) -> Result<Vec<u32>, Errno> {
        self.used = true;
        if kind.owner() != Some(Owner::Msrs) {
            return self.set_state(n, kind, bytes).map(|()| Vec::new());
        }
        let entries = msrs_from_bytes(bytes).ok_or(Errno::EINVAL)?;
        self.vcpus.get_mut(n as usize).ok_or(Errno::ENOENT)?.needs_entry = true;
        let mut ours = self.msrs(n);
        let known = ours.list();
        let (entries, unknown): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| known.contains(&entry.index));
        let mut refused: Vec<_> = unknown.iter().map(|entry| entry.index).collect();
        refused.extend(ours.set(&entries));
        Ok(refused)
    }

    /// The VMM's models of devices, the local APICs among them, so that their timers keep their phase.
    pub fn devices(&self) -> Result<Vec<u8>, Error> {
        postcard::to_stdvec(&self.services.devices)
            .map_err(|cause| Error::Encode { what: "the devices", cause })
    }

    /// As [`Machine::take_devices`], for a VMM that has no models of the local APICs: they are as after reset until the kernel's are
    /// loaded.
    pub fn take_devices_but_apics(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let own = std::mem::take(&mut self.services.devices.lapics);
        let taken = self.take_devices(bytes);
        self.services.devices.lapics = own;
        taken
    }

    pub fn take_devices(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.used = true;
        let devices: Devices =
            postcard::from_bytes(bytes).map_err(|error| Error::Checkpoint(format!("devices: {error}")))?;
        if !devices.fit(self.vcpus.len()) {
            return Err(other_vcpus());
        }
        self.services.devices.resume(devices);
        Ok(())
    }

    /// The VMM's books. What the kernel has logged as dirty is read into them, as a VMM reads it before it lets its guest go; what
    /// lies in the log of silicon is in it, because both ioctls kick the vCPUs.
    pub fn books(&mut self) -> Result<Vec<u8>, Error> {
        self.keep_dirty_logs();
        let vcpu = |vcpu: &crate::vcpu::Vcpu| (vcpu.state.icount, vcpu.state.tsc, vcpu.progress);
        let books = Books {
            icount: self.services.clock.icount,
            exits: self.exits,
            turn: (self.turn.vcpu, self.turn.ends),
            taken: self.services.inputs.taken(),
            fault_counts: self.services.inputs.counts().clone(),
            done: self.script.done().to_vec(),
            log: self.script.logged().to_vec(),
            vcpus: self.vcpus.iter().map(vcpu).collect(),
            absent: self.services.memory.absent.clone(),
            carried: self.carried.clone(),
            memory_types: self.services.memory_types.clone(),
        };
        postcard::to_stdvec(&books).map_err(|cause| Error::Encode { what: "the VMM's books", cause })
    }

    /// Goes on with the books of a source. They come before state, whose time they hold.
    pub fn take_books(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.used = true;
        let books: Books =
            postcard::from_bytes(bytes).map_err(|error| Error::Checkpoint(format!("books: {error}")))?;
        if books.vcpus.len() != self.vcpus.len() || books.turn.0 as usize >= self.vcpus.len() {
            return Err(other_vcpus());
        }
        let steps = self.script.done().len();
        if books.done.len() != steps {
            let theirs = books.done.len();
            return Err(Error::Checkpoint(format!("its VMM's script has {theirs} steps, not {steps}")));
        }
        self.services.clock.icount = books.icount;
        self.services.inputs.resume(books.taken, books.fault_counts);
        self.script.take_over(books.done, books.log);
        self.turn = Turn { vcpu: books.turn.0, ends: books.turn.1 };
        self.exits = books.exits;
        for (vcpu, (icount, tsc, progress)) in self.vcpus.iter_mut().zip(books.vcpus) {
            (vcpu.state.icount, vcpu.state.tsc, vcpu.progress) = (icount, tsc, progress);
        }
        self.services.memory.absent = books.absent;
        self.carried = books.carried;
        self.services.memory_types = books.memory_types;
        Ok(())
    }

    /// Everything is there: the guest may go on.
    pub fn arrived(&mut self) {
        self.drop_caches();
        self.services.tape.forget();
    }

    /// An ioctl of a VMM that moves its guest: the recorder hears of it, but it is no part of what the guest's script did, and
    /// does not move with it.
    pub fn control_of_move(&mut self, control: &Control) -> Control {
        let done = self.ioctl(control.clone());
        if done.is_change() {
            self.vcpus.iter_mut().for_each(|vcpu| vcpu.needs_entry = true);
        }
        let icount = self.services.clock.icount;
        self.services.tape.event(vmtape_traces::Event::Control { icount, control: done.clone() });
        done
    }

    /// KVM_SET_USER_MEMORY_REGION of a VMM that moves its guest: a slot that the guest has gets other flags.
    pub fn set_slot_flags(&mut self, slot: u32, flags: u32) -> Result<(), Errno> {
        let slots = self.services.memory.slots();
        let region = *slots.iter().find(|region| region.slot == slot).ok_or(Errno::ENOENT)?;
        let MemoryRegion { slot, gpa, size, hpa, .. } = region;
        match self
            .control_of_move(&Control::SetMemoryRegion { slot, flags, gpa, size, hpa, result: 0 })
            .result()
        {
            0 => Ok(()),
            errno => Err(Errno(errno as i32)),
        }
    }

    /// Keeps what was read of a dirty log, for whoever asks for it next.
    pub fn keep_dirty(&mut self, slot: u32, bits: &[u64]) {
        self.carried.log(slot, bits);
    }

    fn keep_dirty_logs(&mut self) {
        let logging = self.services.memory.slots().iter().filter(|slot| slot.flags & LOG_DIRTY_PAGES != 0);
        let slots: Vec<_> = logging.map(|slot| slot.slot).collect();
        for slot in slots {
            if let Ok(bits) = self.backend.get_dirty_log(slot, &mut self.services) {
                self.carried.log(slot, &bits);
            }
        }
        for vcpu in 0..self.spec.vcpus {
            if let Ok(entries) = self.backend.harvest_dirty_ring(vcpu, &mut self.services) {
                let entries =
                    entries.into_iter().map(|entry| RingEntry { slot: entry.slot, offset: entry.offset });
                self.carried.ring(vcpu, entries.map(|entry| (entry.slot, entry.offset)));
            }
        }
    }
}

fn other_vcpus() -> Error {
    Error::Checkpoint("it is of a machine with another number of vCPUs".to_owned())
}
