//! A VM: silicon (`access`, `sensitive`, `exception`) and KVM (everything else).

use crate::{
    slots::{PAGE, Slots},
    walk::walk,
};
use vmtape_abi::{
    Backend, EmulateRequest, EmulateStatus, EmulatorMmu, Errno, FlushScope, Host, MemoryRegion, Translation,
};
use vmtape_arch::{
    access::{Access, Answer, Mapping, MappingKind, Verdict},
    cpuid::{self, CpuidEntry},
    event::{Event, EventKind},
    exception::{Exception, Vector},
    exit::{Exit, Isa, Resume, ResumeKind, StimulusKind, VmxReason},
    note::{Note, NoteKind},
    sensitive::{Sensitive, SensitiveKind},
    state::MsrEntry,
    vcpu::{Activity, VcpuState, gpr},
};

/// What `resolved` gives: a tape never depends on a default.
pub const RESOLVED: (&str, &str) = ("kvm", "none");
/// The rule in the table of `describe`.
pub const RULE_IN_SLOT: u32 = 1;

const RFLAGS_IF: u64 = 1 << 9;

/// Everything that this backend keeps: no state per vCPU.
#[derive(Debug, Default)]
pub struct Vm {
    slots: Slots,
    cpuid: Vec<CpuidEntry>,
}

impl Vm {
    fn cpuid(&self, state: &mut VcpuState) {
        let (function, index) = (state.gpr[gpr::RAX] as u32, state.gpr[gpr::RCX] as u32);
        let found = cpuid::find(&self.cpuid, function, index).copied().unwrap_or_default();
        for (register, value) in
            [(gpr::RAX, found.eax), (gpr::RBX, found.ebx), (gpr::RCX, found.ecx), (gpr::RDX, found.edx)]
        {
            state.gpr[register] = value.into();
        }
    }
}

/// KVM's software walk, for the emulator: here the same tables.
struct Mmu<'a>(&'a Slots);

impl EmulatorMmu for Mmu<'_> {
    fn translate(
        &mut self,
        state: &VcpuState,
        access: &Access,
        host: &mut dyn Host,
    ) -> Result<Translation, Exception> {
        let found = walk(self.0, state, access, host)?;
        let hpa = self.0.find(found.gpa);
        Ok(Translation {
            gpa: found.gpa,
            hpa: hpa.unwrap_or_default(),
            ram: hpa.is_some().into(),
            ..Translation::default()
        })
    }

    /// Nothing is derived from the guest's page tables, so nothing becomes stale.
    fn wrote(&mut self, _gpa: u64, _len: u8, _host: &mut dyn Host) {}
}

impl Backend for Vm {
    fn resolved(&self) -> Vec<(String, String)> {
        vec![(RESOLVED.0.to_owned(), RESOLVED.1.to_owned())]
    }

    /// A capability that is claimed here is held against the kit's rows about it.
    fn check_extension(&self, _cap: u32) -> i64 {
        0
    }

    fn supported_cpuid(&self, silicon: &[CpuidEntry]) -> Vec<CpuidEntry> {
        silicon.to_vec()
    }

    fn set_memory_region(&mut self, region: &MemoryRegion, _host: &mut dyn Host) -> Result<(), Errno> {
        self.slots.set(region)
    }

    fn create_vcpu(&mut self, _vcpu: u32) -> Result<(), Errno> {
        Ok(())
    }

    fn set_cpuid(
        &mut self,
        _vcpu: u32,
        _state: &mut VcpuState,
        entries: &[CpuidEntry],
        _host: &mut dyn Host,
    ) -> Result<(), Errno> {
        self.cpuid = entries.to_vec();
        Ok(())
    }

    fn get_cpuid(&self, _vcpu: u32) -> Vec<CpuidEntry> {
        self.cpuid.clone()
    }

    /// No register is KVM's own here: those of `VcpuState` the interpreter reads and writes by itself.
    fn get_msrs(
        &mut self,
        _vcpu: u32,
        _state: &mut VcpuState,
        _entries: &mut [MsrEntry],
        _host: &mut dyn Host,
    ) -> Result<u32, Errno> {
        Ok(0)
    }

    fn set_msrs(
        &mut self,
        _vcpu: u32,
        _state: &mut VcpuState,
        _entries: &[MsrEntry],
        _host: &mut dyn Host,
    ) -> Result<u32, Errno> {
        Ok(0)
    }

    fn state_changed(&mut self, vcpu: u32, _state: &mut VcpuState, host: &mut dyn Host) {
        host.flush_tlb(vcpu, FlushScope::ALL, 0);
    }

    fn save(&self) -> Vec<u8> {
        let words = |e: &CpuidEntry| [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx];
        let cpuid = self.cpuid.iter().flat_map(words).flat_map(u32::to_le_bytes);
        self.slots.save().chain(cpuid).collect()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), Errno> {
        let (slots, cpuid) = saved.split_at_checked(Slots::SAVED).ok_or(Errno::EINVAL)?;
        self.slots.restore(slots);
        let u32_at =
            |bytes: &[u8], n: usize| u32::from_le_bytes(bytes[4 * n..4 * n + 4].try_into().expect("4 bytes"));
        let entry = |words: &[u8]| {
            let [function, index, flags, eax, ebx, ecx, edx] =
                [0, 1, 2, 3, 4, 5, 6].map(|word| u32_at(words, word));
            CpuidEntry { function, index, flags, eax, ebx, ecx, edx, ..CpuidEntry::default() }
        };
        self.cpuid = cpuid.chunks_exact(28).map(entry).collect();
        Ok(())
    }

