//! The machine: its parts, how they are put together, and what can be asked of it.

mod checkpoint;
mod configuration;
mod control;
mod exits;
mod feed;
mod halt;
mod hashes;
mod limits;
mod moving;
mod pcpus;
mod resolve;
mod run;
mod sleep;
mod smi;
mod snapshot;
mod state;
mod take_over;
mod uncompleted;
mod wake;

pub use hashes::Digest;
pub use limits::Limits;
pub use moving::{Block, Capability};
pub use resolve::Resolved;
pub use snapshot::Snapshot;

use crate::{
    Error,
    devices::{Devices, MAX_VCPUS},
    hosts, loader,
    memory::{Memory, PageHashes},
    model::{self, CpuOption, silicon_cpuid},
    services::Services,
    spec::MachineSpec,
    tape::{Recorder, Tape},
    time::{FaultNumbers, Inputs, Milestones},
    vcpu::{Placement, Turn, Vcpu, flush_handles},
    vmm::{self, Carried, Script},
};
use configuration::{cpu_config, device_config, emulator_config};
use halt::Halt;
use std::io::Write;
use uncompleted::Uncompleted;
use vmtape_abi::{Backend, Errno};
use vmtape_arch::{PAGE_SIZE, cpuid::CpuidEntry, exit::Exit, vcpu::VcpuState};
use vmtape_cpu::{Cpu, Mark, revision};
use vmtape_traces::event::Fault;

/// When pages were written that somebody of the machine asks for later.
struct Marks {
    /// The run began: a replay loads the same image.
    start: Mark,
    /// The last checkpoint was made or restored.
    checkpoint: Mark,
}

/// A guest on its way through a backend.
pub struct Machine {
    spec: MachineSpec,
    backend: Box<dyn Backend>,
    vcpus: Vec<Vcpu>,
    turn: Turn,
    placement: Placement,
    halt: Halt,
    services: Services,
    script: Script,
    /// Dirty pages of the machine that this one took over.
    carried: Carried,
    serial: Option<Box<dyn Write>>,
    exits: u64,
    /// The instruction count at which it was last asked whether the run is to end.
    attended: u64,
    /// It has taken a part of a guest.
    used: bool,
    /// How often KVM_RUN was called again that had failed.
    retried: u32,
    uncompleted: Option<Uncompleted>,
    /// The exit that the backend fills in.
    exit: Box<Exit>,
    next_checkpoint: u64,
    page_hashes: PageHashes,
    milestones: Milestones,
    marks: Marks,
}

impl Machine {
    /// Builds the machine that a specification describes and loads its guest. Where the specification has no CPUID, the
    /// CPU model is resolved against what the backend supports.
    pub fn new(
        mut spec: MachineSpec,
        backend: Box<dyn Backend>,
        inputs: Box<dyn Inputs>,
        recorder: Option<Box<dyn Recorder>>,
    ) -> Result<Self, Error> {
        if spec.vcpus == 0 || spec.vcpus > MAX_VCPUS {
            return Err(Error::Vcpus(spec.vcpus));
        }
        if spec.cpu_revision > revision::REVISION {
            return Err(Error::CpuRevision(spec.cpu_revision));
        }
        hosts::check(&spec.silicon).map_err(|cause| Error::Host { text: spec.host.clone(), cause })?;
        if spec.cpuid.is_empty() {
            let supported = backend.supported_cpuid(&silicon_cpuid(&spec.silicon));
            spec.cpuid = CpuOption::parse(&spec.cpu)?.cpuid(&spec.silicon, &supported);
        }
        let script = Script::new(&spec.script, spec.vcpus)?;
        let memory = Memory::new(
            spec.memory,
            spec.layout,
            spec.silicon.backing_shift,
            &vmm::memory_regions(&spec.script),
        )?;
        let boot_state = loader::load(&spec, &memory)?;
        let config = cpu_config(&spec);
        let fcw = revision::fcw(spec.cpu_revision);
        let vcpus: Vec<_> = (0..spec.vcpus).map(|n| Vcpu::new(n, &boot_state, config, fcw)).collect();
        let mut services = Services::new(
            memory,
            Devices::new(&device_config(&spec)),
            inputs,
            Tape::new(recorder, spec.vcpus, spec.register_changes),
            Cpu::new(emulator_config(&spec)),
            (0..spec.vcpus).map(|n| model::for_vcpu(&spec.cpuid, n, spec.vcpus)).collect(),
        );
        services.flushes = flush_handles(&vcpus);
        services.traps_keep_their_time = revision::traps_keep_their_time(spec.cpu_revision);
        services.repeats_in_bunches = revision::repeats_in_bunches(spec.cpu_revision);
        services.reads_ports_ahead = revision::reads_ports_ahead(spec.cpu_revision);
        services.fault_numbers = FaultNumbers::new(&backend.fault_points(), &spec.fault_points);
        let placement = Placement::new(spec.vcpus);
        let next_checkpoint = spec.checkpoint_every;
        let milestones = Milestones::new(spec.milestone_every);
        let page_hashes = PageHashes::new(services.ram().len() / PAGE_SIZE);
        let mut machine = Self {
            spec,
            backend,
            vcpus,
            turn: Turn::default(),
            placement,
            halt: Halt::default(),
            services,
            script,
            carried: Carried::default(),
            serial: None,
            exits: 0,
            attended: 0,
            used: false,
            retried: 0,
            uncompleted: None,
            exit: Box::default(),
            next_checkpoint,
            page_hashes,
            milestones,
            marks: Marks { start: Mark::START, checkpoint: Mark::START },
        };
        machine.spec.options = machine.backend.resolved();
        machine.set_up()?;
        machine.page_hashes.update(&machine.services.memory);
        let start = machine.services.memory.mark();
        machine.marks = Marks { start, checkpoint: start };
        Ok(machine)
    }

