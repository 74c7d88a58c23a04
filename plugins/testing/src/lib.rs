//! A host for the unit tests of backends: flat memory, one kernel port, one interrupt. KVM's emulator is asked where an
//! operand lies, and does no more.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use vmtape_abi::{
    BusOp, BusSpace, EmulateRequest, EmulateStatus, Emulated, EmulatorMmu, FlushScope, Host, MemoryStatus,
    Translation,
};
use vmtape_arch::{
    access::{Access, AccessKind},
    exception::Exception,
    level::Place,
    msr::Msr,
    note::{Note, NoteKind},
    sensitive::Sensitive,
    vcpu::VcpuState,
};

/// `mov (%rax), %rcx`, which KVM's emulator knows.
pub const MOV: &[u8] = &[0x48, 0x8b, 0x08];
/// `flds (%rax)`, which it does not.
pub const FLDS: &[u8] = &[0xd9, 0x00];
/// Intel's and AMD's hypercall instruction.
pub const VMCALL: &[u8] = &[0x0f, 0x01, 0xc1];
pub const VMMCALL: &[u8] = &[0x0f, 0x01, 0xd9];

/// The port of a device in the kernel, and what it answers.
pub const KERNEL_PORT: u64 = 0x20;
pub const KERNEL_PORT_VALUE: u64 = 0x5a;

/// The services of a host.
#[derive(Debug, Default)]
pub struct TestHost {
    /// Host physical memory from zero on.
    pub memory: Vec<u8>,
    pub notes: Vec<Note>,
    /// Where each of them belongs.
    pub places: Vec<Place>,
    pub logged: Vec<String>,
    /// IA32_APIC_BASE as last written.
    pub apic_base: u64,
    /// An interrupt that waits.
    pub interrupt: Option<u8>,
    /// Signals that wait.
    pub nmi: bool,
    pub init: bool,
    pub smi: bool,
    /// The vector in service whose end a device hears of, and those that it was told.
    pub heard: u8,
    pub ended: Vec<u8>,
    /// The next instruction for the emulator.
    pub insn: &'static [u8],
    /// The access that it makes.
    pub access: Access,
    /// Fault points that answer, once each, with their answers.
    pub faults: Vec<(u32, u64)>,
    /// Pages (host physical addresses) that are not there, and whether they arrive when they are waited for.
    pub absent: BTreeMap<u64, MemoryStatus>,
    /// Fault points that answer where their second word is this one.
    pub faults_at: Vec<(u32, u64)>,
    /// What the emulator's instruction is, where that can be intercepted.
    pub sensitive: Option<Sensitive>,
    /// What the last emulation was told of its operand.
    pub emulated: Option<Result<Translation, Exception>>,
}

impl TestHost {
    /// A host with zeroed memory, whose emulator executes a MOV.
    pub fn new(memory: usize) -> Self {
        Self { memory: vec![0; memory], insn: MOV, ..Self::default() }
    }

    fn at(&mut self, hpa: u64, len: usize) -> Result<&mut [u8], MemoryStatus> {
        if let Some((_, answer)) = self.first_absent(hpa, len as u64) {
            return Err(if answer == MemoryStatus::REFUSED { answer } else { MemoryStatus::MISSING });
        }
        let start = usize::try_from(hpa).unwrap_or(usize::MAX);
        let bytes = self.memory.get_mut(start..start.saturating_add(len));
        bytes.ok_or(MemoryStatus::REFUSED)
    }

    fn first_absent(&self, hpa: u64, size: u64) -> Option<(u64, MemoryStatus)> {
        let range = hpa & !0xfff..hpa.saturating_add(size.max(1));
        self.absent.range(range).next().map(|(page, answer)| (*page, *answer))
    }
}

impl Host for TestHost {
    fn try_read(&mut self, hpa: u64, buf: &mut [u8]) -> MemoryStatus {
        let done = self.at(hpa, buf.len()).map(|bytes| buf.copy_from_slice(bytes));
        done.err().unwrap_or(MemoryStatus::READY)
    }

    fn try_write(&mut self, hpa: u64, data: &[u8]) -> MemoryStatus {
        let done = self.at(hpa, data.len()).map(|bytes| bytes.copy_from_slice(data));
        done.err().unwrap_or(MemoryStatus::READY)
    }