    /// Silicon: a translation, a fault of the guest's own, or an exit.
    fn access(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        access: &Access,
        host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Answer {
        let found = match walk(&self.slots, state, access, host) {
            Ok(found) => found,
            Err(fault) => return Answer { verdict: Verdict::FAULT, fault, ..Answer::default() },
        };
        let Some(hpa) = self.slots.find(found.gpa) else {
            // What the exit reports; the host fills in what it was about.
            *exit = Exit {
                isa: Isa::VMX,
                reason: VmxReason::EPT_MISCONFIG.0,
                gpa: found.gpa,
                gva: access.gva,
                ..Exit::default()
            };
            return Answer { verdict: Verdict::EXIT, ..Answer::default() };
        };
        if host.wants(NoteKind::RULE) {
            host.note(vcpu, Note::Rule { id: RULE_IN_SLOT });
        }
        let mapping = Mapping {
            gpa: found.gpa & !(PAGE - 1),
            hpa: hpa & !(PAGE - 1),
            read: true.into(),
            write: found.writable.into(),
            fetch: found.executable.into(),
            kind: MappingKind::RAM,
            guest_page_shift: found.page_shift,
            ..Mapping::default()
        };
        Answer { verdict: Verdict::NATIVE, mapping, ..Answer::default() }
    }

    /// Silicon: only what `enter` asked for comes here.
    fn sensitive(
        &mut self,
        _vcpu: u32,
        _state: &mut VcpuState,
        insn: &Sensitive,
        _host: &mut dyn Host,
        exit: &mut Exit,
        _fault: &mut Exception,
    ) -> Verdict {
        let reason = match insn.kind {
            SensitiveKind::CPUID => VmxReason::CPUID,
            SensitiveKind::HLT => VmxReason::HLT,
            SensitiveKind::TRIPLE_FAULT => VmxReason::TRIPLE_FAULT,
            SensitiveKind::INTERRUPT_WINDOW => VmxReason::INTERRUPT_WINDOW,
            _ => return Verdict::NATIVE,
        };
        *exit = Exit { isa: Isa::VMX, reason: reason.0, ..Exit::default() };
        Verdict::EXIT
    }

    fn exception(
        &mut self,
        _vcpu: u32,
        _state: &mut VcpuState,
        _exception: &Exception,
        _host: &mut dyn Host,
        _exit: &mut Exit,
    ) -> Verdict {
        Verdict::NATIVE
    }

    /// KVM, before the guest runs: what is to be heard of, whether it stays halted, and what is delivered.
    fn enter(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) -> Resume {
        for kind in [SensitiveKind::CPUID, SensitiveKind::HLT, SensitiveKind::TRIPLE_FAULT] {
            state.intercepts.set(kind, true);
        }
        let pending = host.interrupt(vcpu, false).is_some();
        if state.activity == Activity::HLT {
            if !pending {
                return Resume::new(ResumeKind::BLOCKED);
            }
            state.activity = Activity::ACTIVE;
        }
        let shadow = state.interruptibility.sti() || state.interruptibility.mov_ss();
        let open = state.rflags & RFLAGS_IF != 0 && !shadow && !state.inject.valid.is_set();
        state.intercepts.set(SensitiveKind::INTERRUPT_WINDOW, pending && !open);
        if pending
            && open
            && let Some(vector) = host.interrupt(vcpu, true)
        {
            state.inject =
                Event { valid: true.into(), kind: EventKind::EXTERNAL_INTERRUPT, vector, ..Event::default() };
        }
        Resume::new(ResumeKind::RESUME)
    }

    /// KVM, at an exit: who does an instruction's work moves RIP behind it. The emulator does so by itself.
    fn handle_exit(&mut self, vcpu: u32, state: &mut VcpuState, exit: &Exit, host: &mut dyn Host) -> Resume {
        if exit.stimulus == StimulusKind::ACCESS {
            let emulated = host.emulate(vcpu, state, &EmulateRequest::default(), &mut Mmu(&self.slots));
            match emulated.status {
                EmulateStatus::DONE => {}
                EmulateStatus::FAULT => deliver(state, &emulated.fault),
                _ => {
                    let mut resume = Resume::new(ResumeKind::INTERNAL_ERROR);
                    resume.data[0] = 1;
                    return resume;
                }
            }
            return Resume::new(ResumeKind::RESUME);
        }
        match exit.insn.kind {
            SensitiveKind::CPUID => {
                self.cpuid(state);
                skip(state, exit);
            }
            SensitiveKind::HLT => {
                skip(state, exit);
                state.activity = Activity::HLT;
                return Resume::new(ResumeKind::BLOCKED);
            }
            SensitiveKind::TRIPLE_FAULT => return Resume::new(ResumeKind::SHUTDOWN),
            _ => {}
        }
        Resume::new(ResumeKind::RESUME)
    }
}

/// The instruction is done; with it the shadow of STI or MOV SS before it is over.
fn skip(state: &mut VcpuState, exit: &Exit) {
    state.rip += u64::from(exit.insn.len);
    state.interruptibility.set_sti(false);
    state.interruptibility.set_mov_ss(false);
}

/// The emulator's fault, at the next entry.
fn deliver(state: &mut VcpuState, fault: &Exception) {
    state.inject = Event {
        valid: true.into(),
        kind: EventKind::HARDWARE_EXCEPTION,
        vector: fault.vector.0,
        has_error_code: fault.has_error_code,
        error_code: fault.error_code,
        ..Event::default()
    };
    if fault.vector == Vector::PF {
        state.cr2 = fault.payload;
    }
}
