//! What all vCPUs of a VM share, whatever the vendor, and how a fault becomes an emulation.
//!
//! See: KVM arch/x86/kvm/mmu/mmu.c kvm_mmu_page_fault(), x86.c x86_emulate_instruction()

use crate::{
    Vcpu,
    cpuid::feature,
    cr, emulate,
    hypercall::Hypercall,
    msr,
    profile::{Options, Switch},
};
use vmtape_abi::{EmulateRequest, Host, emultype};
use vmtape_arch::{
    exception::{Exception, Vector},
    exit::Resume,
    host::{Silicon, Vendor},
    note::{Note, NoteKind},
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{Intercepts, VcpuState},
};
use vmtape_kvm_mmu::{
    dirty::DirtyRules,
    fault::{FaultCode, Handled},
    fault_points::FaultPoint,
    insn::writes_page_tables,
    mmu::{Config, Mmu},
    spte::Format,
};

/// A decision that KVM takes for both vendors; each has its own rule for it, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    /// Frames that differ in bits 51:48 of their address met in one entry.
    Alias,
    /// KVM's own walk found a fault of the guest's.
    GuestFault,
    /// Memory that the nested tables cannot map leaves to userspace.
    Unmappable,
    /// A page is no longer shadowed, and the guest tries again.
    Unprotected,
    /// The address is in no slot: the access is emulated.
    Mmio,
    /// The access is emulated for another reason.
    Emulated,
    /// The other vendor's hypercall instruction was replaced.
    HypercallPatched,
}

/// `struct kvm`: silicon, options and MMU of a VM.
pub struct Kvm {
    pub silicon: Silicon,
    pub options: Options,
    pub mmu: Mmu,
    /// `vm_bugged`: KVM found a mistake of its own, and the VM is dead.
    pub bugged: bool,
    /// The vendor's rule for a decision.
    rule: fn(Decided) -> Option<Note>,
}

/// The part of the MMU's configuration that is the same for both vendors; the rest is as without two-dimensional paging.
pub fn mmu_config(silicon: &Silicon, options: &Options, table_width: u8) -> Config {
    Config {
        tdp: false,
        tdp_mmu: options.on(Switch::TDP_MMU),
        format: Format::X86 { width: table_width },
        host_width: silicon.phys_bits,
        gbpages: silicon.gbpages.is_set(),
        backing_shift: silicon.backing_shift,
        max_tdp_level: 0,
        forced_tdp_level: false,
        pml: false,
        dirty: dirty_rules(options),
        mmio_caching: options.on(Switch::MMIO_CACHING),
        amd: silicon.vendor == Vendor::AMD,
        wide_gpa_faults: false,
        accessed_before_nested_fault: false,
        dirty_before_nested_fault: false,
        role_has_cpuid: options.on(Switch::ROLE_HAS_CPUID),
        gfn_track_on_demand: options.on(Switch::GFN_TRACK_ON_DEMAND),
        translate_gpa_check: options.translate_gpa_check(),
        mmio_read_forgotten: options.on(Switch::ACC_READ_MASK),
        ept_types: options.ept_types(),
        unmappable: options.unmappable(),
        npt_rules: options.npt_rules(),
        emulates_apic_page: false,
        gfn_within_host: options.on(Switch::GFN_WITHIN_HOST),
        tdp_splits_on_fault: options.on(Switch::TDP_SPLITS_ON_FAULT),
        suppress_ve: options.on(Switch::SUPPRESS_VE),
        interruptible: options.on(Switch::SLOW_PF_INTERRUPTIBLE),
        full_fault_code: options.on(Switch::FULL_FAULT_CODE),
    }
}

fn dirty_rules(options: &Options) -> DirtyRules {
    DirtyRules {
        pml_in_write_order: options.on(Switch::PML_IN_WRITE_ORDER),
        eager_page_split: options.on(Switch::EAGER_PAGE_SPLIT),
        splits_last: options.on(Switch::SPLIT_TO_LAST_PAGE),
        recovers_in_place: options.on(Switch::RECOVER_HUGE_PAGES),
        atomics_unmarked: options.on(Switch::CMPXCHG_BY_UACCESS) && !options.on(Switch::CMPXCHG_MARKS_DIRTY),
        clears_to_end: options.on(Switch::CLEAR_LOG_TO_SLOT_END),
        drops_large: options.on(Switch::DROP_READ_ONLY_LARGE),
        wp_before_page: options.on(Switch::WP_BEFORE_SHADOW_PAGE),
        protects_for_l2: options.on(Switch::WRITE_PROTECT_FOR_L2),
        pml_off_for_l2: options.on(Switch::PML_OFF_FOR_L2),
    }
}

