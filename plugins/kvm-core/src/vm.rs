//! A VM under `kvm.ko`: the boundary's control calls, and the frame of entries and exits. The vendor's module and its silicon
//! are asked where they differ.
//!
//! See: KVM arch/x86/kvm/x86.c, arch/x86/kvm/cpuid.c

use crate::{
    Kvm, Vcpu,
    caps::{self, Cap},
    cpuid::feature,
    cr::MmuEffect,
    emulate,
    events::{self, WindowRequests, Windows},
    msr::{self, Refused},
    profile::Switch,
    pv::{self, Paravirtual},
    smm::{self, Failed, Smi, SmiAllowed, Smm, save_state::SaveState},
    state, supported,
    vcpu::SetCpuid,
    warning,
};
use serde::{Serialize, de::DeserializeOwned};
use vmtape_abi::{
    Backend, DirtyGfn, Errno, FlushScope, Host, MemoryRegion, Query, backend_sections, each_call, section,
};
use vmtape_arch::{
    access::{Access, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume, ResumeKind},
    msr::ReachedPat,
    note::Note,
    paging::bits,
    sensitive::{Sensitive, SensitiveKind},
    state::{MsrEntry, StateKind},
    vcpu::{Activity, Intercepts, Interruptibility, VcpuState},
};
use vmtape_kvm_mmu::{
    fault_points::FaultPoint,
    mmu::{GuestWidth, Mmu},
};

/// Address bits that four paging levels translate.
const FOUR_LEVELS_WIDTH: u8 = 48;

/// KVM_EXIT_FAIL_ENTRY with `hardware_entry_failure_reason`; the CPU comes next to it.
pub fn fail_entry(reason: u32) -> Resume {
    Resume { data: [reason.into(), 0, 0, 0, 0, 0], ..Resume::new(ResumeKind::FAIL_ENTRY) }
}

/// What a vendor keeps for a vCPU around what KVM keeps for all.
pub trait VendorVcpu: Clone + Serialize + DeserializeOwned {
    fn core(&self) -> &Vcpu;
    fn core_mut(&mut self) -> &mut Vcpu;
}

/// `struct kvm_x86_ops`: what `kvm.ko` asks of the vendor's module, and the silicon below it.
pub trait Ops {
    type Vcpu: VendorVcpu;
    /// What the module keeps for a physical CPU.
    type Cpu: Clone + Default + Serialize + DeserializeOwned;

    fn kvm(&self) -> &Kvm;
    fn kvm_mut(&mut self) -> &mut Kvm;

    /// Most levels of the tables that two-dimensional paging puts below the guest.
    fn tdp_levels(&self) -> u8;

    /// `vcpu_create`.
    fn vcpu_create(&self, id: u32) -> Self::Vcpu;

    /// `vcpu_after_set_cpuid`.
    fn after_set_cpuid(&self, vcpu: &mut Self::Vcpu);

    /// `get_msr`: what only the vendor has, and otherwise [`msr::get_common`]. `host_initiated`: KVM_GET_MSRS rather than
    /// the guest.
    fn get_msr(
        &self,
        vcpu: &mut Self::Vcpu,
        state: &VcpuState,
        index: u32,
        host_initiated: bool,
        host: &mut dyn Host,
    ) -> Result<u64, Refused>;

    /// `set_msr`: what only the vendor has, and otherwise [`msr::set_common`].
    fn set_msr(
        &self,
        vcpu: &mut Self::Vcpu,
        state: &mut VcpuState,
        index: u32,
        data: u64,
        host_initiated: bool,
        host: &mut dyn Host,
    ) -> msr::Written;

    /// Which PAT an access to IA32_PAT reaches.
    fn reached_pat(&self, _vcpu: &Self::Vcpu, _host_initiated: bool) -> ReachedPat {
        ReachedPat::ONLY
    }

    /// Does to MMU and TLB what a control-register write asks for.
    fn apply(&mut self, vcpu: &mut Self::Vcpu, state: &VcpuState, effect: MmuEffect, host: &mut dyn Host);

