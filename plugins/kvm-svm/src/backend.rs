//! The boundary: calls of the host, answered by silicon or by KVM.

use crate::{
    kvm::{self, Cx, setup},
    rules::Rule,
    silicon::exits,
    vm::{Saved, Shared, SvmVcpu, Vm},
};
use vmtape_abi::{Backend, Errno, Host, MemoryRegion};
use vmtape_arch::{
    access::{Access, Answer, Mapping, Verdict},
    cpuid::CpuidEntry,
    exception::{Exception, PageFaultError, Vector},
    exit::{Exit, Resume, ResumeKind},
    note::{Note, NoteKind},
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{Activity, VcpuState},
};
use vmtape_kvm_core::{
    caps, cr,
    events::{self, Windows},
    msr, supported,
};
use vmtape_kvm_mmu::{
    tdp::silicon::{GuestAccess, NestedStop, note_steps},
    walk::{Steps, WalkAccess},
};

impl Vm {
    fn parts(&mut self, vcpu: u32) -> (&mut Shared, &mut SvmVcpu) {
        (&mut self.shared, &mut self.vcpus[vcpu as usize])
    }
}

impl Backend for Vm {
    fn resolved(&self) -> Vec<(String, String)> {
        self.shared.options.resolved()
    }

    fn check_extension(&self, cap: u32) -> i64 {
        caps::check(cap, self.shared.allow_smaller_maxphyaddr())
    }

    fn supported_cpuid(&self, silicon: &[CpuidEntry]) -> Vec<CpuidEntry> {
        let host = &self.shared.silicon;
        supported::supported_cpuid(silicon, host, self.shared.npt, host.host_levels)
    }

    fn set_memory_region(&mut self, region: &MemoryRegion, host: &mut dyn Host) -> Result<(), Errno> {
        self.shared.mmu.set_memory_region(region, host)
    }

    fn create_vcpu(&mut self, vcpu: u32) -> Result<(), Errno> {
        if vcpu as usize != self.vcpus.len() {
            return Err(Errno::EEXIST);
        }
        self.shared.mmu.create_vcpu(vcpu);
        self.vcpus.push(setup::create(&self.shared, vcpu));
        Ok(())
    }

    fn set_cpuid(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        entries: &[CpuidEntry],
        host: &mut dyn Host,
    ) -> Result<(), Errno> {
        let (shared, v) = self.parts(vcpu);
        v.core.refresh_apic_base(state, host);
        v.core.set_cpuid(state, entries)?;
        setup::after_set_cpuid(shared, v);
        setup::after_set_cpuid_mmu(shared, v, state, host);
        setup::update_cr0_intercept(v, state);
        state.intercepts = v.vmcb.intercepts();
        Ok(())
    }

    fn get_cpuid(&self, vcpu: u32) -> Vec<CpuidEntry> {
        self.vcpus[vcpu as usize].core.cpuid.entries().to_vec()
    }

    fn get_msr(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        index: u32,
        host: &mut dyn Host,
    ) -> Result<u64, Errno> {
        msr::get(&mut self.vcpus[vcpu as usize].core, state, index, true, host).map_err(|_| Errno::EINVAL)
    }

    fn set_msr(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        index: u32,
        data: u64,
        host: &mut dyn Host,
    ) -> Result<(), Errno> {
        let (shared, v) = self.parts(vcpu);
        let effect = msr::set(&mut v.core, state, index, data, true, host).map_err(|_| Errno::EINVAL)?;
        setup::after_wrmsr(v, state, index);
        setup::apply(shared, v, state, effect, host);
        state.intercepts = v.vmcb.intercepts();
        Ok(())
    }

    fn state_changed(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) {
        let (shared, v) = self.parts(vcpu);
        v.core.refresh_apic_base(state, host);
        v.core.update_cpuid_runtime(state);
        setup::update_cr0_intercept(v, state);
        shared.mmu.reset_context(vcpu, state, host);
        state.intercepts = v.vmcb.intercepts();
    }

    fn save(&self) -> Vec<u8> {
        let saved = Saved { mmu: self.shared.mmu.clone(), vcpus: self.vcpus.clone() };
        postcard::to_stdvec(&saved).expect("plain data always serializes")
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), Errno> {
        let saved: Saved = postcard::from_bytes(saved).map_err(|_| Errno::EINVAL)?;
        if saved.vcpus.len() != self.vcpus.len() || saved.mmu.config != self.shared.mmu.config {
            return Err(Errno::EINVAL);
        }
        (self.shared.mmu, self.vcpus) = (saved.mmu, saved.vcpus);
        Ok(())
    }

