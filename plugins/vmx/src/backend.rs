//! The boundary: calls of the host, answered by silicon or by KVM.

use crate::{
    kvm::{self, Cx, setup},
    rules::Rule,
    silicon::{apic, controls::ApicMode, exits},
    vm::{Saved, Shared, Vm, VmxVcpu},
};
use vmtape_abi::{Backend, Errno, Host, MemoryRegion};
use vmtape_arch::{
    access::{Access, Answer, Mapping, MappingKind, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume, ResumeKind},
    note::{Note, NoteKind},
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{Activity, VcpuState},
};
use vmtape_kvm_core::{
    caps,
    events::{self, Windows},
    msr, supported,
};
use vmtape_kvm_mmu::{
    tdp::silicon::{GuestAccess, note_steps},
    walk::WalkAccess,
};

impl Vm {
    fn parts(&mut self, vcpu: u32) -> (&mut Shared, &mut VmxVcpu) {
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
        supported::supported_cpuid(
            silicon,
            &self.shared.silicon,
            self.shared.ept(),
            self.shared.silicon.ept_levels,
        )
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
        state.intercepts = v.controls.intercepts();
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
        setup::after_wrmsr(shared, v, index);
        setup::apply(shared, vcpu, state, effect, host);
        state.intercepts = v.controls.intercepts();
        Ok(())
    }

    fn state_changed(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) {
        let (shared, v) = self.parts(vcpu);
        // INIT and RESET leave no event behind. See: KVM x86.c kvm_vcpu_reset()
        v.core.events.clear();
        v.core.refresh_apic_base(state, host);
        v.core.update_cpuid_runtime(state);
        setup::update_apic_mode(shared, v);
        shared.mmu.reset_context(vcpu, state, host);
        state.intercepts = v.controls.intercepts();
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
        let (shared, v) = self.parts(vcpu);
        if !shared.ept() {
            return shadow_access(shared, v, state, access);
        }
        let (result, steps) = shared.mmu.tdp_access(vcpu, state, access.gva, &WalkAccess::from(access), host);
        match result {
            GuestAccess::Mapped(mapping) => native(mapping, v.controls.apic),
            GuestAccess::Fault(error) => {
                if error.rsvd() && host.wants(NoteKind::RULE) {
                    host.note(vcpu, Rule::RESERVED_BY_HOST_WIDTH.note());
                }
                fault(Exception::pf(access.gva, error))
            }
            GuestAccess::Nested(stop) => {
                *exit = exits::ept(&stop, shared.silicon.ept_advanced, state, access);
                note_steps(vcpu, &steps, host);
                if host.wants(NoteKind::RULE) {
                    host.note(vcpu, shared.ept_rule(vcpu, &stop).note());
                }
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
        let v = &self.vcpus[vcpu as usize];
        let controls = &v.controls;
        use SensitiveKind as K;
        let exits = match insn.kind {
            K::RDMSR => controls.rdmsr_exits(insn.number),
            K::WRMSR => controls.wrmsr_exits(insn.number),
            K::CR_WRITE => {
                let old = if insn.number == 0 { state.cr0 } else { state.cr4 };
                controls.cr_write_exits(insn.number, old, insn.value)
            }
            K::CR_READ => insn.number == 3 && controls.cr3_exiting,
            K::LMSW => controls.lmsw_exits(state.cr0, insn.value),
            K::APIC_READ | K::APIC_WRITE => {
                let outcome = match insn.kind {
                    K::APIC_READ => apic::read(insn, controls.apicv),
                    _ => apic::write(insn, controls.apicv),
                };
                if outcome == apic::Outcome::WriteTrap {
                    *exit = exits::apic_write(insn, state);
                    return Verdict::EXIT;
                }
                outcome == apic::Outcome::Access
            }
            _ => true,
        };
        if !exits {
            return Verdict::NATIVE;
        }
        *exit = exits::instruction(insn, state);
        Verdict::EXIT
    }

    fn exception(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        exception: &Exception,
        _host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Verdict {
        let code = if exception.has_error_code { exception.error_code } else { 0 };
        if !self.vcpus[vcpu as usize].controls.exception_exits(exception.vector, code) {
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
            virtual_interrupts: v.controls.apicv && v.controls.apic != ApicMode::None,
        };
        let requests = v.core.events.check_and_inject(vcpu, state, windows, host);
        v.controls.interrupt_window = requests.interrupt;
        v.controls.nmi_window = requests.nmi;
        shared.mmu.reload(vcpu, state, host);
        let intercepts = v.controls.intercepts();
        if state.intercepts != intercepts {
            state.intercepts = intercepts;
        }
        Resume::GUEST
    }

    fn handle_exit(&mut self, vcpu: u32, state: &mut VcpuState, exit: &Exit, host: &mut dyn Host) -> Resume {
        let (shared, v) = self.parts(vcpu);
        v.exited = true;
        if std::mem::take(&mut v.debug_registers_owned) {
            // `vmx_sync_dirty_debug_regs`.
            v.controls.mov_dr_exiting = true;
        }
        kvm::handle(&mut Cx { shared, vcpu: v, state, exit, host })
    }
}

/// Without EPT: the CPU walks KVM's shadow page tables, with its own width.
fn shadow_access(shared: &mut Shared, v: &VmxVcpu, state: &VcpuState, access: &Access) -> Answer {
    match shared.mmu.shadow_access(v.core.id, state, access.gva, &WalkAccess::from(access)) {
        GuestAccess::Mapped(mapping) => native(mapping, v.controls.apic),
        GuestAccess::Fault(error) => fault(Exception::pf(access.gva, error)),
        GuestAccess::Nested(_) => unreachable!("there are no nested tables without EPT"),
    }
}

/// The APIC-access page is one only while the control is set; otherwise it is memory that nothing else shares.
fn native(mut mapping: Mapping, mode: ApicMode) -> Answer {
    if mapping.kind == MappingKind::APIC_PAGE && mode != ApicMode::Access {
        mapping.kind = MappingKind::DEVICE;
    }
    Answer { verdict: Verdict::NATIVE, mapping, ..Default::default() }
}

fn fault(fault: Exception) -> Answer {
    Answer { verdict: Verdict::FAULT, fault, ..Default::default() }
}