    /// The state changed from outside.
    fn after_reset(&self, _vcpu: &mut Self::Vcpu) {}

    /// What the controls or the VMCB would intercept at the next entry.
    fn intercepts(&self, vcpu: &mut Self::Vcpu, state: &VcpuState) -> Intercepts;

    /// `vcpu_run` down to VMRUN or VM entry: what silicon intercepts from now on, or why it does not enter.
    fn vcpu_run(
        &mut self,
        vcpu: &mut Self::Vcpu,
        state: &mut VcpuState,
        host: &mut dyn Host,
    ) -> Result<Intercepts, Resume>;

    /// Silicon refused to enter. `None`: it was L2's entry, L1 has been told, and goes on.
    fn entry_refused(
        &mut self,
        _vcpu: &mut Self::Vcpu,
        _state: &mut VcpuState,
        failed: Resume,
        _host: &mut dyn Host,
    ) -> Option<Resume> {
        Some(failed)
    }

    /// What the guest can take now (`interrupt_allowed`, `nmi_allowed`).
    fn windows(&self, _vcpu: &Self::Vcpu, state: &VcpuState) -> Windows {
        Windows {
            interrupt: events::interrupt_allowed(state),
            nmi: events::nmi_allowed(state),
            ..Default::default()
        }
    }

    /// `smi_allowed`, for injection.
    fn smi_allowed(&self, v: &Self::Vcpu) -> SmiAllowed {
        if v.core().smm.active { SmiAllowed::Blocked } else { SmiAllowed::Now }
    }

    /// `enable_smi_window`: RSM exits, or is #UD, whatever was asked for.
    fn enable_smi_window(&self, _vcpu: &mut Self::Vcpu) {}

    /// `enter_smm`: what only the vendor saves, and L2 is left. KVM counts a failure as the end of the VM, or goes on.
    fn enter_smm(
        &mut self,
        _vcpu: &mut Self::Vcpu,
        _state: &mut VcpuState,
        _area: &mut SaveState,
        _host: &mut dyn Host,
    ) -> Result<(), Failed> {
        Ok(())
    }

    /// `leave_smm`: L2 is entered again, if it ran.
    fn leave_smm(
        &mut self,
        _vcpu: &mut Self::Vcpu,
        _state: &mut VcpuState,
        _area: &SaveState,
        _host: &mut dyn Host,
    ) -> Result<(), Failed> {
        Ok(())
    }

    /// `set_nmi_mask`.
    fn set_nmi_mask(&self, _vcpu: &mut Self::Vcpu, state: &mut VcpuState, masked: bool) {
        state.interruptibility.set_nmi(masked);
    }

    /// What waits for the vendor's sake, for whoever sends it. Without SMM no SMI is ever let in.
    fn held(&self, v: &Self::Vcpu, state: &VcpuState) -> Interruptibility {
        let Smm { active, supported, .. } = v.core().smm;
        state.interruptibility.with_smi(active || !supported).with_init(active)
    }

    /// An entry that no exit came before: silicon left the guest for a reason of the host's. False: the guest has not run since
    /// the last entry, and nothing that was put in for it has arrived.
    fn interrupted(&mut self, _vcpu: &mut Self::Vcpu, _state: &VcpuState) -> bool {
        true
    }

    /// `nested_ops->check_events`: an event that L1 wants takes L2 out. True: there is one, but L2 must get in first.
    fn check_nested_events(
        &mut self,
        _vcpu: &mut Self::Vcpu,
        _state: &mut VcpuState,
        _host: &mut dyn Host,
    ) -> bool {
        false
    }

    /// `nested_ops->get_nested_state_pages`: what restored state needs of the guest's memory. False: it cannot be read.
    fn get_nested_state_pages(
        &mut self,
        _vcpu: &mut Self::Vcpu,
        _state: &mut VcpuState,
        _host: &mut dyn Host,
    ) -> bool {
        true
    }

