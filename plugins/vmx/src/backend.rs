//! What `kvm.ko` asks of `kvm_intel`, and what silicon answers.

use crate::{
    kvm::{
        self, Cx,
        cpus::{self, OnCpu},
        crash::CrashRules,
        msr,
        setup::{self, region},
        vmcs::write_state,
    },
    rules::Rule,
    silicon::{
        apic, capabilities,
        controls::{ApicMode, Controls},
        entry::{self, NotEntered},
        exits,
        operation::VmcsId,
        vmcs::{Vmcs, VmcsField},
    },
    vm::{Shared, VmxVcpu},
};
use vmtape_abi::{Errno, Host, Query};
use vmtape_arch::{
    access::{Access, AccessKind, Answer, Mapping, MappingKind, Verdict},
    exception::{Exception, Vector},
    exit::{Exit, Resume},
    msr::Msr,
    note::NoteKind,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{Intercepts, VcpuState},
};
use vmtape_kvm_core::{
    Kvm, Vcpu,
    cr::MmuEffect,
    emulate::with_exit,
    events::{WindowRequests, Windows, interrupt_allowed, nmi_allowed},
    msr::{Refused, Written, mtrrs},
    profile::Switch,
    vm::{Ops, VendorVcpu, fail_entry},
};
use vmtape_kvm_mmu::{
    memory_type::Caching,
    tdp::silicon::{GuestAccess, note_steps},
    walk::WalkAccess,
};

impl VendorVcpu for VmxVcpu {
    fn core(&self) -> &Vcpu {
        &self.core
    }

    fn core_mut(&mut self) -> &mut Vcpu {
        &mut self.core
    }
}

impl Ops for Shared {
    type Vcpu = VmxVcpu;
    type Cpu = cpus::Cpu;

    fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    fn kvm_mut(&mut self) -> &mut Kvm {
        &mut self.kvm
    }

    fn tdp_levels(&self) -> u8 {
        self.kvm.silicon.ept_levels
    }

    fn vcpu_create(&self, id: u32) -> VmxVcpu {
        setup::create(self, id)
    }

    fn after_set_cpuid(&self, v: &mut VmxVcpu) {
        setup::after_set_cpuid(self, v);
    }

    fn get_msr(
        &self,
        v: &mut VmxVcpu,
        state: &VcpuState,
        index: u32,
        host_initiated: bool,
        host: &mut dyn Host,
    ) -> Result<u64, Refused> {
        msr::get(v, state, index, host_initiated, host)
    }

    fn set_msr(
        &self,
        v: &mut VmxVcpu,
        state: &mut VcpuState,
        index: u32,
        data: u64,
        host_initiated: bool,
        host: &mut dyn Host,
    ) -> Written {
        msr::set(self, v, state, index, data, host_initiated, host)
    }

    fn apply(&mut self, v: &mut VmxVcpu, state: &VcpuState, effect: MmuEffect, host: &mut dyn Host) {
        if effect.mtrrs {
            self.kvm.mmu.set_mtrrs(v.core.id, mtrrs(&v.core), host);
        }
        setup::apply(self, v.core.id, state, effect, host);
    }

    fn after_reset(&self, v: &mut VmxVcpu) {
        setup::update_apic_mode(self, v);
    }

    fn intercepts(&self, v: &mut VmxVcpu, _state: &VcpuState) -> Intercepts {
        Controls::load(&v.vmcs01).intercepts()
    }

    fn vcpu_run(
        &mut self,
        v: &mut VmxVcpu,
        state: &mut VcpuState,
        _host: &mut dyn Host,
    ) -> Result<Intercepts, Resume> {
        write_state(self, v, state);
        state.interruptibility = self.held(v, state);
        if self.emulation_required(v) {
            // KVM emulates up to a state that silicon can enter; the interpreter runs it.
            v.controls = Controls::load(&v.vmcs01);
            return Ok(v.controls.intercepts());
        }
        let silicon = &self.kvm.silicon;
        v.controls = entry::enter(&mut v.vmcs01, v.vmcs.launched, silicon).map_err(|refused| {
            let field = match refused {
                NotEntered::Guest(_) => VmcsField::VM_EXIT_REASON,
                _ => VmcsField::VM_INSTRUCTION_ERROR,
            };
            fail_entry(v.vmcs01.read32(field))
        })?;
        v.vmcs.launched = true;
        Ok(v.controls.intercepts())
    }

    fn windows(&self, v: &VmxVcpu, state: &VcpuState) -> Windows {
        let secondary = v.vmcs01.secondary();
        let virtual_interrupts =
            secondary.interrupt_delivery() && (secondary.x2apic_mode() || secondary.apic_accesses());
        let (interrupt, nmi) = (interrupt_allowed(state), nmi_allowed(state));
        Windows { interrupt, nmi, virtual_interrupts, ..Default::default() }
    }