impl Kvm {
    /// A VM without memory. `rule`: the vendor's rule for a decision.
    pub fn new(
        silicon: Silicon,
        options: Options,
        config: Config,
        rule: fn(Decided) -> Option<Note>,
    ) -> Self {
        Self { silicon, options, mmu: Mmu::new(config), bugged: false, rule }
    }

    /// A memory exit's qualification or EXITINFO1, as silicon stores it.
    pub fn exit_info(&self, vcpu: u32, info: u64, address: u64, host: &mut dyn Host) -> u64 {
        let cleared = self.mmu.fault(vcpu, FaultPoint::EXIT_INFO_CLEARED, info, address, host);
        info & !cleared.unwrap_or(0)
    }

    /// A machine check that comes with an access, with its status.
    pub fn machine_check(
        &self,
        vcpu: u32,
        state: &VcpuState,
        gva: u64,
        host: &mut dyn Host,
    ) -> Option<Exception> {
        let status = self.mmu.fault(vcpu, FaultPoint::MACHINE_CHECK, gva, state.icount, host)?;
        Some(Exception { payload: status, ..Exception::new(Vector::MC) })
    }

    /// The machine check of a fetch through a large page.
    pub fn itlb_multihit(&self, vcpu: u32, gva: u64, gpa: u64, host: &mut dyn Host) -> Option<Exception> {
        if !self.mmu.maps_large(vcpu, gpa) {
            return None;
        }
        let status = self.mmu.fault(vcpu, FaultPoint::ITLB_MULTIHIT, gva, gpa, host)?;
        Some(Exception { payload: status, ..Exception::new(Vector::MC) })
    }

    /// The VMM has disabled these quirks since the VM was made. Entries of the MMU that there are stay as they are.
    pub fn set_disabled_quirks(&mut self, bits: u64) {
        self.options.set_disabled_quirks(bits);
        self.mmu.config.ept_types = self.options.ept_types();
    }

    /// Two-dimensional paging is in use.
    pub fn tdp(&self) -> bool {
        self.mmu.config.tdp
    }

    /// `allow_smaller_maxphyaddr`.
    pub fn allow_smaller_maxphyaddr(&self) -> bool {
        self.options.allow_smaller_maxphyaddr(self.tdp())
    }

    fn note(&self, vcpu: &Vcpu, why: Decided, host: &mut dyn Host) {
        if let Some(note) = (self.rule)(why).filter(|_| host.wants(NoteKind::RULE)) {
            vcpu.note(note, host);
        }
    }

    /// `kvm_mmu_page_fault`, with the emulation that it asks for.
    pub fn mmu_page_fault(
        &mut self,
        vcpu: &mut Vcpu,
        state: &mut VcpuState,
        address: u64,
        code: FaultCode,
        host: &mut dyn Host,
    ) -> Resume {
        let id = vcpu.id;
        let handled = self.mmu.page_fault(id, state, address, code, host);
        if self.mmu.take_alias().is_some() {
            self.note(vcpu, Decided::Alias, host);
        }
        match handled {
            Handled::Resume => Resume::GUEST,
            Handled::Inject(exception) => {
                self.note(vcpu, Decided::GuestFault, host);
                vcpu.inject(state, &exception);
                Resume::GUEST
            }
            // Whoever runs L2 asks for it. See: `Mmu::take_nested_fault`
            Handled::InjectNested(fault) => {
                self.mmu.report_nested_fault(id, fault);
                Resume::GUEST
            }
            Handled::Errno(errno) => Resume::errno(errno),
            Handled::Unmappable(how) => {
                self.note(vcpu, Decided::Unmappable, host);
                emulate::unmappable(vcpu.tracer(), address, how, host)
            }
            Handled::EmulateOrRetry if self.unprotects_for_reinjection(vcpu, state, address, host) => {
                self.note(vcpu, Decided::Unprotected, host);
                Resume::GUEST
            }
            Handled::EmulateOrRetry if self.retries(id, state, address, host) => {
                self.note(vcpu, Decided::Unprotected, host);
                Resume::GUEST
            }
            Handled::Emulate if vcpu.vectoring && self.options.on(Switch::EVENT_VECTORING_CHECKED) => {
                self.vectoring_error(vcpu, state, address, host)
            }
            Handled::Emulate | Handled::EmulateOrRetry => {
                let gpa = self.mmu.l1_gpa(id, state, address, host);
                let mmio = self.tdp() && gpa.is_some_and(|gpa| self.mmu.slots.find(gpa).is_none());
                self.note(vcpu, if mmio { Decided::Mmio } else { Decided::Emulated }, host);
                self.emulate_at(vcpu, state, address, code, host)
            }
        }
    }