    /// `nested_ops->leave_nested`: L2 is forgotten, without an exit to L1.
    fn leave_nested(&mut self, _vcpu: &mut Self::Vcpu, _state: &mut VcpuState, _host: &mut dyn Host) {}

    /// `nested_ops->triple_fault`: whether L1 takes it as an exit.
    fn nested_triple_fault(
        &mut self,
        _vcpu: &mut Self::Vcpu,
        _state: &mut VcpuState,
        _host: &mut dyn Host,
    ) -> bool {
        false
    }

    /// `is_vnmi_pending`: silicon has an NMI to deliver.
    fn is_vnmi_pending(&self, _vcpu: &Self::Vcpu) -> bool {
        false
    }

    /// `check_intercept`: an instruction of L2 that KVM emulates, and that L1 wants. True: L1 has got it.
    fn check_intercept(
        &mut self,
        _vcpu: &mut Self::Vcpu,
        _state: &mut VcpuState,
        _insn: &Sensitive,
        _host: &mut dyn Host,
    ) -> bool {
        false
    }

    /// `enable_irq_window`, `enable_nmi_window`, and that an NMI is on its way.
    fn request_windows(&self, vcpu: &mut Self::Vcpu, requests: WindowRequests);

    /// `get_state` of the nested operations: KVM_GET_NESTED_STATE.
    fn get_nested_state(&self, _vcpu: &Self::Vcpu, _state: &VcpuState) -> Result<Vec<u8>, Errno> {
        Ok(state::nested::get(self.kvm().silicon.vendor))
    }

    /// `set_state` of the nested operations: KVM_SET_NESTED_STATE.
    fn set_nested_state(
        &mut self,
        _vcpu: &mut Self::Vcpu,
        _state: &mut VcpuState,
        bytes: &[u8],
        _host: &mut dyn Host,
    ) -> Result<(), Errno> {
        state::nested::set(self.kvm().silicon.vendor, bytes)
    }

    /// Most bytes of nested state: KVM_CAP_NESTED_STATE.
    fn nested_state_size(&self) -> usize {
        0
    }

    /// What [`Backend::query`] can be asked of this vendor only.
    fn query(&self, _vcpu: Option<&Self::Vcpu>, _what: Query) -> Result<u64, Errno> {
        Err(Errno::ENOTTY)
    }

    /// `handle_exit`.
    fn handle_exit(
        &mut self,
        vcpu: &mut Self::Vcpu,
        state: &mut VcpuState,
        exit: &Exit,
        host: &mut dyn Host,
    ) -> Resume;

    /// `enable_virtualization_cpu`.
    fn enable_cpu(
        &self,
        number: u32,
        cpu: &mut Self::Cpu,
        vcpus: &mut [Self::Vcpu],
        host: &mut dyn Host,
    ) -> Result<(), Errno>;

    /// `disable_virtualization_cpu`.
    fn disable_cpu(
        &self,
        number: u32,
        cpu: &mut Self::Cpu,
        vcpus: &mut [Self::Vcpu],
        host: &mut dyn Host,
    ) -> Result<(), Errno>;

    /// `vcpu_load`. True: the vCPU was not on this CPU. -EIO: the host has crashed meanwhile.
    fn vcpu_load(
        &self,
        vcpu: u32,
        vcpus: &mut [Self::Vcpu],
        cpus: &mut [Self::Cpu],
        number: u32,
        host: &mut dyn Host,
    ) -> Result<bool, Errno>;

    /// What an entry does to the physical CPU. -EIO: the host has crashed in it.
    fn entered_on(
        &self,
        _vcpu: &Self::Vcpu,
        _cpu: &mut Self::Cpu,
        _state: &VcpuState,
        _host: &mut dyn Host,
    ) -> Result<(), Errno> {
        Ok(())
    }

    /// `emergency_disable_virtualization_cpu`.
    fn crash(
        &self,
        number: u32,
        cpu: &mut Self::Cpu,
        vcpus: &mut [Self::Vcpu],
        host: &mut dyn Host,
    ) -> Result<(), Errno>;

