//! A guest that moves to another machine while it runs, as the ioctls of save and restore move it: everything the guest
//! can observe goes along, nothing of what the backend keeps for itself.
//!
//! Devices move as any VMM moves its models, as a whole; the local APIC among them too, so that its timer keeps its phase, and by
//! its page again. What they and the registers hold is in the list of state kinds, which says the order.

use super::Machine;
use crate::{Error, vcpu::Vcpu};
use vmtape_abi::MemoryRegion;
use vmtape_arch::{
    PAGE_SIZE,
    state::{Layout, NestedState, Owner, StateKind},
    vcpu::Activity,
};

const PAGE: usize = PAGE_SIZE as usize;
/// KVM_MEM_LOG_DIRTY_PAGES.
const LOG_DIRTY_PAGES: u32 = 1;

impl Machine {
    /// Whether the guest can move: no vCPU is between an exit and its entry, where its backend may hold an event that the
    /// guest has not taken yet, and none has a debug exception pending in the shadow of MOV SS, which no ioctl carries.
    pub fn can_move(&self) -> bool {
        let at_rest = |vcpu: &Vcpu| {
            let entered = !vcpu.needs_entry && !vcpu.state.inject.valid && vcpu.state.pending_debug == 0;
            entered || vcpu.state.activity != Activity::ACTIVE
        };
        self.vcpus.iter().all(at_rest)
    }

    /// What changed since the last checkpoint, or since the machine was built: the next link for [`Machine::restore`].
    pub fn checkpoint(&mut self) -> Result<Vec<u8>, Error> {
        self.page_hashes.update(&self.services.memory);
        self.save()
    }

    /// Goes on where another machine of the same guest stands, which [`Machine::can_move`]. This one was just built.
    pub fn take_over(&mut self, source: &mut Self) -> Result<(), Error> {
        if self.vcpus.len() != source.vcpus.len() {
            return Err(Error::Checkpoint("it is of a machine with another number of vCPUs".to_owned()));
        }
        self.take_capabilities(source)?;
        self.take_memory(source)?;
        self.take_dirty_logs(source);
        let devices =
            postcard::to_stdvec(&source.services.devices).and_then(|bytes| postcard::from_bytes(&bytes));
        self.services.devices = devices.map_err(|error| Error::Checkpoint(error.to_string()))?;
        self.services.clock.icount = source.services.clock.icount;
        let inputs = &source.services.inputs;
        self.services.inputs.resume(inputs.taken(), inputs.counts().clone());
        self.script.take_over(&source.script);
        (self.turn, self.exits) = (source.turn, source.exits);
        for n in 0..self.spec.vcpus {
            self.take_vcpu(source, n)?;
        }
        self.services.memory_types = source.services.memory_types.clone();
        self.drop_caches();
        self.services.tape.forget();
        Ok(())
    }

    /// Capabilities that the source's VMM has enabled, but for those that this one has enabled already: some have a meaning before
    /// there are vCPUs only, so they are part of how a machine is built.
    fn take_capabilities(&mut self, source: &Self) -> Result<(), Error> {
        let mut own: Vec<_> = self.script.enabled_caps().collect();
        for enabled in source.script.enabled_caps() {
            if let Some(at) = own.iter().position(|own| *own == enabled) {
                own.swap_remove(at);
                continue;
            }
            let (cap, flags, arg) = enabled;
            self.backend
                .enable_cap(cap, flags, arg)
                .map_err(|errno| Error::Backend { what: format!("capability {cap}"), errno })?;
        }
        Ok(())
    }