    /// What emulation in the delivery of an event comes to, where KVM does not try it. The words about the exit come later.
    /// See: KVM x86.h kvm_can_emulate_event_vectoring(), x86.c kvm_unprotect_and_retry_on_failure()
    fn vectoring_error(
        &mut self,
        vcpu: &Vcpu,
        state: &VcpuState,
        address: u64,
        host: &mut dyn Host,
    ) -> Resume {
        if self.mmu.unprotect_and_retry(vcpu.id, state, address, host) {
            self.note(vcpu, Decided::Unprotected, host);
            return Resume::GUEST;
        }
        emulate::delivery_error(vcpu.tracer(), emulate::DELIVERY_WORDS, [0, 0, 0, address], host)
    }

    /// An event in delivery is not to wait until instructions are emulated: the page is unprotected instead.
    /// See: KVM mmu/mmu.c kvm_mmu_write_protect_fault()
    fn unprotects_for_reinjection(
        &mut self,
        vcpu: &Vcpu,
        state: &VcpuState,
        address: u64,
        host: &mut dyn Host,
    ) -> bool {
        vcpu.vectoring
            && self.options.on(Switch::UNPROTECT_FOR_REINJECTION)
            && !self.mmu.context(vcpu.id).root_role.direct()
            && self.mmu.unprotect_and_retry(vcpu.id, state, address, host)
    }

    /// EMULTYPE_ALLOW_RETRY_PF: an instruction that does not look like an edit of page tables is not emulated, if the page
    /// can be unprotected instead.
    fn retries(&mut self, id: u32, state: &VcpuState, address: u64, host: &mut dyn Host) -> bool {
        let insn = self.mmu.peek_instruction(id, state, host);
        !writes_page_tables(&insn) && self.mmu.unprotect_and_retry(id, state, address, host)
    }

    /// `x86_emulate_instruction` with EMULTYPE_PF, at the address that an exit reported.
    fn emulate_at(
        &mut self,
        vcpu: &mut Vcpu,
        state: &mut VcpuState,
        address: u64,
        code: FaultCode,
        host: &mut dyn Host,
    ) -> Resume {
        let (gva, gpa) = if self.tdp() { (0, address) } else { (address, 0) };
        let mut request = EmulateRequest { flags: emultype::PF, gva, gpa, ..Default::default() };
        if self.silicon.decode_assists.is_set() && !code.fetch() {
            self.give_bytes(vcpu.id, state, &mut request, host);
        }
        let direct = self.mmu.context(vcpu.id).root_role.direct();
        let mut emulator = self.mmu.emulator(vcpu.id, direct.then_some(address));
        emulate::x86_emulate(vcpu, state, &request, &self.options, &mut emulator, host)
    }

    /// The instruction bytes that silicon with decode assists puts in the VMCB.
    /// See: APM 15.8.4 Decode Assists; nested and intercepted page faults
    fn give_bytes(
        &mut self,
        vcpu: u32,
        state: &VcpuState,
        request: &mut EmulateRequest,
        host: &mut dyn Host,
    ) {
        let address = request.gva | request.gpa;
        if self.mmu.fault(vcpu, FaultPoint::INSN_BYTES_LOST, state.rip, address, host).is_some() {
            return;
        }
        let bytes = self.mmu.peek_instruction(vcpu, state, host);
        if bytes.is_empty() {
            return;
        }
        request.flags |= emultype::HAS_BYTES;
        request.insn_len = bytes.len() as u8;
        request.insn[..bytes.len()].copy_from_slice(&bytes);
    }

