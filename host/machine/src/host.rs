//! The services that a backend calls: memory, TLB flushes, devices, the emulator, the tape.

use crate::{
    devices::Devices,
    devices::NS_PER_TICK,
    inputs::{Inputs, Taken},
    memory::Memory,
    recorder::Tape,
};
use serde::{Deserialize, Serialize};
use vmtape_abi::{ALL_VCPUS, BusOp, BusSpace, EmulateRequest, Emulated, EmulatorMmu, FlushScope, Host};
use vmtape_arch::{
    cpuid::CpuidEntry,
    level::Place,
    note::{Note, NoteKind},
    vcpu::VcpuState,
};
use vmtape_cpu::{Cpu, Flush, FlushHandle, Ram};
use vmtape_traces::event::{Event, InputSource};

/// Virtual time: a function of retired instructions.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Clock {
    /// Instructions retired by all vCPUs. Each one is a tick of the time-stamp counter.
    pub(crate) icount: u64,
    /// Ticks that passed while every vCPU was halted.
    idle: u64,
}

impl Clock {
    /// The time-stamp counter after `icount` instructions.
    pub(crate) fn tsc_at(&self, icount: u64) -> u64 {
        icount.wrapping_add(self.idle)
    }

    /// Nanoseconds since the machine was switched on, which devices live by.
    pub(crate) fn now(&self) -> u64 {
        self.tsc_at(self.icount).wrapping_mul(NS_PER_TICK)
    }

    /// The instruction count at which a time is reached if no vCPU halts.
    pub(crate) fn icount_at(&self, ns: u64) -> u64 {
        ns.div_ceil(NS_PER_TICK).saturating_sub(self.idle)
    }

    /// Lets time pass without instructions.
    pub(crate) fn jump_to(&mut self, ns: u64) {
        self.idle += self.icount_at(ns).saturating_sub(self.icount);
    }
}

/// Everything of a machine but its vCPUs and its backend.
pub(crate) struct Services {
    pub(crate) memory: Memory,
    pub(crate) devices: Devices,
    pub(crate) clock: Clock,
    pub(crate) inputs: Box<dyn Inputs>,
    pub(crate) taken: Taken,
    pub(crate) tape: Tape,
    /// One per vCPU.
    pub(crate) flushes: Vec<FlushHandle>,
    /// The interpreter that serves as KVM's emulator; taken out while it runs.
    pub(crate) emulator: Option<Cpu>,
    /// The guest's CPUID per vCPU, for silicon that executes CPUID itself.
    pub(crate) cpuid: Vec<Vec<CpuidEntry>>,
    /// The emulator has counted the instruction whose exit is being handled.
    pub(crate) emulated: bool,
    /// The last exit was at the same place as the one before: the rules that decide are worth knowing, tape or not.
    pub(crate) watching: bool,
    /// The rules that the backend named there.
    pub(crate) rules: Vec<u32>,
    /// What a machine that is fed from a tape knows.
    pub(crate) fed: Option<crate::feed::Feeding>,
}

impl Services {
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
        self.taken.random += 1;
        self.tape.event(Event::Input { icount, source: InputSource::RANDOM, value });
        value
    }

    /// Feeds serial input that is due.
    pub(crate) fn poll_serial(&mut self) {
        let icount = self.clock.icount;
        while self.inputs.next_serial().is_some_and(|due| due <= icount) {
            let Some(byte) = self.inputs.serial(icount) else { break };
            self.type_byte(byte, icount);
        }
    }

    /// Types a byte that was `due` on the serial port, on the tape too.
    pub(crate) fn type_byte(&mut self, byte: u8, due: u64) {
        let icount = self.clock.icount;
        (self.taken.serial, self.taken.last_serial) = (self.taken.serial + 1, due);
        self.tape.event(Event::Input { icount, source: InputSource::SERIAL, value: byte.into() });
        self.devices.receive(byte);
    }

    fn access_bus(&mut self, vcpu: u32, op: &mut BusOp) -> bool {
        let now = self.clock.now();
        match op.space {
            BusSpace::KERNEL_PIO => self.devices.kernel_pio(op, now),
            BusSpace::USER_PIO => self.devices.user_pio(op, now),
            BusSpace::USER_MMIO => self.devices.user_mmio(op),
            BusSpace::EOI => self.devices.silicon_eoi(vcpu, op),
            BusSpace::KERNEL_MMIO | BusSpace::MSR => {
                let answered = if op.space == BusSpace::MSR {
                    self.devices.msr(vcpu, op, now)
                } else {
                    self.devices.kernel_mmio(vcpu, op, now)
                };
                if let Some(note) = answered.note {
                    self.note(vcpu, note);
                }
                answered.claimed
            }
            _ => false,
        }
    }
}

