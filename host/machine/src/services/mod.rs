//! The services that a backend calls, and who they are done for: the parts of a machine but its vCPUs and its backend, the
//! backend's way to them, KVM's emulator, and the running guest's way to silicon and devices.

pub(crate) mod answers;
mod emulator;
mod faults;
mod guest_env;
mod host;
mod memory_types;
mod outcomes;
mod pager;
mod pages;
mod walks;

pub(crate) use guest_env::GuestEnv;
pub use memory_types::{MemoryTypes, Typed, TypedPage};
pub use pager::{Arrived, Pager};

use crate::{
    devices::Devices,
    loader::acpi,
    memory::Memory,
    tape::{Emulation, Feeding, Tape},
    time::{Clock, FaultNumbers, InputStream, Inputs, NS_PER_TICK},
};
use outcomes::Outcomes;
use vmtape_abi::{BusOp, BusSpace, Host, MemoryStatus};
use vmtape_arch::{cpuid::CpuidEntry, vcpu::VcpuState};
use vmtape_cpu::{Cpu, FlushHandle, Ram};
use vmtape_traces::event::{Event, InputSource};
pub(crate) use walks::Walks;

/// The MSR of the x2APIC's interrupt command register.
const ICR_MSR: u64 = 0x830;

/// Everything of a machine but its vCPUs and its backend.
pub(crate) struct Services {
    pub(crate) memory: Memory,
    pub(crate) devices: Devices,
    pub(crate) clock: Clock,
    pub(crate) inputs: InputStream,
    /// What the tape calls the backend's fault points.
    pub(crate) fault_numbers: FaultNumbers,
    pub(crate) outcomes: Outcomes,
    pub(crate) memory_types: MemoryTypes,
    pub(crate) walks: Walks,
    pub(crate) tape: Tape,
    /// One per vCPU.
    pub(crate) flushes: Vec<FlushHandle>,
    /// The interpreter that serves as KVM's emulator; taken out while it runs.
    pub(crate) emulator: Option<Cpu>,
    /// The guest's CPUID per vCPU, for silicon that executes CPUID itself.
    pub(crate) cpuid: Vec<Vec<CpuidEntry>>,
    /// The emulator has counted the instruction whose exit is being handled.
    pub(crate) emulated: bool,
    /// What KVM's emulator did in the exit that is being handled.
    pub(crate) emulation: Emulation,
    /// It has left the rest of one that repeats to the guest.
    pub(crate) repeats: bool,
    /// How KVM's emulator does instructions that repeat: see [`vmtape_cpu::revision::repeats_in_bunches`].
    pub(crate) repeats_in_bunches: bool,
    /// See [`vmtape_cpu::revision::reads_ports_ahead`].
    pub(crate) reads_ports_ahead: bool,
    /// Whether [`vmtape_cpu::revision::traps_keep_their_time`].
    pub(crate) traps_keep_their_time: bool,
    /// The exit that is being handled came after its instruction.
    pub(crate) trapped: bool,
    /// The exit that is being handled has gone to userspace, which has done its part.
    pub(crate) to_userspace: bool,
    /// Iterations of repeated instructions that KVM's emulator has done for the exit that is being handled.
    pub(crate) repetitions: u64,
    /// The last exit was at the same place as the one before: the rules that decide are worth knowing, tape or not.
    pub(crate) watching: bool,
    /// The rules that the backend named there.
    pub(crate) rules: Vec<u32>,
    /// The backend has led the guest to a page that is not there, and that does not come.
    pub(crate) unmapped: Option<MemoryStatus>,
    /// A page that the guest waits for, and that nobody brings: its guest physical address.
    pub(crate) stranded: Option<u64>,
    /// Brings pages that are still where the guest has come from.
    pub(crate) pager: Option<Box<dyn Pager>>,
    /// What was wrong with an answer of the backend's, the first one.
    wrong: Option<answers::Wrong>,
    /// The last error that it has logged.
    pub(crate) said: Option<String>,
    /// What a machine that is fed from a tape knows.
    pub(crate) fed: Option<Feeding>,
}

impl Services {
    /// With the guest's CPUID per vCPU.
    pub(crate) fn new(
        memory: Memory,
        devices: Devices,
        inputs: Box<dyn Inputs>,
        tape: Tape,
        emulator: Cpu,
        cpuid: Vec<Vec<CpuidEntry>>,
    ) -> Self {
        Self {
            memory,
            devices,
            clock: Clock::default(),
            inputs: InputStream::new(inputs),
            fault_numbers: FaultNumbers::default(),
            outcomes: Outcomes::default(),
            memory_types: MemoryTypes::default(),
            walks: Walks::default(),
            tape,
            flushes: Vec::new(),
            emulator: Some(emulator),
            cpuid,
            emulated: false,
            emulation: Emulation::default(),
            repeats: false,
            repeats_in_bunches: true,
            reads_ports_ahead: true,
            traps_keep_their_time: true,
            trapped: false,
            to_userspace: false,
            repetitions: 0,
            watching: false,
            rules: Vec::new(),
            unmapped: None,
            stranded: None,
            pager: None,
            wrong: None,
            said: None,
            fed: None,
        }
    }