    /// `kvm_emulate_instruction(vcpu, flags)`: the emulator walks the guest's tables for every access.
    pub fn emulate(
        &mut self,
        vcpu: &mut Vcpu,
        state: &mut VcpuState,
        flags: u32,
        host: &mut dyn Host,
    ) -> Resume {
        let request = EmulateRequest { flags, ..Default::default() };
        let emulator = self.mmu.emulator(vcpu.id, None);
        let mut emulator = if flags & emultype::SKIP != 0 { emulator.skipping() } else { emulator };
        emulate::x86_emulate(vcpu, state, &request, &self.options, &mut emulator, host)
    }

    /// `handle_ud`: a #UD of an instruction that KVM's emulator may execute all the same.
    pub fn handle_ud(&mut self, vcpu: &mut Vcpu, state: &mut VcpuState, host: &mut dyn Host) -> Resume {
        let own = Hypercall::of(self.silicon.vendor);
        let mut emulator = self.mmu.emulator(vcpu.id, None);
        if emulate::on_ud(vcpu, state, own, &self.options, &mut emulator, host) {
            self.note(vcpu, Decided::HypercallPatched, host);
        }
        Resume::GUEST
    }

    /// `kvm_set_cr0`, `kvm_set_cr3` and `kvm_set_cr4`.
    pub fn set_cr(
        &self,
        vcpu: &mut Vcpu,
        state: &mut VcpuState,
        number: u32,
        value: u64,
        host: &mut dyn Host,
    ) -> cr::Outcome {
        let (slots, tdp) = (&self.mmu.slots, self.tdp());
        match number {
            0 => cr::set_cr0(vcpu, state, slots, value, tdp, host),
            3 => cr::set_cr3(vcpu, state, slots, value, host),
            _ => cr::set_cr4(vcpu, state, slots, value, tdp, host),
        }
    }

    /// `kvm_handle_invpcid`.
    pub fn invpcid(
        &mut self,
        vcpu: &Vcpu,
        state: &VcpuState,
        insn: &Sensitive,
        host: &mut dyn Host,
    ) -> Result<(), Exception> {
        let (kind, pcid, gva) = (insn.value, insn.aux, insn.aux2);
        if !vcpu.cpuid.has(feature::INVPCID) {
            return Err(Exception::ud());
        }
        // Whatever the type is.
        if pcid >> 12 != 0 {
            return Err(Exception::gp(0));
        }
        let legal_pcid = state.cr4().pcide() || pcid == 0;
        let canonical = || msr::is_canonical(gva, vcpu.cpuid.virt_addr_bits(state.cr4().la57()));
        match kind {
            0 if legal_pcid && canonical() => self.mmu.invlpg(vcpu.id, gva, host),
            1 if legal_pcid => {
                self.mmu.free_roots_of_pcid(vcpu.id, pcid, host);
                self.mmu.flush_current(vcpu.id, host);
            }
            2 | 3 => self.mmu.flush_guest(vcpu.id, host),
            _ => return Err(Exception::gp(0)),
        }
        Ok(())
    }
}

/// What both vendors' modules intercept whatever happens.
pub fn intercepts(exceptions: u32) -> Intercepts {
    use SensitiveKind as K;
    let mut intercepts = Intercepts { exceptions, ..Default::default() };
    for kind in [
        K::CPUID,
        K::RDMSR,
        K::WRMSR,
        K::CR_WRITE,
        K::LMSW,
        K::HLT,
        K::IN,
        K::OUT,
        K::INS,
        K::OUTS,
        K::RDPMC,
        K::WBINVD,
        K::INVD,
        K::MONITOR,
        K::MWAIT,
        K::XSETBV,
        K::TASK_SWITCH,
        K::TRIPLE_FAULT,
    ] {
        intercepts.set(kind, true);
    }
    intercepts
}