    fn access(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        access: &Access,
        host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Answer {
        let wanted = WalkAccess::from(access);
        let mmu = &mut self.shared.mmu;
        if !self.shared.npt {
            return match mmu.shadow_access(vcpu, state, access.gva, &wanted) {
                GuestAccess::Mapped(mapping) => native(mapping),
                // Offered as an exception next, which is intercepted.
                GuestAccess::Fault(error) => fault(access.gva, error),
                GuestAccess::Nested(_) => unreachable!("shadow paging has one dimension"),
            };
        }
        let (answer, steps) = mmu.tdp_access(vcpu, state, access.gva, &wanted, host);
        match answer {
            GuestAccess::Mapped(mapping) => native(mapping),
            GuestAccess::Fault(error) => {
                if error.rsvd() && host.wants(NoteKind::RULE) {
                    host.note(vcpu, Rule::RESERVED_BY_HOST_WIDTH.note());
                    note_steps(vcpu, &steps, host);
                }
                fault(access.gva, error)
            }
            GuestAccess::Nested(stop) => {
                *exit = exits::nested(&stop, state, access);
                note_nested(vcpu, &stop, &steps, self.shared.silicon.host_levels, host);
                Answer { verdict: Verdict::EXIT, ..Default::default() }
            }
        }
    }

    fn sensitive(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        insn: &Sensitive,
        _host: &mut dyn Host,
        exit: &mut Exit,
        _fault: &mut Exception,
    ) -> Verdict {
        let vmcb = &self.vcpus[vcpu as usize].vmcb;
        use SensitiveKind as K;
        let new_cr0 = match insn.kind {
            K::CR_WRITE if insn.number == 0 => Some(insn.value),
            K::CLTS => Some(state.cr0().with_ts(false).into_bits()),
            K::LMSW => Some(cr::lmsw(state.cr0, insn.value)),
            _ => None,
        };
        let cr0 = new_cr0.and_then(|new| vmcb.cr0_write_exits(state.cr0, new));
        let exits = match insn.kind {
            K::RDMSR => vmcb.msr_exits(insn.number, false),
            K::WRMSR => vmcb.msr_exits(insn.number, true),
            _ => new_cr0.is_none() || cr0.is_some(),
        };
        if !exits {
            return Verdict::NATIVE;
        }
        match exits::instruction(insn, state, cr0, self.shared.silicon.decode_assists) {
            Some(taken) => {
                *exit = taken;
                Verdict::EXIT
            }
            None => Verdict::NATIVE,
        }
    }

    fn exception(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        exception: &Exception,
        _host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Verdict {
        // See: APM vol. 2 15.9 Instruction Intercepts: the #DB of ICEBP is not subject to the intercept of #DB.
        let icebp = exception.vector == Vector::DB && exception.insn_len != 0;
        if icebp || !self.vcpus[vcpu as usize].vmcb.exception_exits(exception.vector) {
            return Verdict::NATIVE;
        }
        *exit = exits::exception(exception, state);
        Verdict::EXIT
    }

    fn enter(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) -> Resume {
        let (shared, v) = self.parts(vcpu);
        if !std::mem::take(&mut v.exited) {
            // No exit since the last entry: what was injected has been delivered, unless the guest did not get to run.
            v.core.events.complete(&state.inject);
        }
        v.core.has_run = true;
        if v.core.events.take_triple_fault() {
            host.note(vcpu, Note::UserspaceExit { reason: ResumeKind::SHUTDOWN.0, errno: 0 });
            return Resume::new(ResumeKind::SHUTDOWN);
        }
        if state.activity == Activity::HLT {
            state.activity = Activity::ACTIVE;
        }
        let windows = Windows {
            interrupt: events::interrupt_allowed(state),
            nmi: events::nmi_allowed(state),
            virtual_interrupts: false,
        };
        let requests = v.core.events.check_and_inject(vcpu, state, windows, host);
        v.vmcb.vintr = requests.interrupt;
        v.vmcb.nmi_window = requests.nmi && !v.vmcb.iret;
        v.vmcb.iret |= requests.nmi_injected;
        shared.mmu.reload(vcpu, state, host);
        setup::update_cr0_intercept(v, state);
        let intercepts = v.vmcb.intercepts();
        if state.intercepts != intercepts {
            state.intercepts = intercepts;
        }
        Resume::GUEST
    }

    fn handle_exit(&mut self, vcpu: u32, state: &mut VcpuState, exit: &Exit, host: &mut dyn Host) -> Resume {
        let (shared, v) = self.parts(vcpu);
        v.exited = true;
        if std::mem::take(&mut v.debug_registers_owned) {
            // `svm_sync_dirty_debug_regs`.
            v.vmcb.debug_registers = true;
        }
        kvm::handle(&mut Cx { shared, vcpu: v, state, exit, host })
    }
}

fn native(mapping: Mapping) -> Answer {
    Answer { verdict: Verdict::NATIVE, mapping, ..Default::default() }
}

fn fault(gva: u64, error: PageFaultError) -> Answer {
    Answer { verdict: Verdict::FAULT, fault: Exception::pf(gva, error), ..Default::default() }
}

/// The walk that led to a nested page fault, and the rules that decided it, for the tape.
fn note_nested(vcpu: u32, stop: &NestedStop, steps: &Steps, levels: u8, host: &mut dyn Host) {
    if !host.wants(NoteKind::RULE) {
        return;
    }
    note_steps(vcpu, steps, host);
    host.note(vcpu, Rule::NESTED_PAGE_FAULT.note());
    if stop.table {
        host.note(vcpu, Rule::TABLE_WALK_IS_WRITE.note());
    } else if steps.iter().any(|step| step.before != step.after) {
        host.note(vcpu, Rule::ACCESSED_BEFORE_NPF.note());
    }
    if levels < 5 && stop.gpa >> 48 != 0 {
        host.note(vcpu, Rule::NPT4_WIDE_GPA.note());
    }
}