    /// Slots, vCPUs and CPUID, in the order of a VMM.
    fn set_up(&mut self) -> Result<(), Error> {
        let refused = |what: String| move |errno: Errno| Error::Backend { what, errno };
        self.enable_cpus().map_err(refused("virtualization on CPU 0".into()))?;
        for slot in self.services.memory.slots().to_vec() {
            self.backend
                .set_memory_region(&slot, &mut self.services)
                .map_err(refused(format!("memory slot {} at {:#x}", slot.slot, slot.gpa)))?;
        }
        self.run_script_before_vcpus();
        for (n, vcpu) in (0..).zip(&mut self.vcpus) {
            let created = self.services.creates_vcpu(n).and_then(|()| self.backend.create_vcpu(n));
            created.map_err(refused(format!("vCPU {n}")))?;
            let cpuid = self.services.cpuid[n as usize].clone();
            self.backend
                .set_cpuid(n, &mut vcpu.state, &cpuid, &mut self.services)
                .map_err(refused(format!("the CPUID of vCPU {n}")))?;
            self.backend.state_changed(n, &mut vcpu.state, &mut self.services);
        }
        Ok(())
    }

    /// Where the guest's serial output goes.
    pub fn set_serial(&mut self, sink: Box<dyn Write>) {
        self.serial = Some(sink);
    }

    /// So often is KVM_RUN called again after an errno.
    pub fn set_retries(&mut self, retries: u32) {
        self.spec.retries = retries;
    }

    /// The specification, with everything resolved: what a tape's header stores.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Instructions retired by all vCPUs.
    pub fn icount(&self) -> u64 {
        self.services.clock.icount
    }

    /// Exits handled.
    pub fn exits(&self) -> u64 {
        self.exits
    }

    /// How often KVM_RUN was called again that had failed.
    pub fn retried(&self) -> u32 {
        self.retried
    }

    /// The rules of the backend that decided while the guest made no progress, by their numbers.
    pub fn rules_of_standstill(&self) -> &[u32] {
        &self.services.rules
    }

    /// The registers of a vCPU.
    pub fn state(&self, vcpu: u32) -> Option<&VcpuState> {
        self.vcpus.get(vcpu as usize).map(|vcpu| &vcpu.state)
    }

    /// The memory.
    pub fn memory(&self) -> &Memory {
        &self.services.memory
    }

    /// Host physical page numbers of memory that was written since the machine was built, in order.
    pub fn written_pages(&self) -> impl Iterator<Item = u64> {
        self.services.memory.written_since(self.marks.start)
    }

    /// Faults of a tape that nobody has asked for: of the whole tape or, where exits are fed, of the last exit.
    pub fn missed_faults(&self) -> Vec<Fault> {
        match &self.services.fed {
            Some(fed) => fed.faults.missed().copied().collect(),
            None => self.services.inputs.missed_faults(),
        }
    }

    /// Gives the recorder back.
    pub fn take_recorder(&mut self) -> Option<Box<dyn Recorder>> {
        self.services.tape.take_recorder()
    }

    /// The CPUID that a vCPU was given.
    pub fn cpuid(&self, vcpu: u32) -> &[CpuidEntry] {
        self.services.cpuid.get(vcpu as usize).map_or(&[], Vec::as_slice)
    }
}