    fn request_windows(&self, v: &mut VmxVcpu, requests: WindowRequests) {
        let controls = v.vmcs01.cpu_based();
        let controls = controls.with_interrupt_window_exiting(requests.interrupt);
        v.vmcs01.set_cpu_based(controls.with_nmi_window_exiting(requests.nmi));
    }

    fn query(&self, v: Option<&VmxVcpu>, what: Query) -> Result<u64, Errno> {
        match what {
            Query::VMCS_REGION => Ok(region(&self.kvm.silicon, VmcsId::of(v.ok_or(Errno::ENOENT)?.core.id))),
            Query::SHADOW_VMCS_REGION => {
                let v = v.filter(|v| v.vmcs.has_shadow).ok_or(Errno::ENOENT)?;
                Ok(region(&self.kvm.silicon, VmcsId::shadow_of(v.core.id)))
            }
            Query::PROCFS_TELLS_LEVELS => Ok(self.kvm.options.on(Switch::EPT_5LEVEL_FLAG).into()),
            Query::EPT_VPID_CAP => Ok(capabilities::ept_vpid_cap(&self.kvm.silicon).into_bits()),
            Query::EPTP if self.kvm.tdp() => {
                let mmu = self.kvm.mmu.context(v.ok_or(Errno::ENOENT)?.core.id);
                let root = mmu.root.ok_or(Errno::ENOENT)?;
                Ok(capabilities::Eptp::of(root.hpa, mmu.root_role.level(), &self.kvm.mmu.config).into_bits())
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn handle_exit(
        &mut self,
        v: &mut VmxVcpu,
        state: &mut VcpuState,
        exit: &Exit,
        host: &mut dyn Host,
    ) -> Resume {
        entry::exit(&mut v.vmcs01, exit, state);
        if std::mem::take(&mut v.debug_registers_owned) {
            // `vmx_sync_dirty_debug_regs`.
            v.vmcs01.set_mov_dr_exiting(true);
        }
        self.kvm.mmu.flush_pml(v.core.id, host);
        with_exit(kvm::handle(&mut Cx { shared: self, vcpu: v, state, exit, host }), exit)
    }

    fn enable_cpu(
        &self,
        number: u32,
        cpu: &mut cpus::Cpu,
        vcpus: &mut [VmxVcpu],
        host: &mut dyn Host,
    ) -> Result<(), Errno> {
        OnCpu { number, cpu, vcpus, rules: CrashRules::of(&self.kvm.options), host }.enable()
    }

    fn disable_cpu(
        &self,
        number: u32,
        cpu: &mut cpus::Cpu,
        vcpus: &mut [VmxVcpu],
        host: &mut dyn Host,
    ) -> Result<(), Errno> {
        OnCpu { number, cpu, vcpus, rules: CrashRules::of(&self.kvm.options), host }.disable()
    }

    fn vcpu_load(
        &self,
        vcpu: u32,
        vcpus: &mut [VmxVcpu],
        cpus: &mut [cpus::Cpu],
        number: u32,
        host: &mut dyn Host,
    ) -> Result<bool, Errno> {
        cpus::load(vcpu, vcpus, cpus, number, CrashRules::of(&self.kvm.options), host)
    }

    /// VM entry with VMCS shadowing makes the shadow VMCS active.
    fn entered_on(
        &self,
        v: &VmxVcpu,
        cpu: &mut cpus::Cpu,
        _state: &VcpuState,
        _host: &mut dyn Host,
    ) -> Result<(), Errno> {
        if v.vmcs.has_shadow {
            cpu.silicon.activate(VmcsId::shadow_of(v.core.id));
        }
        Ok(())
    }

    fn crash(
        &self,
        number: u32,
        cpu: &mut cpus::Cpu,
        vcpus: &mut [VmxVcpu],
        host: &mut dyn Host,
    ) -> Result<(), Errno> {
        OnCpu { number, cpu, vcpus, rules: CrashRules::of(&self.kvm.options), host }.emergency()
    }

    fn write_back(&self, cpu: &cpus::Cpu, vcpus: &[VmxVcpu], host: &mut dyn Host) {
        for id in &cpu.silicon.active {
            let region = region(&self.kvm.silicon, *id);
            let vmcs = &vcpus[id.vcpu as usize].vmcs01;
            let data = if id.shadow { Vmcs::shadow(vmcs.revision_id).to_region() } else { vmcs.to_region() };
            // Whatever is there takes it, or nothing does.
            let _ = host.write(region, &data);
        }
    }

    fn query_cpus(&self, cpus: &[cpus::Cpu], number: u32, what: Query) -> Result<u64, Errno> {
        let cpu = || cpus.get(number as usize).ok_or(Errno::ENOENT);
        match what {
            Query::VMCS_ACTIVE_ON => cpus::active_on(cpus, VmcsId::of(number)),
            Query::SHADOW_VMCS_ACTIVE_ON => cpus::active_on(cpus, VmcsId::shadow_of(number)),
            Query::CPU_VIRTUALIZES => Ok(cpu()?.silicon.vmxe.into()),
            Query::CPU_BLOCKS_INIT => Ok(cpu()?.silicon.vmxon.into()),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn host_nmi(&self, state: &VcpuState) -> Exit {
        exits::host_nmi(state)
    }

    fn access(
        &mut self,
        v: &mut VmxVcpu,
        state: &mut VcpuState,
        access: &Access,
        host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Answer {
        let (vcpu, tracer) = (v.core.id, v.core.tracer());
        if let Some(mc) = self.kvm.machine_check(vcpu, state, access.gva, host) {
            *exit = exits::exception(&mc, state);
            return Answer { verdict: Verdict::EXIT, ..Default::default() };
        }
        if !self.kvm.tdp() {
            return shadow_access(self, v, state, access, host);
        }
        let caching = Caching::of(v.vmcs01.read(VmcsField::GUEST_IA32_PAT));
        let (result, steps) =
            self.kvm.mmu.tdp_access(vcpu, state, access.gva, &WalkAccess::from(access), caching, host);
        match result {
            GuestAccess::Mapped(mapping) => {
                if access.kind == AccessKind::FETCH
                    && let Some(mc) = self.kvm.itlb_multihit(vcpu, access.gva, mapping.gpa, host)
                {
                    *exit = exits::exception(&mc, state);
                    return Answer { verdict: Verdict::EXIT, ..Default::default() };
                }
                native(mapping, v.controls.apic, self.kvm.mmu.epoch(vcpu, Some(caching)))
            }
            GuestAccess::Fault(error) => {
                if error.rsvd() && host.wants(NoteKind::RULE) {
                    tracer.note(Rule::RESERVED_BY_HOST_WIDTH.note(), host);
                }
                fault(Exception::pf(access.gva, error))
            }
            GuestAccess::Nested(stop) => {
                *exit = exits::ept(&stop, self.kvm.silicon.ept_advanced.is_set(), state, access);
                exit.info1 = self.kvm.exit_info(vcpu, exit.info1, exit.gpa, host);
                note_steps(vcpu, tracer.place, &steps, host);
                if host.wants(NoteKind::RULE) {
                    tracer.note(self.ept_rule(vcpu, &stop).note(), host);
                }
                Answer { verdict: Verdict::EXIT, ..Default::default() }
            }
        }
    }

    fn sensitive(
        &mut self,
        v: &mut VmxVcpu,
        state: &mut VcpuState,
        insn: &Sensitive,
        host: &mut dyn Host,
        exit: &mut Exit,
        _fault: &mut Exception,
    ) -> Verdict {
        let controls = &v.controls;
        if controls.virtualizes_eoi(insn)
            && let Some(vector) = apic::eoi_exit(v.core.id, host)
        {
            *exit = exits::eoi_induced(insn, vector, state);
            return Verdict::EXIT;
        }
        use SensitiveKind as K;
        let exits = match insn.kind {
            K::RDMSR | K::WRMSR if Msr(insn.number) == Msr::IA32_SPEC_CTRL => !v.owns_spec_ctrl,
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
        v: &mut VmxVcpu,
        state: &mut VcpuState,
        exception: &Exception,
        host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Verdict {
        let code = if exception.has_error_code.is_set() { exception.error_code } else { 0 };
        if !v.controls.exception_exits(exception.vector, code) {
            return Verdict::NATIVE;
        }
        *exit = exits::exception(exception, state);
        if exception.vector == Vector::PF && !self.kvm.tdp() {
            let code = self.kvm.exit_info(v.core.id, exit.error_code.into(), exit.info1, host);
            exit.error_code = code as u32;
        }
        Verdict::EXIT
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
    match shared.kvm.mmu.shadow_access(v.core.id, state, access.gva, &WalkAccess::from(access), host) {
        GuestAccess::Mapped(mapping) => {
            native(mapping, v.controls.apic, shared.kvm.mmu.epoch(v.core.id, None))
        }
        GuestAccess::Fault(error) => fault(Exception::pf(access.gva, error)),
        GuestAccess::Nested(_) => unreachable!("there are no nested tables without EPT"),
    }
}

/// The APIC-access page is one only while the control is set; otherwise it is memory that nothing else shares.
fn native(mut mapping: Mapping, mode: ApicMode, epoch: u64) -> Answer {
    if mapping.kind == MappingKind::APIC_PAGE && mode != ApicMode::Access {
        mapping.kind = MappingKind::DEVICE;
    }
    let epoch = if mapping.kind == MappingKind::RAM { epoch } else { 0 };
    Answer { verdict: Verdict::NATIVE, mapping, epoch, ..Default::default() }
}

fn fault(fault: Exception) -> Answer {
    Answer { verdict: Verdict::FAULT, fault, ..Default::default() }
}
