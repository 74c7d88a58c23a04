//! What a backend calls: memory, TLB flushes, devices, the emulator, the tape.

use super::{Services, emulator};
use vmtape_abi::{ALL_VCPUS, BusOp, EmulateRequest, Emulated, EmulatorMmu, FlushScope, Host, MemoryStatus};
use vmtape_arch::{
    level::Place,
    note::{Note, NoteKind},
    vcpu::VcpuState,
};
use vmtape_cpu::Flush;

impl Host for Services {
    fn try_read(&mut self, hpa: u64, buf: &mut [u8]) -> MemoryStatus {
        let status = self.memory.at_once(hpa, buf.len() as u64);
        if status != MemoryStatus::READY {
            return status;
        }
        if !self.ram().read(hpa, buf) {
            return MemoryStatus::REFUSED;
        }
        self.tape.read(hpa, buf);
        self.walks.read(hpa, buf);
        if let Some(fed) = &mut self.fed {
            fed.read(hpa, buf.len() as u64);
        }
        status
    }

    fn try_write(&mut self, hpa: u64, data: &[u8]) -> MemoryStatus {
        let status = self.memory.at_once(hpa, data.len() as u64);
        if status != MemoryStatus::READY {
            return status;
        }
        let icount = self.clock.icount;
        if !self.ram().write_at(hpa, data, icount) {
            return MemoryStatus::REFUSED;
        }
        self.tape.wrote(hpa, data);
        self.walks.wrote();
        if let Some(fed) = &mut self.fed {
            fed.knowledge.memory.learn(hpa, data.len() as u64);
        }
        status
    }

    fn try_cmpxchg(&mut self, hpa: u64, old: u64, new: u64, size: u8) -> MemoryStatus {
        let len = usize::from(size.min(8));
        let mut current = [0; 8];
        match self.try_read(hpa, &mut current[..len]) {
            MemoryStatus::READY if current[..len] != old.to_le_bytes()[..len] => MemoryStatus::CHANGED,
            MemoryStatus::READY => self.try_write(hpa, &new.to_le_bytes()[..len]),
            status => status,
        }
    }

    fn fault_in(&mut self, hpa: u64, size: u64) -> MemoryStatus {
        if !self.memory.contains_hpa(hpa, size) {
            return MemoryStatus::REFUSED;
        }
        self.wait_for(hpa, size)
    }

    fn resident(&self, hpa: u64, size: u64) -> u64 {
        self.memory.absent.first_in(hpa, size).map_or(size, |(page, _)| page.saturating_sub(hpa))
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
        emulator::emulate(self, vcpu, state, request, mmu)
    }

    fn bus(&mut self, vcpu: u32, op: &mut BusOp) -> bool {
        if vcpu as usize >= self.devices.lapics.len() {
            return false;
        }
        let claimed = self.access_bus(vcpu, op);
        if !op.write && (1..8).contains(&op.size) {
            op.data &= u64::MAX >> (64 - 8 * u32::from(op.size));
        }
        self.devices.see(vcpu, op, claimed, self.clock.icount);
        claimed
    }

    fn interrupt(&mut self, vcpu: u32, ack: bool) -> Option<u8> {
        self.devices.interrupt(vcpu, ack)
    }

    fn nmi(&mut self, vcpu: u32, ack: bool) -> bool {
        self.devices.nmi(vcpu, ack)
    }

    fn init(&mut self, vcpu: u32) -> bool {
        self.devices.lapics.get(vcpu as usize).is_some_and(|apic| apic.init_pending)
    }

    fn smi(&mut self, vcpu: u32, ack: bool) -> bool {
        let Some(apic) = self.devices.lapics.get_mut(vcpu as usize) else { return false };
        let pending = apic.smi_pending;
        apic.smi_pending &= !ack;
        pending
    }

    fn note_at(&mut self, vcpu: u32, place: Place, note: Note) {
        if let Note::Rule { id } = note
            && self.watching
            && !self.rules.contains(&id)
        {
            self.rules.push(id);
        }
        self.emulation.exchanged |= matches!(note, Note::SmmTransition { .. });
        self.tape.note(vcpu, place, note);
    }

    fn wants(&self, kind: NoteKind) -> bool {
        self.tape.wants(kind) || kind == NoteKind::RULE && self.watching
    }

    fn log(&mut self, level: u32, text: &str) {
        match level {
            0 | 1 => {
                tracing::error!(target: "backend", "{text}");
                self.said = Some(text.to_owned());
            }
            2 => tracing::warn!(target: "backend", "{text}"),
            3 => tracing::info!(target: "backend", "{text}"),
            4 => tracing::debug!(target: "backend", "{text}"),
            _ => tracing::trace!(target: "backend", "{text}"),
        }
    }

    fn wants_faults(&self) -> bool {
        self.inputs.has_faults()
    }

    fn fault_point(&mut self, vcpu: u32, id: u32, a: u64, b: u64) -> Option<u64> {
        let point = self.fault_numbers.of(id)?;
        self.fault(vcpu, point, a, b)
    }
}