    /// [`Backend::write_back`].
    fn write_back(&self, _cpu: &Self::Cpu, _vcpus: &[Self::Vcpu], _host: &mut dyn Host) {}

    /// What [`Backend::query`] can be asked of physical CPUs; `number` is a vCPU's where it is about one.
    fn query_cpus(&self, cpus: &[Self::Cpu], number: u32, what: Query) -> Result<u64, Errno>;

    // --- silicon, as in `Backend` ---

    /// The exit for an NMI of the host's.
    fn host_nmi(&self, state: &VcpuState) -> Exit;

    backend_sections! { section! (silicon each_call! ops_calls () []) }
}

/// A VM.
pub struct Vm<O: Ops> {
    /// What all vCPUs share.
    pub shared: O,
    pub vcpus: Vec<O::Vcpu>,
    /// By number.
    pub cpus: Vec<O::Cpu>,
}

impl<O: Ops> Vm<O> {
    /// KVM_CREATE_VM.
    pub fn of(shared: O) -> Self {
        Self { shared, vcpus: Vec::new(), cpus: Vec::new() }
    }

    fn know_cpu(&mut self, cpu: u32) {
        let len = self.cpus.len().max(cpu as usize + 1);
        self.cpus.resize_with(len, O::Cpu::default);
    }

    fn parts(&mut self, vcpu: u32) -> (&mut O, &mut O::Vcpu) {
        (&mut self.shared, &mut self.vcpus[vcpu as usize])
    }

    /// `vcpu_enter_guest` from its requests on. `None`: silicon refused L2, and L1 is to be entered instead.
    fn try_to_enter(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) -> Option<Resume> {
        let Self { shared: ops, vcpus, cpus } = self;
        let boot_clock = vcpus[0].core().pv.old_clock();
        let v = &mut vcpus[vcpu as usize];
        if let Some(killed) = killed(v.core_mut(), host) {
            return Some(killed);
        }
        if v.core().has_pv_requests() {
            pv::requests(ops.kvm_mut(), v.core_mut(), state, boot_clock, host);
        }
        if v.core().guest_mode && !ops.get_nested_state_pages(v, state, host) {
            let failed = Resume {
                data: [emulate::SUBERROR_EMULATION, 0, 0, 0, 0, 0],
                ..Resume::new(ResumeKind::INTERNAL_ERROR)
            };
            v.core().note(Note::UserspaceExit { reason: failed.kind.0, errno: 0 }, host);
            return Some(failed);
        }
        if v.core_mut().events.take_triple_fault() && !ops.nested_triple_fault(v, state, host) {
            v.core().note(Note::UserspaceExit { reason: ResumeKind::SHUTDOWN.0, errno: 0 }, host);
            return Some(Resume::new(ResumeKind::SHUTDOWN));
        }
        let core = v.core_mut();
        core.last_vmentry_cpu = core.cpu.unwrap_or(0) as i32;
        if state.activity == Activity::HLT {
            state.activity = Activity::ACTIVE;
        }
        let late = v.core().guest_mode && ops.check_nested_events(v, state, host);
        let smi = match late {
            true => Smi::None,
            false => match smm::deliver(ops, v, state, host) {
                Ok(smi) => smi,
                Err(resume) => return Some(resume),
            },
        };
        let windows = Windows { late, smi, ..ops.windows(v, state) };
        let tracer = v.core().tracer();
        let requests = v.core_mut().events.check_and_inject(tracer, state, windows, host);
        if let Some(killed) = killed(v.core_mut(), host) {
            return Some(killed);
        }
        if !requests.immediate_exit {
            ops.request_windows(v, requests);
        }
        if let Err(errno) = ops.kvm_mut().mmu.load(vcpu, state, host) {
            return Some(Resume::errno(errno.0));
        }
        let Kvm { mmu, options, .. } = ops.kvm();
        if mmu.has_invisible_nested_root(vcpu) && !options.on(Switch::NESTED_DUMMY_ROOT) {
            // See: KVM 6.1 mmu/mmu.c mmu_check_root()
            v.core_mut().events.request_triple_fault();
            return None;
        }
        let failed = ops.kvm().mmu.fault(vcpu, FaultPoint::FAILED_ENTRY, state.rip, 0, host);
        let entered = match failed {
            Some(reason) => Err(fail_entry(reason as u32)),
            None => ops.vcpu_run(v, state, host),
        };
        match entered {
            Ok(intercepts) => {
                let on = v.core().cpu.and_then(|cpu| cpus.get_mut(cpu as usize));
                if let Some(Err(errno)) = on.map(|cpu| ops.entered_on(v, cpu, state, host)) {
                    return Some(Resume::errno(errno.0));
                }
                // One that waits for something else is not to be dropped.
                state.interruptibility.set_smi(state.interruptibility.smi() || host.smi(vcpu, false));
                state.intercepts = intercepts;
                state.intercepts.set(SensitiveKind::IMMEDIATE_EXIT, requests.immediate_exit);
                Some(Resume::GUEST)
            }
            Err(failed) => {
                let mut failed = ops.entry_refused(v, state, failed, host)?;
                v.core().note(Note::UserspaceExit { reason: failed.kind.0, errno: 0 }, host);
                failed.data[1] = v.core().last_vmentry_cpu as u64;
                Some(failed)
            }
        }
    }