impl Host for Services {
    fn read(&mut self, hpa: u64, buf: &mut [u8]) -> bool {
        let done = self.memory.contains_hpa(hpa, buf.len() as u64) && self.ram().read(hpa, buf);
        if done {
            self.tape.read(hpa, buf);
            if let Some(fed) = &mut self.fed {
                fed.read(hpa, buf.len() as u64);
            }
        }
        done
    }

    fn write(&mut self, hpa: u64, data: &[u8]) -> bool {
        let done = self.memory.contains_hpa(hpa, data.len() as u64) && self.ram().write(hpa, data);
        if done {
            self.tape.wrote(hpa, data);
            if let Some(fed) = &mut self.fed {
                fed.knowledge.memory.learn(hpa, data.len() as u64);
            }
        }
        done
    }

    fn cmpxchg(&mut self, hpa: u64, old: u64, new: u64, size: u8) -> Option<bool> {
        let len = usize::from(size.min(8));
        let mut current = [0; 8];
        if !self.read(hpa, &mut current[..len]) {
            return None;
        }
        if current[..len] != old.to_le_bytes()[..len] {
            return Some(false);
        }
        Some(self.write(hpa, &new.to_le_bytes()[..len]))
    }

    fn flush_tlb(&mut self, vcpu: u32, scope: FlushScope, address: u64) {
        let flush = match scope {
            FlushScope::NON_GLOBAL => Flush::NonGlobal,
            FlushScope::GVA => Flush::Page(address),
            // The TLB is indexed by linear address: which entries lead to a gpa is not known.
            _ => Flush::All,
        };
        if vcpu == ALL_VCPUS {
            self.flushes.iter().for_each(|handle| handle.request(flush));
        } else if let Some(handle) = self.flushes.get(vcpu as usize) {
            handle.request(flush);
        }
    }

    fn emulate(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        request: &EmulateRequest,
        mmu: &mut dyn EmulatorMmu,
    ) -> Emulated {
        crate::emulate::emulate(self, vcpu, state, request, mmu)
    }

    fn bus(&mut self, vcpu: u32, op: &mut BusOp) -> bool {
        if vcpu as usize >= self.devices.lapics.len() {
            return false;
        }
        let claimed = self.access_bus(vcpu, op);
        if !op.write && (1..8).contains(&op.size) {
            op.data &= u64::MAX >> (64 - 8 * u32::from(op.size));
        }
        claimed
    }

    fn interrupt(&mut self, vcpu: u32, ack: bool) -> Option<u8> {
        self.devices.interrupt(vcpu, ack)
    }

    fn nmi(&mut self, vcpu: u32, ack: bool) -> bool {
        self.devices.nmi(vcpu, ack)
    }

    fn note_at(&mut self, vcpu: u32, place: Place, note: Note) {
        if let Note::Rule { id } = note
            && self.watching
            && !self.rules.contains(&id)
        {
            self.rules.push(id);
        }
        self.tape.note(vcpu, place, note);
    }

    fn wants(&self, kind: NoteKind) -> bool {
        self.tape.wants(kind) || kind == NoteKind::RULE && self.watching
    }

    fn log(&mut self, level: u32, text: &str) {
        match level {
            0 | 1 => tracing::error!(target: "backend", "{text}"),
            2 => tracing::warn!(target: "backend", "{text}"),
            3 => tracing::info!(target: "backend", "{text}"),
            4 => tracing::debug!(target: "backend", "{text}"),
            _ => tracing::trace!(target: "backend", "{text}"),
        }
    }

    fn fault_point(&mut self, vcpu: u32, id: u32) -> Option<u64> {
        let icount = self.clock.icount;
        let value = self.inputs.fault(icount, vcpu, id)?;
        self.taken.faults += 1;
        self.tape.event(Event::Input { icount, source: InputSource::FAULT, value });
        Some(value)
    }
}
