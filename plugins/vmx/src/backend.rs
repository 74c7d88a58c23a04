//! The boundary: calls of the host, answered by silicon or by KVM.

use crate::{
    kvm::{self, Cx, setup},
    rules::Rule,
    silicon::{
        apic,
        controls::ApicMode,
        exits,
        nested::{EptExit, GuestTables},
    },
    vm::{Saved, Shared, Vm, VmxVcpu, apic_access_hpa},
};
use vmtape_abi::{Backend, Errno, Host, MemoryRegion};
use vmtape_arch::{
    access::{Access, Answer, Mapping, MappingKind, Verdict},
    cpuid::CpuidEntry,
    event::Event,
    exception::{Exception, PageFaultError, Vector},
    exit::{Exit, Resume, ResumeKind},
    note::{Note, NoteKind},
    paging::Eptp,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{Activity, VcpuState},
};
use vmtape_kvm_core::{
    caps, cpuid,
    events::{self, Windows},
    msr, supported,
};
use vmtape_kvm_mmu::walk::{AdPolicy, Failure, Paging, Steps, Walk, WalkAccess, walk};

const PAGE_MASK: u64 = !0xfff;

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
        supported::supported_cpuid(silicon, &self.shared.silicon, self.shared.ept(), self.shared.silicon.ept_levels)
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
        setup::after_wrmsr(shared, v, state, index);
        setup::apply(shared, v, state, effect, host);
        state.intercepts = v.controls.intercepts();
        Ok(())
    }

    fn state_changed(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) {
        let (shared, v) = self.parts(vcpu);
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
            return shadow_access(shared, v, state, access, host);
        }
        let paging = Paging::of(state, shared.silicon.phys_bits, shared.silicon.gbpages, false);
        let wanted = WalkAccess::from(access);
        let mut tables = GuestTables {
            silicon: shared.ept_silicon(),
            eptp: Eptp::from_bits(v.controls.eptp),
            advanced: shared.silicon.ept_advanced,
            memory: &mut shared.mmu,
            host,
            found: None,
        };
        let result = walk(&paging, access.gva, &wanted, AdPolicy::AfterTranslation, &mut tables);
        let found = tables.found;
        match result {
            Ok(walk) => {
                let found = found.expect("a walk that ends has translated its final address");
                let apic_page = found.hpa & PAGE_MASK == apic_access_hpa(&shared.silicon);
                let mut mapping = mapping(&paging, &walk, &wanted);
                mapping.hpa = found.hpa & PAGE_MASK;
                mapping.read &= found.rights.r;
                mapping.write &= found.rights.w && found.dirty;
                mapping.fetch &= found.rights.x;
                mapping.kind = page_kind(apic_page, v.controls.apic);
                native(mapping)
            }
            Err(Failure::Fault { error, steps }) => {
                if error.rsvd() && host.wants(NoteKind::RULE) {
                    host.note(vcpu, Rule::RESERVED_BY_HOST_WIDTH.note());
                    note_steps(vcpu, &steps, host);
                }
                fault(Exception::pf(access.gva, error))
            }
            Err(Failure::Stopped { stop, steps }) => {
                *exit = exits::ept(stop, state, access);
                note_steps(vcpu, &steps, host);
                if host.wants(NoteKind::RULE) {
                    host.note(vcpu, rule_of(&stop).note());
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
        setup::load_mmu(shared, v, state, host);
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
fn shadow_access(
    shared: &mut Shared,
    v: &VmxVcpu,
    state: &VcpuState,
    access: &Access,
    host: &mut dyn Host,
) -> Answer {
    match shared.mmu.shadow_walk(v.core.id, state, access, host) {
        Ok(mut mapping) => {
            let apic_page = mapping.hpa == apic_access_hpa(&shared.silicon);
            mapping.kind = page_kind(apic_page, v.controls.apic);
            native(mapping)
        }
        Err(error) => fault(Exception::pf(access.gva, error)),
    }
}

fn page_kind(apic_page: bool, mode: ApicMode) -> MappingKind {
    match (apic_page, mode) {
        (true, ApicMode::Access) => MappingKind::APIC_PAGE,
        // The page itself is memory that nothing else shares.
        (true, _) => MappingKind::DEVICE,
        _ => MappingKind::RAM,
    }
}

/// The mapping that the guest's own tables give.
fn mapping(paging: &Paging, walk: &Walk, access: &WalkAccess) -> Mapping {
    let [read, write, fetch] = paging.rights(walk.acc, walk.pkey, access);
    Mapping {
        gpa: walk.gpa & PAGE_MASK,
        read,
        write: write && walk.dirty,
        fetch,
        global: walk.global,
        guest_page_shift: walk.page_shift,
        ..Default::default()
    }
}

fn native(mapping: Mapping) -> Answer {
    Answer { verdict: Verdict::NATIVE, mapping, ..Default::default() }
}

fn fault(fault: Exception) -> Answer {
    Answer { verdict: Verdict::FAULT, fault, ..Default::default() }
}

/// The walk that led to an exit, for the tape.
fn note_steps(vcpu: u32, steps: &Steps, host: &mut dyn Host) {
    if !host.wants(NoteKind::SILICON_STEP) {
        return;
    }
    for step in steps.iter() {
        let (gpa, before, after, level) = (step.address, step.before, step.after, step.level);
        host.note(vcpu, Note::SiliconStep { gpa, before, after, level });
    }
}

fn rule_of(stop: &EptExit) -> Rule {
    match stop {
        EptExit::Violation { wide: true, .. } => Rule::EPT4_WIDE_GPA,
        EptExit::Violation { .. } => Rule::EPT_VIOLATION,
        EptExit::Misconfiguration { .. } => Rule::EPT_MISCONFIG,
    }
}
