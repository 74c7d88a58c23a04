//! What `kvm.ko` asks of `kvm_amd`, and what silicon answers.

use crate::{
    kvm::{
        self, Cx, cpus, msr,
        nested::{
            self,
            pat::{self, Pat},
            patches::L1,
        },
        setup,
        vmcb::{set_intercept, set_vintr, write_state},
    },
    rules::Rule,
    silicon::{exits, vls, vmrun},
    vm::{Shared, SvmVcpu, VmcbInfo},
};
use vmtape_abi::{Errno, Host, Query};
use vmtape_arch::{
    access::{Access, Answer, Mapping, MappingKind, Verdict},
    exception::{Exception, PageFaultError, Vector},
    exit::{Exit, Resume, SvmExitCode},
    msr::ReachedPat,
    note::NoteKind,
    sensitive::{Sensitive, SensitiveKind, svm},
    vcpu::{Intercepts, Interruptibility, VcpuState},
};
use vmtape_kvm_core::{
    Kvm, Vcpu,
    cr::MmuEffect,
    emulate::with_exit,
    events::{WindowRequests, Windows},
    msr::{Refused, Written, note_passed},
    profile::Switch,
    smm::{Failed, SmiAllowed, save_state::SaveState},
    tracer::Tracer,
    vm::{Ops, VendorVcpu, fail_entry},
};
use vmtape_kvm_mmu::{
    memory_type::Caching,
    tdp::silicon::{GuestAccess, NestedStop, note_steps},
    walk::{Steps, WalkAccess},
};

impl VendorVcpu for SvmVcpu {
    fn core(&self) -> &Vcpu {
        &self.core
    }

    fn core_mut(&mut self) -> &mut Vcpu {
        &mut self.core
    }
}

impl Ops for Shared {
    type Vcpu = SvmVcpu;
    type Cpu = cpus::Cpu;

    fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    fn kvm_mut(&mut self) -> &mut Kvm {
        &mut self.kvm
    }

    fn tdp_levels(&self) -> u8 {
        self.kvm.silicon.host_levels
    }

    fn vcpu_create(&self, id: u32) -> SvmVcpu {
        setup::create(self, id)
    }

    fn after_set_cpuid(&self, v: &mut SvmVcpu) {
        setup::after_set_cpuid(self, v);
    }

    fn get_msr(
        &self,
        v: &mut SvmVcpu,
        state: &VcpuState,
        index: u32,
        host_initiated: bool,
        host: &mut dyn Host,
    ) -> Result<u64, Refused> {
        msr::get(self, v, state, index, host_initiated, host)
    }

    fn set_msr(
        &self,
        v: &mut SvmVcpu,
        state: &mut VcpuState,
        index: u32,
        data: u64,
        host_initiated: bool,
        host: &mut dyn Host,
    ) -> Written {
        msr::set(self, v, state, index, data, host_initiated, host)
    }

    fn apply(&mut self, v: &mut SvmVcpu, state: &VcpuState, effect: MmuEffect, host: &mut dyn Host) {
        setup::apply(self, v, state, effect, host);
    }

    fn intercepts(&self, v: &mut SvmVcpu, state: &VcpuState) -> Intercepts {
        setup::update_cr0_intercept(self, v, state);
        let intercepts = vmrun::published(v.vmcb(), &self.kvm.silicon);
        windows(v, intercepts)
    }

    fn vcpu_run(
        &mut self,
        v: &mut SvmVcpu,
        state: &mut VcpuState,
        host: &mut dyn Host,
    ) -> Result<Intercepts, Resume> {
        nested::events::look_for_init(v, state, None, host);
        nested::pat::pre_run(v, state.pat);
        setup::update_cr0_intercept(self, v, state);
        let first_run = v.is_guest_mode() && v.nested.run_pending;
        let of_l1 = v.vmcb().control.event_inj;
        if first_run && !state.inject.valid.is_set() {
            state.inject = nested::events::of_l1(v);
        }
        write_state(self, v, state);
        if first_run {
            // As L1 wrote it, be it an event or not.
            v.vmcb_mut().control.event_inj = of_l1;
            v.nested.entered_at = state.icount;
        }
        let pa = setup::vmcb_pa(self, v.core.id, v.is_guest_mode());
        let honour = self.kvm.options.on(Switch::AMD_VMCB_CLEAN_BITS);
        let (VmcbInfo { vmcb, .. }, running) = v.current_mut();
        running
            .vmrun(vmcb, pa, &self.kvm.silicon, honour)
            .map_err(|_| fail_entry(vmcb.control.exit_code().0))?;
        running.load_kept(vmcb, state);
        state.interruptibility = self
            .held(v, state)
            .with_virtual_tpr(v.virtualizes_tpr())
            .with_virtual_irq(v.is_guest_mode() && v.running.vmcb.control.int_ctl.v_irq())
            .with_virtual_nmi(vmrun::waits_for_nmi(&v.running.vmcb));
        Ok(windows(v, v.running.intercepts()))
    }

