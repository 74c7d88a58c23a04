//! A guest that moves to another machine of this process, while it runs: the parts of [`super::moving`], one after the other.

use super::Machine;
use crate::{Error, vcpu::Vcpu};
use vmtape_arch::{PAGE_SHIFT, PAGE_SIZE, vcpu::Activity};
use vmtape_cpu::Mark;

const PAGE: usize = PAGE_SIZE as usize;

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
        self.take_capabilities(&source.capabilities())?;
        self.take_slots(&source.slots())?;
        self.take_memory(source)?;
        self.take_devices(&source.devices()?)?;
        self.take_books(&source.books()?)?;
        for n in 0..self.spec.vcpus {
            self.take_vcpu(source, n)?;
        }
        self.arrived();
        Ok(())
    }

    /// What is in memory. Only what differs is written.
    fn take_memory(&mut self, source: &Self) -> Result<(), Error> {
        if self.services.ram().len() != source.services.ram().len() {
            return Err(Error::Checkpoint("its memory is laid out otherwise".to_owned()));
        }
        let (mut old, mut new) = ([0; PAGE], [0; PAGE]);
        let written = |machine: &Self| machine.services.memory.written_since(Mark::START).collect::<Vec<_>>();
        for hpa in written(source).into_iter().chain(written(self)).map(|page| page << PAGE_SHIFT) {
            let read = self.services.ram().read(hpa, &mut old) && source.services.ram().read(hpa, &mut new);
            if read && old != new {
                self.services.ram().write(hpa, &new);
            }
        }
        Ok(())
    }

    /// CPUID before everything that is checked against it, then each kind of state in the list's order.
    fn take_vcpu(&mut self, source: &mut Self, n: u32) -> Result<(), Error> {
        if self.spec.cpuid == source.spec.cpuid {
            // The script may have changed it.
            self.take_cpuid(n, source.cpuid(n))?;
        }
        for (kind, bytes) in source.states(n)? {
            let refused = |errno| Error::Backend { what: format!("{kind} of vCPU {n}"), errno };
            self.take_state(n, kind, &bytes).map_err(refused)?;
        }
        Ok(())
    }
}