    fn try_cmpxchg(&mut self, hpa: u64, old: u64, new: u64, size: u8) -> MemoryStatus {
        let size = usize::from(size);
        match self.at(hpa, size) {
            Err(status) => status,
            Ok(bytes) if *bytes != old.to_le_bytes()[..size] => MemoryStatus::CHANGED,
            Ok(bytes) => {
                bytes.copy_from_slice(&new.to_le_bytes()[..size]);
                MemoryStatus::READY
            }
        }
    }

    fn fault_in(&mut self, hpa: u64, size: u64) -> MemoryStatus {
        while let Some((page, answer)) = self.first_absent(hpa, size) {
            if answer != MemoryStatus::READY {
                return answer;
            }
            self.absent.remove(&page);
        }
        MemoryStatus::READY
    }

    fn resident(&self, hpa: u64, size: u64) -> u64 {
        self.first_absent(hpa, size).map_or(size, |(page, _)| page.saturating_sub(hpa))
    }

    fn flush_tlb(&mut self, _vcpu: u32, _scope: FlushScope, _address: u64) {}

    fn emulate(
        &mut self,
        _vcpu: u32,
        state: &mut VcpuState,
        request: &EmulateRequest,
        mmu: &mut dyn EmulatorMmu,
    ) -> Emulated {
        let (access, fetches) = (self.access, self.access.kind == AccessKind::FETCH);
        let len = self.insn.len() as u8;
        let mut fetched = Emulated { insn_len: len, fetched: len, ..Default::default() };
        fetched.insn[..self.insn.len()].copy_from_slice(self.insn);
        // As the host's interpreter: no hypercalls.
        let executes = ![VMCALL, VMMCALL].contains(&self.insn);
        // A fetch that faults comes before anything is decoded.
        if !(fetches || mmu.knows(self.insn) && executes) {
            return Emulated { status: EmulateStatus::UNHANDLEABLE, ..fetched };
        }
        if let Some(insn) = self.sensitive.filter(|insn| request.intercepts.wants(insn.kind))
            && mmu.sensitive(&insn)
        {
            return Emulated { status: EmulateStatus::SENSITIVE, ..fetched };
        }
        let operand = mmu.translate(state, &access, self);
        self.emulated = Some(operand);
        match operand {
            Err(fault) if fetches => Emulated { status: EmulateStatus::FAULT, fault, ..Default::default() },
            Err(fault) => Emulated { status: EmulateStatus::FAULT, fault, ..fetched },
            Ok(to) if fetches && !to.ram => {
                Emulated { status: EmulateStatus::UNHANDLEABLE, ..Default::default() }
            }
            Ok(_) => fetched,
        }
    }

    fn bus(&mut self, _vcpu: u32, op: &mut BusOp) -> bool {
        match (op.space, op.address) {
            (BusSpace::EOI, _) if op.write.is_set() => self.ended.push(op.data as u8),
            (BusSpace::EOI, _) => op.data = self.heard.into(),
            (BusSpace::MSR, index) if op.write.is_set() && index == u64::from(Msr::IA32_APIC_BASE.0) => {
                self.apic_base = op.data;
            }
            (BusSpace::KERNEL_PIO, KERNEL_PORT) => op.data = KERNEL_PORT_VALUE,
            (BusSpace::USER_PIO, _) => op.data = u32::MAX.into(),
            _ => return false,
        }
        true
    }

    fn interrupt(&mut self, _vcpu: u32, ack: bool) -> Option<u8> {
        if ack { self.interrupt.take() } else { self.interrupt }
    }

    fn nmi(&mut self, _vcpu: u32, ack: bool) -> bool {
        let pending = self.nmi;
        self.nmi &= !ack;
        pending
    }

    fn init(&mut self, _vcpu: u32) -> bool {
        self.init
    }

    fn smi(&mut self, _vcpu: u32, ack: bool) -> bool {
        let pending = self.smi;
        self.smi &= !ack;
        pending
    }

    fn note_at(&mut self, _vcpu: u32, place: Place, note: Note) {
        self.notes.push(note);
        self.places.push(place);
    }

    fn wants(&self, _kind: NoteKind) -> bool {
        true
    }

    fn log(&mut self, _level: u32, text: &str) {
        self.logged.push(text.into());
    }

    fn wants_faults(&self) -> bool {
        !self.faults.is_empty() || !self.faults_at.is_empty()
    }

    fn fault_point(&mut self, _vcpu: u32, id: u32, _a: u64, b: u64) -> Option<u64> {
        if self.faults_at.contains(&(id, b)) {
            return Some(1);
        }
        let at = self.faults.iter().position(|(point, _)| *point == id)?;
        Some(self.faults.remove(at).1)
    }
}