    fn entry_refused(
        &mut self,
        v: &mut SvmVcpu,
        state: &mut VcpuState,
        failed: Resume,
        host: &mut dyn Host,
    ) -> Option<Resume> {
        if !v.is_guest_mode() {
            return Some(failed);
        }
        nested::exit::sync(self, v);
        let control = &mut v.nested.vmcb02.vmcb.control;
        control.set_exit_code(SvmExitCode::ERR);
        state.inject = Default::default();
        nested::exit::reflect(&mut Cx { shared: self, vcpu: v, state, exit: &Exit::default(), host });
        None
    }

    fn smi_allowed(&self, v: &SvmVcpu) -> SmiAllowed {
        v.smi_allowed()
    }

    fn enable_smi_window(&self, v: &mut SvmVcpu) {
        if !v.nested.gif && self.vgif() {
            set_intercept(self, v, SvmExitCode::STGI, true);
        }
    }

    fn enter_smm(
        &mut self,
        v: &mut SvmVcpu,
        state: &mut VcpuState,
        area: &mut SaveState,
        host: &mut dyn Host,
    ) -> Result<(), Failed> {
        nested::smm::enter(&mut Cx { shared: self, vcpu: v, state, exit: &Exit::default(), host }, area)
    }

    fn leave_smm(
        &mut self,
        v: &mut SvmVcpu,
        state: &mut VcpuState,
        area: &SaveState,
        host: &mut dyn Host,
    ) -> Result<(), Failed> {
        nested::smm::leave(&mut Cx { shared: self, vcpu: v, state, exit: &Exit::default(), host }, area)
    }

    fn set_nmi_mask(&self, v: &mut SvmVcpu, state: &mut VcpuState, masked: bool) {
        state.interruptibility.set_nmi(masked);
        // Where silicon knows when NMIs are blocked it needs no watching.
        if !v.has_virtual_nmi() {
            set_intercept(self, v, SvmExitCode::IRET, masked);
        }
    }

    fn held(&self, v: &SvmVcpu, state: &VcpuState) -> Interruptibility {
        v.held(self, state)
    }

    fn windows(&self, v: &SvmVcpu, state: &VcpuState) -> Windows {
        SvmVcpu::windows(v, state)
    }

    /// The physical interrupt that made silicon leave L2 is KVM's.
    fn interrupted(&mut self, v: &mut SvmVcpu, state: &VcpuState) -> bool {
        if !v.is_guest_mode() {
            return true;
        }
        if v.nested.run_pending && v.nested.entered_at == state.icount {
            return false;
        }
        let exit = exits::physical_interrupt(state);
        self.leave_silicon(v, state, &exit);
        true
    }

    fn check_nested_events(&mut self, v: &mut SvmVcpu, state: &mut VcpuState, host: &mut dyn Host) -> bool {
        nested::events::check(&mut Cx { shared: self, vcpu: v, state, exit: &Exit::default(), host })
    }

    fn nested_triple_fault(&mut self, v: &mut SvmVcpu, state: &mut VcpuState, host: &mut dyn Host) -> bool {
        let wanted = v.is_guest_mode()
            && v.nested.vmcb12.control.intercepts.has(SvmExitCode::SHUTDOWN)
            && self.kvm.options.on(Switch::NESTED_TRIPLE_FAULT);
        if wanted {
            let cx = &mut Cx { shared: self, vcpu: v, state, exit: &Exit::default(), host };
            nested::exit::simple_vmexit(cx, SvmExitCode::SHUTDOWN);
        }
        wanted
    }

    fn is_vnmi_pending(&self, v: &SvmVcpu) -> bool {
        v.has_virtual_nmi() && v.vmcb01.vmcb.control.int_ctl.v_nmi_pending()
    }

    fn check_intercept(
        &mut self,
        v: &mut SvmVcpu,
        state: &mut VcpuState,
        insn: &Sensitive,
        host: &mut dyn Host,
    ) -> bool {
        let cx = &mut Cx { shared: self, vcpu: v, state, exit: &Exit::default(), host };
        nested::emulated::check(cx, insn)
    }

