//! The machine: its parts, how they are put together, and what can be asked of it.

use crate::{
    Error,
    checkpoint::{Milestones, PageHashes},
    devices::{DeviceConfig, Devices},
    host::{Clock, Services},
    hosts,
    inputs::{Inputs, Taken},
    loader,
    memory::Memory,
    model::{CpuOption, silicon_cpuid},
    progress::Progress,
    recorder::{Recorder, Tape},
    spec::{MAX_VCPUS, MachineSpec},
    vmm::{self, Script},
};
use std::io::Write;
use vmtape_abi::{Backend, Errno};
use vmtape_arch::{
    PAGE_SIZE,
    cpuid::{CpuidEntry, find, maxphyaddr},
    exit::Exit,
    vcpu::{Activity, VcpuState},
};
use vmtape_cpu::{Cpu, CpuConfig, Features, Mark, Model, revision};

/// One virtual processor.
pub(crate) struct Vcpu {
    pub(crate) state: VcpuState,
    pub(crate) cpu: Cpu,
    /// The backend is to be asked before the guest goes on.
    pub(crate) needs_entry: bool,
    pub(crate) progress: Progress,
}

/// When pages were written that somebody of the machine asks for later.
pub(crate) struct Marks {
    /// The run began: a replay loads the same image.
    start: Mark,
    /// The last checkpoint was made or restored.
    pub(crate) checkpoint: Mark,
}

/// A guest on its way through a backend.
pub struct Machine {
    pub(crate) spec: MachineSpec,
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) services: Services,
    pub(crate) serial: Option<Box<dyn Write>>,
    /// The vCPU whose turn it is, and the instruction count at which its turn ends.
    pub(crate) current: u32,
    pub(crate) turn_ends: u64,
    pub(crate) exits: u64,
    pub(crate) next_checkpoint: u64,
    pub(crate) page_hashes: PageHashes,
    pub(crate) marks: Marks,
    /// The exit that the backend fills in.
    pub(crate) exit: Box<Exit>,
    pub(crate) script: Script,
    pub(crate) milestones: Milestones,
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
        let script = Script::new(&spec)?;
        let memory = Memory::new(
            spec.memory,
            spec.layout,
            spec.silicon.backing_shift,
            &vmm::memory_regions(&spec.script),
        )?;
        let boot_state = loader::load(&spec, &memory)?;
        let config = cpu_config(&spec);
        let vcpus: Vec<_> = (0..spec.vcpus).map(|n| Vcpu::new(n, &boot_state, config)).collect();
        let services = Services {
            devices: Devices::new(&device_config(&spec)),
            clock: Clock::default(),
            inputs,
            taken: Taken::default(),
            tape: Tape::new(recorder, spec.vcpus),
            flushes: vcpus.iter().map(|vcpu| vcpu.cpu.flush_handle()).collect(),
            emulator: Some(Cpu::new(emulator_config(&spec))),
            cpuid: (0..spec.vcpus).map(|n| crate::cpuid::for_vcpu(&spec.cpuid, n, spec.vcpus)).collect(),
            emulated: false,
            watching: false,
            rules: Vec::new(),
            fed: None,
            memory,
        };
        let next_checkpoint = spec.checkpoint_every;
        let milestones = Milestones::new(spec.milestone_every);
        let page_hashes = PageHashes::new(services.ram().len() / PAGE_SIZE);
        let mut machine = Self {
            spec,
            backend,
            vcpus,
            services,
            serial: None,
            current: 0,
            turn_ends: 0,
            exits: 0,
            next_checkpoint,
            page_hashes,
            marks: Marks { start: Mark::START, checkpoint: Mark::START },
            exit: Box::default(),
            script,
            milestones,
        };
        machine.spec.options = machine.backend.resolved();
        machine.set_up()?;
        machine.hash_dirty_pages();
        let start = machine.services.memory.mark();
        machine.marks = Marks { start, checkpoint: start };
        Ok(machine)
    }

    /// Slots, vCPUs and CPUID, in the order of a VMM.
    fn set_up(&mut self) -> Result<(), Error> {
        let refused = |what: String| move |errno: Errno| Error::Backend { what, errno };
        for slot in self.services.memory.slots().to_vec() {
            self.backend
                .set_memory_region(&slot, &mut self.services)
                .map_err(refused(format!("memory slot {} at {:#x}", slot.slot, slot.gpa)))?;
        }
        for (n, vcpu) in (0..).zip(&mut self.vcpus) {
            self.backend.create_vcpu(n).map_err(refused(format!("vCPU {n}")))?;
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

    /// Gives the recorder back.
    pub fn take_recorder(&mut self) -> Option<Box<dyn Recorder>> {
        self.services.tape.take_recorder()
    }

    /// The CPUID that a vCPU was given.
    pub fn cpuid(&self, vcpu: u32) -> &[CpuidEntry] {
        self.services.cpuid.get(vcpu as usize).map_or(&[], Vec::as_slice)
    }
}

impl Vcpu {
    /// The first vCPU boots the guest, the others wait for it.
    fn new(number: u32, boot_state: &VcpuState, config: CpuConfig) -> Self {
        let mut state = *boot_state;
        if number != 0 {
            state = VcpuState { activity: Activity::WAIT_FOR_SIPI, ..VcpuState::reset() };
        }
        Self { state, cpu: Cpu::new(config), needs_entry: true, progress: Progress::default() }
    }
}

/// The instruction set that the guest's CPUID promises, on the host's silicon.
pub(crate) fn cpu_config(spec: &MachineSpec) -> CpuConfig {
    CpuConfig {
        features: Features::from_cpuid(&spec.cpuid),
        model: Model {
            rules: revision::silicon(spec.cpu_revision, spec.silicon.vendor),
            rmw_reads_first: spec.silicon.rmw_reads_first,
            ..Model::from_cpuid(&silicon_cpuid(&spec.silicon))
        },
    }
}

/// KVM's emulator goes by what the guest was told, its vendor too: that is how SYSCALL from compatibility mode works for
/// an AMD guest on an Intel host.
/// See: KVM arch/x86/kvm/emulate.c em_syscall(), emulator_get_cpuid()
fn emulator_config(spec: &MachineSpec) -> CpuConfig {
    let told = Model::from_cpuid(&spec.cpuid);
    let model = Model { rules: revision::emulator(spec.cpu_revision, told.vendor), ..told };
    CpuConfig { features: Features::from_cpuid(&spec.cpuid), model }
}

fn device_config(spec: &MachineSpec) -> DeviceConfig {
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE: u32 = 1 << 24;
    let features = find(&spec.cpuid, 1, 0).map_or(0, |entry| entry.ecx);
    DeviceConfig {
        vcpus: spec.vcpus,
        ram: spec.memory,
        has_x2apic: features & X2APIC != 0,
        has_tsc_deadline: features & TSC_DEADLINE != 0,
        max_gpa: max_gpa(&spec.cpuid),
    }
}

/// The highest guest physical address of a vCPU with this CPUID.
pub(crate) fn max_gpa(cpuid: &[CpuidEntry]) -> u64 {
    (1 << maxphyaddr(cpuid).clamp(32, 52)) - 1
}