    /// Takes note of what is wrong with an answer of the backend's. True: nothing is.
    pub(crate) fn is_right(&mut self, answer: Result<(), answers::Wrong>) -> bool {
        let wrong = answer.err();
        let right = wrong.is_none();
        self.wrong = self.wrong.take().or(wrong);
        right
    }

    /// What was wrong with an answer of the backend's since the last call.
    pub(crate) fn take_wrong(&mut self) -> Option<answers::Wrong> {
        self.wrong.take()
    }

    /// Nothing has happened since memory and devices were put back to another moment, and nobody has asked for digests.
    pub(crate) fn forget_run(&mut self) {
        self.outcomes = Outcomes::default();
        self.ram().forget_changes();
        self.memory.uncounted = 0;
        self.memory.remote.clear();
        (self.emulated, self.repeats, self.repetitions, self.watching) = (false, false, 0, false);
        self.rules.clear();
        self.walks.expire();
        (self.unmapped, self.pager, self.wrong, self.fed) = (None, None, None, None);
        (self.stranded, self.said) = (None, None);
    }

    /// Whether what exits change in registers is to be told, or compared.
    pub(crate) fn tells_changes(&self) -> bool {
        let compares = self.fed.as_ref().is_some_and(Feeding::compares_changes);
        self.tape.changes.are_told() && (compares || self.tape.tells_stimuli())
    }

    pub(crate) fn ram(&self) -> &Ram {
        self.memory.ram()
    }

    /// Takes over the instruction count that the interpreter has reached; gives the time.
    pub(crate) fn sync_clock(&mut self, state: &mut VcpuState) -> u64 {
        self.clock.icount = state.icount;
        state.tsc = self.clock.tsc_at(state.icount);
        self.clock.now()
    }

    pub(crate) fn random(&mut self) -> u64 {
        let icount = self.clock.icount;
        let value = self.inputs.random(icount);
        self.tape.event(Event::Input { icount, source: InputSource::RANDOM, value });
        value
    }

    /// Feeds serial input that is due.
    pub(crate) fn poll_serial(&mut self) {
        let icount = self.clock.icount;
        while self.inputs.next_serial().is_some_and(|due| due <= icount) {
            let Some(byte) = self.inputs.serial(icount) else { break };
            self.type_byte(byte);
        }
    }

    /// Types a byte on the serial port, on the tape too.
    pub(crate) fn type_byte(&mut self, byte: u8) {
        let icount = self.clock.icount;
        self.tape.event(Event::Input { icount, source: InputSource::SERIAL, value: byte.into() });
        for _ in 0..self.arrivals(byte) {
            self.devices.receive(byte);
        }
    }

    /// A guest that goes to sleep has left in memory where firmware is to go on: part of what the exit reads.
    fn read_waking_vector(&mut self) {
        if self.devices.waking_vector().is_none() {
            return;
        }
        let mut bytes = [0; 4];
        if let Some(hpa) = self.memory.hpa(acpi::WAKING_VECTOR) {
            self.read(hpa, &mut bytes);
        }
        if let Some(vector) = self.devices.waking_vector() {
            *vector = u32::from_le_bytes(bytes);
        }
    }

    fn access_bus(&mut self, vcpu: u32, op: &mut BusOp) -> bool {
        self.to_userspace |= matches!(op.space, BusSpace::USER_PIO | BusSpace::USER_MMIO);
        let before_trap = u64::from(self.trapped && self.traps_keep_their_time);
        let now = self.clock.now().saturating_sub(before_trap * NS_PER_TICK);
        match op.space {
            BusSpace::KERNEL_PIO => self.devices.kernel_pio(op, now),
            BusSpace::USER_PIO => {
                let claimed = self.devices.user_pio(op, now);
                self.read_waking_vector();
                claimed
            }
            BusSpace::USER_MMIO => self.devices.user_mmio(op, now),
            BusSpace::EOI => self.devices.silicon_eoi(vcpu, op),
            BusSpace::INTERRUPT => {
                let accepted = self.devices.send(op);
                self.devices.take_traced().for_each(|note| self.note(vcpu, note));
                accepted
            }
            BusSpace::KERNEL_MMIO | BusSpace::MSR => {
                let answered = if op.space == BusSpace::MSR {
                    self.devices.msr(vcpu, op, now)
                } else {
                    self.devices.kernel_mmio(vcpu, op, now)
                };
                let sent = self.devices.take_traced();
                // See: KVM lapic.c kvm_x2apic_icr_write()
                let icr = op.space == BusSpace::MSR && op.address == ICR_MSR;
                let (first, last) = if icr { (None, answered.note) } else { (answered.note, None) };
                first.into_iter().chain(sent).chain(last).for_each(|note| self.note(vcpu, note));
                answered.claimed
            }
            _ => false,
        }
    }
}