    fn get_nested_state_pages(
        &mut self,
        v: &mut SvmVcpu,
        state: &mut VcpuState,
        host: &mut dyn Host,
    ) -> bool {
        nested::state::get_pages(&mut Cx { shared: self, vcpu: v, state, exit: &Exit::default(), host })
    }

    fn leave_nested(&mut self, v: &mut SvmVcpu, state: &mut VcpuState, host: &mut dyn Host) {
        nested::state::leave(v);
        v.nested.gif = true;
        nested::exit::follow_leave(&mut Cx { shared: self, vcpu: v, state, exit: &Exit::default(), host });
    }

    fn request_windows(&self, v: &mut SvmVcpu, requests: WindowRequests) {
        // Without GIF it is STGI, VMRUN or #VMEXIT that opens the window. Those exit anyway, but for STGI with virtual GIF, under
        // which silicon waits for it with the virtual interrupt, and where an NMI waits it exits.
        let vgif = self.vgif();
        set_vintr(self, v, requests.interrupt && (v.nested.gif || vgif));
        if requests.nmi && !v.nested.gif && vgif {
            set_intercept(self, v, SvmExitCode::STGI, true);
        }
        let masked = v.vmcb01.vmcb.control.intercepts.has(SvmExitCode::IRET);
        v.nmi_singlestep = requests.nmi && v.nested.gif && !masked;
        if requests.virtual_nmi {
            let control = &mut v.vmcb01.vmcb.control;
            control.int_ctl.set_v_nmi_pending(true);
            control.clean.set_tpr(false);
        }
        // Where silicon knows when NMIs are blocked it needs no watching.
        if requests.nmi_injected && !v.has_virtual_nmi() {
            set_intercept(self, v, SvmExitCode::IRET, true);
        }
    }

    fn handle_exit(
        &mut self,
        v: &mut SvmVcpu,
        state: &mut VcpuState,
        exit: &Exit,
        host: &mut dyn Host,
    ) -> Resume {
        self.leave_silicon(v, state, exit);
        if std::mem::take(&mut v.debug_registers_owned) {
            // `svm_sync_dirty_debug_regs`.
            setup::set_dr_intercepts(self, v, true);
        }
        let cx = &mut Cx { shared: self, vcpu: v, state, exit, host };
        let resume = with_exit(kvm::handle(cx), exit);
        nested::exit::follow_leave(cx);
        nested::events::look_for_init(v, state, Some(SvmExitCode(exit.reason)), host);
        resume
    }

    fn get_nested_state(&self, v: &SvmVcpu, state: &VcpuState) -> Result<Vec<u8>, Errno> {
        nested::state::get(&L1::new(self, &v.core.cpuid), v, state)
    }

    fn set_nested_state(
        &mut self,
        v: &mut SvmVcpu,
        state: &mut VcpuState,
        bytes: &[u8],
        host: &mut dyn Host,
    ) -> Result<(), Errno> {
        let cx = &mut Cx { shared: self, vcpu: v, state, exit: &Exit::default(), host };
        nested::state::set(cx, bytes)
    }

    fn nested_state_size(&self) -> usize {
        nested::state::size(&self.kvm.options)
    }

    fn enable_cpu(
        &self,
        number: u32,
        cpu: &mut cpus::Cpu,
        _vcpus: &mut [SvmVcpu],
        host: &mut dyn Host,
    ) -> Result<(), Errno> {
        cpus::enable(number, cpu, host)
    }

    fn disable_cpu(
        &self,
        _number: u32,
        cpu: &mut cpus::Cpu,
        _vcpus: &mut [SvmVcpu],
        _host: &mut dyn Host,
    ) -> Result<(), Errno> {
        cpus::disable(cpu, &self.kvm.options)
    }

    fn vcpu_load(
        &self,
        vcpu: u32,
        vcpus: &mut [SvmVcpu],
        cpus: &mut [cpus::Cpu],
        number: u32,
        _host: &mut dyn Host,
    ) -> Result<bool, Errno> {
        cpus::load(&mut vcpus[vcpu as usize], cpus, number)
    }

    fn entered_on(
        &self,
        v: &SvmVcpu,
        cpu: &mut cpus::Cpu,
        state: &VcpuState,
        host: &mut dyn Host,
    ) -> Result<(), Errno> {
        cpus::in_clgi(v.core.last_vmentry_cpu as u32, cpu, state.rip, v.core.id, host)
    }