    /// `kvm_mmu_after_set_cpuid`: what the guest's CPUID says about its page tables, and roles anew.
    fn mmu_after_set_cpuid(&mut self, vcpu: u32, state: &VcpuState, host: &mut dyn Host) {
        let cpuid = &self.vcpus[vcpu as usize].core().cpuid;
        let kvm = self.shared.kvm_mut();
        // Under TDP silicon decides about 1 GiB pages, whatever the guest is told.
        // See: KVM cpuid.c kvm_vcpu_after_set_cpuid()
        let gbpages = if kvm.tdp() { kvm.silicon.gbpages } else { cpuid.has(feature::GBPAGES).into() };
        let width = GuestWidth {
            maxphyaddr: cpuid.maxphyaddr(),
            gbpages: gbpages.is_set(),
            amd: cpuid.amd_compatible(),
        };
        kvm.mmu.vcpu(vcpu).set_width(width);
        kvm.mmu.set_mtrrs(vcpu, msr::mtrrs(self.vcpus[vcpu as usize].core()), host);
        kvm.mmu.reset_context(vcpu, state, host);
    }

    /// The largest guest physical address that some table can map.
    fn max_usable_gpa(&self) -> u64 {
        let kvm = self.shared.kvm();
        let width = kvm.silicon.phys_bits;
        let four_levels = kvm.tdp() && self.shared.tdp_levels() < 5;
        let width = if four_levels { width.min(FOUR_LEVELS_WIDTH) } else { width };
        bits(0, u32::from(width) - 1)
    }
}

/// `xfer_to_guest_mode_handle_work`, `kvm_handle_signal_exit`: KVM_RUN ends where a signal that kills is pending.
fn killed(core: &mut Vcpu, host: &mut dyn Host) -> Option<Resume> {
    let killed = Resume::errno(Errno::EINTR.0);
    std::mem::take(&mut core.killed).then(|| {
        core.note(Note::UserspaceExit { reason: killed.kind.0, errno: killed.errno }, host);
        killed
    })
}

impl<O: Ops> Backend for Vm<O> {
    fn resolved(&self) -> Vec<(String, String)> {
        self.shared.kvm().options.resolved()
    }

    fn fault_points(&self) -> Vec<(String, String)> {
        FaultPoint::NAMED.iter().map(|(point, name)| (point.0.to_string(), (*name).to_owned())).collect()
    }