    /// What the source's kernel has logged, read as its VMM reads it before it lets the guest go. What lies in the log of silicon
    /// is in it, because both ioctls kick the vCPUs.
    fn take_dirty_logs(&mut self, source: &mut Self) {
        let logging = source.services.memory.slots().iter().filter(|slot| slot.flags & LOG_DIRTY_PAGES != 0);
        let slots: Vec<_> = logging.map(|slot| slot.slot).collect();
        self.carried = source.carried.clone();
        for slot in slots {
            if let Ok(bits) = source.backend.get_dirty_log(slot, &mut source.services) {
                self.carried.log(slot, &bits);
            }
        }
        for vcpu in 0..source.spec.vcpus {
            if let Ok(entries) = source.backend.harvest_dirty_ring(vcpu, &mut source.services) {
                self.carried.ring(vcpu, entries.into_iter().map(|entry| (entry.slot, entry.offset)));
            }
        }
    }

    /// Slots as a script has changed them, and what is in memory.
    fn take_memory(&mut self, source: &Self) -> Result<(), Error> {
        let (now, wanted) = (self.services.memory.slots().to_vec(), source.services.memory.slots().to_vec());
        let gone =
            now.iter().filter(|slot| !wanted.contains(slot)).map(|slot| MemoryRegion { size: 0, ..*slot });
        for region in gone.chain(wanted.iter().filter(|slot| !now.contains(slot)).copied()) {
            self.backend
                .set_memory_region(&region, &mut self.services)
                .map_err(|errno| Error::Backend { what: format!("memory slot {}", region.slot), errno })?;
            self.services.memory.set_slot(&region);
        }
        self.services.memory.absent = source.services.memory.absent.clone();
        if self.services.ram().len() != source.services.ram().len() {
            return Err(Error::Checkpoint("its memory is laid out otherwise".to_owned()));
        }
        let (mut old, mut new) = ([0; PAGE], [0; PAGE]);
        for hpa in (0..self.services.ram().len()).step_by(PAGE) {
            let read = self.services.ram().read(hpa, &mut old) && source.services.ram().read(hpa, &mut new);
            if read && old != new {
                self.services.ram().write(hpa, &new);
            }
        }
        Ok(())
    }

    /// CPUID before everything that is checked against it, then each kind of state in the list's order.
    fn take_vcpu(&mut self, source: &mut Self, n: u32) -> Result<(), Error> {
        let refused = |what: &str, errno| Error::Backend { what: format!("{what} of vCPU {n}"), errno };
        let index = n as usize;
        if self.spec.cpuid == source.spec.cpuid && self.services.cpuid[index] != source.services.cpuid[index]
        {
            // The script has changed it.
            let cpuid = source.services.cpuid[index].clone();
            self.backend
                .set_cpuid(n, &mut self.vcpus[index].state, &cpuid, &mut self.services)
                .map_err(|errno| refused("the CPUID", errno))?;
            self.services.cpuid[index] = cpuid;
        }
        for kind in StateKind::ALL {
            if kind.owner() == Some(Owner::Msrs) {
                self.take_msrs(source, n);
                continue;
            }
            let name = kind.name().unwrap_or_default();
            let bytes = source.get_state(n, kind).map_err(|errno| refused(name, errno))?;
            // As QEMU does not send what says that there is nothing, whose format the other vendor would refuse.
            let nothing = kind == StateKind::NESTED_STATE
                && NestedState::from_bytes(&bytes).is_some_and(|nested| nested.is_none());
            if !nothing {
                self.set_state(n, kind, &bytes).map_err(|errno| refused(name, errno))?;
            }
        }
        let (ours, theirs) = (&mut self.vcpus[index], &source.vcpus[index]);
        (ours.state.icount, ours.state.tsc) = (theirs.state.icount, theirs.state.tsc);
        ours.progress = theirs.progress;
        Ok(())
    }

    /// What KVM lists on both sides, with what the VMM adds. A register that this side refuses stays as it is.
    fn take_msrs(&mut self, source: &mut Self, n: u32) {
        let mut theirs = source.msrs(n);
        let listed = theirs.list();
        let entries = theirs.get(&listed);
        let mut ours = self.msrs(n);
        let known = ours.list();
        let entries: Vec<_> = entries.into_iter().filter(|entry| known.contains(&entry.index)).collect();
        ours.set(&entries);
    }
}