    fn crash(
        &self,
        _number: u32,
        cpu: &mut cpus::Cpu,
        _vcpus: &mut [SvmVcpu],
        _host: &mut dyn Host,
    ) -> Result<(), Errno> {
        cpu.stopped = true;
        cpus::disable(cpu, &self.kvm.options)
    }

    fn query_cpus(&self, cpus: &[cpus::Cpu], number: u32, what: Query) -> Result<u64, Errno> {
        let cpu = || cpus.get(number as usize).ok_or(Errno::ENOENT);
        match what {
            Query::CPU_VIRTUALIZES => Ok(cpu()?.svme.into()),
            Query::CPU_BLOCKS_INIT => Ok(cpu()?.gif_clear.into()),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn host_nmi(&self, state: &VcpuState) -> Exit {
        exits::host_nmi(state)
    }

    fn access(
        &mut self,
        v: &mut SvmVcpu,
        state: &mut VcpuState,
        access: &Access,
        host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Answer {
        let (vcpu, tracer) = (v.core.id, v.core.tracer());
        let wanted = WalkAccess::from(access);
        let tdp = self.kvm.tdp();
        if let Some(mc) = self.kvm.machine_check(vcpu, state, access.gva, host) {
            *exit = exits::exception(&mc, state);
            return Answer { verdict: Verdict::EXIT, ..Default::default() };
        }
        let mmu = &mut self.kvm.mmu;
        if !tdp {
            return match mmu.shadow_access(vcpu, state, access.gva, &wanted, host) {
                GuestAccess::Mapped(mapping) => native(mapping, mmu.epoch(vcpu, None)),
                // Offered as an exception next, which is intercepted.
                GuestAccess::Fault(error) => fault(access.gva, error),
                GuestAccess::Nested(_) => unreachable!("shadow paging has one dimension"),
            };
        }
        let caching = Caching::of(v.running.vmcb.save.g_pat);
        let (answer, steps) = mmu.tdp_access(vcpu, state, access.gva, &wanted, caching, host);
        match answer {
            GuestAccess::Mapped(mapping) => native(mapping, mmu.epoch(vcpu, Some(caching))),
            GuestAccess::Fault(error) => {
                if error.rsvd() && host.wants(NoteKind::RULE) {
                    tracer.note(Rule::RESERVED_BY_HOST_WIDTH.note(), host);
                    note_steps(vcpu, tracer.place, &steps, host);
                }
                fault(access.gva, error)
            }
            GuestAccess::Nested(stop) => {
                *exit = exits::nested(&stop, state, access);
                exit.info1 = self.kvm.exit_info(vcpu, exit.info1, exit.info2, host);
                note_nested(tracer, &stop, &steps, self.kvm.silicon.host_levels, host);
                Answer { verdict: Verdict::EXIT, ..Default::default() }
            }
        }
    }

    fn reached_pat(&self, v: &SvmVcpu, host_initiated: bool) -> ReachedPat {
        let l1 = L1::new(self, &v.core.cpuid);
        let reached = |host| pat::reached(&l1, v.core.guest_mode, &v.nested.vmcb12.control, host);
        match (reached(false), reached(host_initiated)) {
            (Pat::Host, _) => ReachedPat::ONLY,
            (_, Pat::Guest) => ReachedPat::GPAT,
            (_, Pat::Host) => ReachedPat::HPAT,
        }
    }

    fn sensitive(
        &mut self,
        v: &mut SvmVcpu,
        state: &mut VcpuState,
        insn: &Sensitive,
        host: &mut dyn Host,
        exit: &mut Exit,
        fault: &mut Exception,
    ) -> Verdict {
        if insn.kind == SensitiveKind::INTERRUPT_WINDOW && !v.running.has_virtual_interrupt(state) {
            return Verdict::NATIVE;
        }
        if insn.kind == SensitiveKind::NMI_WINDOW {
            if v.running.has_virtual_nmi(state) {
                v.running.take_virtual_nmi(state);
                return Verdict::NATIVE;
            }
            if !v.nmi_singlestep {
                return Verdict::NATIVE;
            }
        }
        let control = &v.running.vmcb.control;
        let decode_assists = self.kvm.silicon.decode_assists.is_set();
        let taken = exits::instruction(insn, state, &control.intercepts, decode_assists);
        // The map that silicon was told of.
        let merged = control.msrpm_base_pa == setup::msrpm_pa(self, v.core.id, true);
        let map = if merged { &v.nested.msrpm } else { &v.msrpm };
        let allowed = match insn.kind {
            SensitiveKind::RDMSR => !map.exits(insn.number, false),
            SensitiveKind::WRMSR => !map.exits(insn.number, true),
            SensitiveKind::PAUSE => taken.is_some() && !v.running.pause_exits(state.tsc),
            _ => false,
        };
        if insn.kind == SensitiveKind::INTERRUPT_WINDOW && taken.is_none() {
            v.running.take_virtual_interrupt(state);
        }
        match taken {
            Some(taken) if !allowed => {
                *exit = taken;
                Verdict::EXIT
            }
            _ => {
                match (insn.kind, insn.number) {
                    (SensitiveKind::SVM, svm::STGI | svm::CLGI) => {
                        nested::events::toggle_gif(self, v, state, insn.number == svm::STGI, host);
                    }
                    (SensitiveKind::SVM, svm::VMLOAD | svm::VMSAVE) => {
                        return vls::execute(self, v, state, insn, host, exit, fault);
                    }
                    _ => {}
                }
                if allowed {
                    note_passed(self, v, state, insn, host);
                }
                Verdict::NATIVE
            }
        }
    }

    fn exception(
        &mut self,
        v: &mut SvmVcpu,
        state: &mut VcpuState,
        exception: &Exception,
        host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Verdict {
        // See: APM vol. 2 15.9 Instruction Intercepts: the #DB of ICEBP is not subject to the intercept of #DB.
        let icebp = exception.vector == Vector::DB && exception.insn_len != 0;
        let code = exits::exception_code(exception.vector);
        if icebp || !v.running.vmcb.control.intercepts.has(code) {
            return Verdict::NATIVE;
        }
        *exit = exits::exception(exception, state);
        if exception.vector == Vector::PF && !self.kvm.tdp() {
            exit.info1 = self.kvm.exit_info(v.core.id, exit.info1, exit.info2, host);
        }
        Verdict::EXIT
    }
}

impl Shared {
    /// #VMEXIT, and what `svm_vcpu_run` does after it.
    fn leave_silicon(&self, v: &mut SvmVcpu, state: &VcpuState, exit: &Exit) {
        // Tapes whose CR8 is always the local APIC's do not tell V_TPR.
        let is_v_tpr = v.virtualizes_tpr() == state.interruptibility.virtual_tpr();
        if v.is_guest_mode() {
            v.running.vmcb.control.int_ctl.set_v_irq(state.interruptibility.virtual_irq());
        }
        let (VmcbInfo { vmcb, mirror }, running) = v.current_mut();
        running.vmexit(vmcb, mirror, exit, state, self.kvm.silicon.nrips.is_set());
        if is_v_tpr {
            vmcb.control.int_ctl.set_v_tpr(state.cr8 as u8 & 0xf);
        }
        vmcb.mark_all_clean();
        nested::events::sync_gif(self, v, state);
        if v.is_guest_mode() {
            nested::exit::sync(self, v);
        }
    }
}

/// With the window that KVM opens by single-stepping.
fn windows(v: &SvmVcpu, mut intercepts: Intercepts) -> Intercepts {
    let wanted = v.nmi_singlestep || intercepts.wants(SensitiveKind::NMI_WINDOW);
    intercepts.set(SensitiveKind::NMI_WINDOW, wanted);
    intercepts
}

fn native(mapping: Mapping, epoch: u64) -> Answer {
    let epoch = if mapping.kind == MappingKind::RAM { epoch } else { 0 };
    Answer { verdict: Verdict::NATIVE, mapping, epoch, ..Default::default() }
}

fn fault(gva: u64, error: PageFaultError) -> Answer {
    Answer { verdict: Verdict::FAULT, fault: Exception::pf(gva, error), ..Default::default() }
}

/// The walk that led to a nested page fault, and the rules that decided it, for the tape.
fn note_nested(tracer: Tracer, stop: &NestedStop, steps: &Steps, levels: u8, host: &mut dyn Host) {
    if !host.wants(NoteKind::RULE) {
        return;
    }
    note_steps(tracer.vcpu, tracer.place, steps, host);
    tracer.note(Rule::NESTED_PAGE_FAULT.note(), host);
    if stop.table {
        tracer.note(Rule::TABLE_WALK_IS_WRITE.note(), host);
    } else if steps.iter().any(|step| step.before != step.after) {
        tracer.note(Rule::ACCESSED_BEFORE_NPF.note(), host);
    }
    if levels < 5 && stop.gpa >> 48 != 0 {
        tracer.note(Rule::NPT4_WIDE_GPA.note(), host);
    }
}