    fn check_extension(&self, cap: u32) -> i64 {
        let kvm = self.shared.kvm();
        match Cap(cap) {
            Cap::NESTED_STATE => self.shared.nested_state_size() as i64,
            _ => caps::check(cap, &kvm.options, kvm.tdp()),
        }
    }

    fn query(&self, vcpu: u32, what: Query) -> Result<u64, Errno> {
        let v = self.vcpus.get(vcpu as usize);
        let Kvm { mmu, options, .. } = self.shared.kvm();
        Ok(match what {
            Query::MAX_USABLE_GPA if options.on(Switch::MAX_USABLE_GPA_IOCTL) => self.max_usable_gpa(),
            Query::SHADOW_PAGES => mmu.shadow_pages(),
            Query::TWO_DIMENSIONAL => self.shared.kvm().tdp().into(),
            Query::GFN_TRACK_BYTES => mmu.gfn_track_bytes(),
            Query::LAST_VMENTRY_CPU => v.ok_or(Errno::ENOENT)?.core().last_vmentry_cpu as u64,
            Query::VMCS_ACTIVE_ON
            | Query::SHADOW_VMCS_ACTIVE_ON
            | Query::CPU_VIRTUALIZES
            | Query::CPU_BLOCKS_INIT => self.shared.query_cpus(&self.cpus, vcpu, what)?,
            Query::MAX_USABLE_GPA => return Err(Errno::ENOTTY),
            _ => self.shared.query(v, what)?,
        })
    }

    fn supported_cpuid(&self, silicon: &[CpuidEntry]) -> Vec<CpuidEntry> {
        let kvm = self.shared.kvm();
        let tdp_levels = kvm.tdp().then(|| self.shared.tdp_levels());
        supported::supported_cpuid(silicon, &kvm.silicon, &kvm.options, tdp_levels)
    }

    /// See: KVM virt/kvm/kvm_main.c kvm_vm_ioctl_enable_cap_generic(), x86.c kvm_vm_ioctl_enable_cap()
    fn enable_cap(&mut self, cap: u32, flags: u32, arg: u64) -> Result<(), Errno> {
        let Kvm { mmu, options, .. } = self.shared.kvm_mut();
        match Cap(cap) {
            Cap::MANUAL_DIRTY_LOG_PROTECT2 => {
                mmu.enable_manual_protect(flags, arg, options.on(Switch::DIRTY_LOG_INITIALLY_SET))
            }
            Cap::DIRTY_LOG_RING if options.on(Switch::DIRTY_LOG_RING) => mmu.enable_dirty_ring(arg),
            Cap::DIRTY_LOG_RING_ACQ_REL if options.on(Switch::DIRTY_LOG_RING_ACQ_REL) => {
                mmu.enable_dirty_ring(arg)
            }
            Cap::DISABLE_QUIRKS | Cap::DISABLE_QUIRKS2 => {
                let known = options.quirks();
                // A quirk that is not modelled cannot be disabled here.
                if Cap(cap) == Cap::DISABLE_QUIRKS2 && (known == 0 || arg & !known != 0) {
                    return Err(Errno::EINVAL);
                }
                let disabled = options.disabled_quirks() | arg & known;
                self.shared.kvm_mut().set_disabled_quirks(disabled);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    backend_sections! { section! (memory each_call! ask_mmu () []) }

    fn create_vcpu(&mut self, vcpu: u32) -> Result<(), Errno> {
        if vcpu as usize != self.vcpus.len() {
            return Err(Errno::EEXIST);
        }
        self.shared.kvm_mut().mmu.create_vcpu(vcpu);
        let mut v = self.shared.vcpu_create(vcpu);
        let options = &self.shared.kvm().options;
        v.core_mut().last_vmentry_cpu = Vcpu::before_first_entry(options);
        v.core_mut().pv = Paravirtual::new(options);
        v.core_mut().smm = Smm::new(Smm::is_supported(options));
        self.vcpus.push(v);
        Ok(())
    }

    fn set_cpuid(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        entries: &[CpuidEntry],
        host: &mut dyn Host,
    ) -> Result<(), Errno> {
        let (ops, v) = self.parts(vcpu);
        if ops.kvm().bugged {
            return Err(Errno::EIO);
        }
        let (words, late) = (entries.len() as u64, v.core().has_run().into());
        if let Some(answer) = FaultPoint::SET_CPUID_REFUSED.poll(vcpu, words, late, host) {
            return Err(FaultPoint::errno(answer));
        }
        v.core_mut().refresh_apic_base(state, host);
        let done = v.core_mut().set_cpuid(&ops.kvm().options, state, entries)?;
        if done == SetCpuid::Same {
            return Ok(());
        }
        ops.after_set_cpuid(v);
        self.mmu_after_set_cpuid(vcpu, state, host);
        if done == SetCpuid::Late {
            warning::cpuid_after_run(self.vcpus[vcpu as usize].core().tracer(), host);
        }
        let (ops, v) = self.parts(vcpu);
        state.intercepts = ops.intercepts(v, state);
        Ok(())
    }

    fn get_cpuid(&self, vcpu: u32) -> Vec<CpuidEntry> {
        self.vcpus[vcpu as usize].core().cpuid.entries().to_vec()
    }

    fn msr_index_list(&self, silicon: &[CpuidEntry]) -> Vec<u32> {
        let supported = self.supported_cpuid(silicon);
        let Kvm { silicon: host, options, .. } = self.shared.kvm();
        msr::list::Lists { host, options, silicon, supported: &supported }.to_save()
    }

    fn msr_feature_index_list(&self) -> Vec<u32> {
        let Kvm { silicon: host, options, .. } = self.shared.kvm();
        msr::list::Lists { host, options, silicon: &[], supported: &[] }.features()
    }

    backend_sections! { section! (state each_call! ask_state () []) }

    fn state_changed(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) {
        let (ops, v) = self.parts(vcpu);
        ops.leave_nested(v, state, host);
        let core = v.core_mut();
        // INIT and RESET leave no event behind. See: KVM x86.c kvm_vcpu_reset()
        core.events.clear();
        (core.smm.active, core.smm.inside_nmi, core.smm.count) = (false, false, 0);
        core.refresh_apic_base(state, host);
        core.update_cpuid_runtime(state);
        ops.after_reset(v);
        let mmu = &mut ops.kvm_mut().mmu;
        mmu.vcpu(vcpu).smm = false;
        mmu.reset_context(vcpu, state, host);
        state.intercepts = ops.intercepts(v, state);
    }

    fn save(&self) -> Vec<u8> {
        let Kvm { mmu, options, bugged, .. } = self.shared.kvm();
        postcard::to_stdvec(&(options.disabled_quirks(), bugged, mmu, &self.vcpus, &self.cpus))
            .expect("plain data always serializes")
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), Errno> {
        let (quirks, bugged, mmu, vcpus, cpus): (u64, bool, Mmu, Vec<O::Vcpu>, Vec<O::Cpu>) =
            postcard::from_bytes(saved).map_err(|_| Errno::EINVAL)?;
        self.shared.kvm_mut().set_disabled_quirks(quirks);
        self.shared.kvm_mut().bugged = bugged;
        if vcpus.len() != self.vcpus.len() || mmu.config != self.shared.kvm().mmu.config {
            return Err(Errno::EINVAL);
        }
        let kvm = self.shared.kvm_mut();
        let armed = kvm.mmu.armed;
        kvm.mmu = mmu;
        kvm.mmu.armed = armed;
        (self.vcpus, self.cpus) = (vcpus, cpus);
        Ok(())
    }

    fn enable_cpu(&mut self, cpu: u32, host: &mut dyn Host) -> Result<(), Errno> {
        self.know_cpu(cpu);
        self.shared.enable_cpu(cpu, &mut self.cpus[cpu as usize], &mut self.vcpus, host)
    }

    fn disable_cpu(&mut self, number: u32, host: &mut dyn Host) -> Result<(), Errno> {
        let Some(cpu) = self.cpus.get_mut(number as usize) else { return Err(Errno::EINVAL) };
        self.shared.disable_cpu(number, cpu, &mut self.vcpus, host)
    }

    fn vcpu_load(&mut self, vcpu: u32, cpu: u32, host: &mut dyn Host) -> Result<(), Errno> {
        let known = (vcpu as usize) < self.vcpus.len() && (cpu as usize) < self.cpus.len();
        if !known {
            return Err(Errno::EINVAL);
        }
        let moves = self.vcpus[vcpu as usize].core().cpu.is_some_and(|old| old != cpu);
        // What another CPU has of the guest's translations may be old.
        if self.shared.vcpu_load(vcpu, &mut self.vcpus, &mut self.cpus, cpu, host)? && moves {
            self.shared.kvm().mmu.flush_tlb(vcpu, FlushScope::ALL, 0, host);
        }
        self.vcpus[vcpu as usize].core_mut().cpu = Some(cpu);
        Ok(())
    }

    /// `kvm_arch_vcpu_put`: what a CPU holds of the vCPU stays there until somebody else needs it.
    fn vcpu_put(&mut self, vcpu: u32, _host: &mut dyn Host) -> Result<(), Errno> {
        self.vcpus.get(vcpu as usize).map(|_| ()).ok_or(Errno::EINVAL)
    }

    fn host_nmi(
        &mut self,
        vcpu: u32,
        state: &mut VcpuState,
        _host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Verdict {
        let level = self.vcpus[vcpu as usize].core().level();
        *exit = Exit { level, ..self.shared.host_nmi(state) };
        Verdict::EXIT
    }

    fn crash(&mut self, cpu: u32, host: &mut dyn Host) -> Result<(), Errno> {
        self.know_cpu(cpu);
        self.shared.crash(cpu, &mut self.cpus[cpu as usize], &mut self.vcpus, host)
    }

    fn write_back(&mut self, cpu: u32, host: &mut dyn Host) {
        if let Some(cpu) = self.cpus.get(cpu as usize) {
            self.shared.write_back(cpu, &self.vcpus, host);
        }
    }

    backend_sections! { section! (silicon each_call! ask_silicon () []) }

    fn invalidate_range(&mut self, hpa: u64, size: u64, host: &mut dyn Host) {
        self.shared.kvm_mut().mmu.unmap_range(hpa, size, host);
    }

    /// `vcpu_enter_guest`.
    fn enter(&mut self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) -> Resume {
        let (ops, v) = self.parts(vcpu);
        let kvm = ops.kvm_mut();
        kvm.mmu.armed = host.wants_faults();
        kvm.bugged |= kvm.mmu.fault(vcpu, FaultPoint::VM_BUGGED, state.rip, 0, host).is_some();
        if kvm.bugged {
            return Resume::errno(Errno::EIO.0);
        }
        // No exit since the last entry: what was injected has been delivered, unless the guest did not get to run.
        if !std::mem::take(&mut v.core_mut().exited) && ops.interrupted(v, state) {
            v.core_mut().events.complete(&state.inject);
        }
        if ops.kvm().mmu.ring_is_full(vcpu) {
            // `kvm_dirty_ring_check_request`: again at each KVM_RUN, until a reset makes room.
            v.core().note(Note::UserspaceExit { reason: ResumeKind::DIRTY_RING_FULL.0, errno: 0 }, host);
            return Resume::new(ResumeKind::DIRTY_RING_FULL);
        }
        loop {
            if let Some(resume) = self.try_to_enter(vcpu, state, host) {
                return resume;
            }
        }
    }

    fn handle_exit(&mut self, vcpu: u32, state: &mut VcpuState, exit: &Exit, host: &mut dyn Host) -> Resume {
        let (ops, v) = self.parts(vcpu);
        v.core_mut().exited = true;
        let resume = ops.handle_exit(v, state, exit, host);
        state.interruptibility = ops.held(v, state);
        resume
    }
}
