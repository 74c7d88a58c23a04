//! Exit handlers: one table from exit code to function, as `svm_exit_handlers`.
//!
//! See: KVM arch/x86/kvm/svm/svm.c

use super::{
    nested, setup,
    vmcb::{set_intercept, set_vintr},
};
use crate::{
    rules::Rule,
    silicon::{exits::IoInfo, vmcb::ControlArea},
    vm::{Shared, SvmVcpu},
};
use vmtape_abi::{Host, emultype};
use vmtape_arch::{
    event::EventKind,
    exception::{Exception, PageFaultError, Vector},
    exit::{Exit, Resume, ResumeKind, SvmExitCode},
    note::Note,
    sensitive::SensitiveKind,
    vcpu::{VcpuState, gpr},
};
use vmtape_kvm_core::{cpuid, cr, events, forced, hypercall, io, msr, pmu, profile::Switch, smm, vmware};
use vmtape_kvm_mmu::fault::FaultCode;

/// Everything a handler works on.
pub struct Cx<'a> {
    pub shared: &'a mut Shared,
    pub vcpu: &'a mut SvmVcpu,
    pub state: &'a mut VcpuState,
    pub exit: &'a Exit,
    pub host: &'a mut dyn Host,
}

/// `svm_handle_exit`.
pub fn handle(cx: &mut Cx<'_>) -> Resume {
    complete_interrupts(cx);
    if !cx.vcpu.is_guest_mode() {
        return dispatch(cx);
    }
    if nested::exit::reflect(cx) {
        return Resume::GUEST;
    }
    let resume = dispatch(cx);
    let resume = offer_to_l1(cx).unwrap_or(resume);
    nested::exit::after_handler(cx);
    resume
}

/// What the emulator has kept back goes to L1, or is executed after all.
fn offer_to_l1(cx: &mut Cx<'_>) -> Option<Resume> {
    let insn = cx.vcpu.core.kept_back.take()?;
    if nested::emulated::check(cx, &insn) {
        return Some(Resume::GUEST);
    }
    Some(cx.without_asking(|cx| cx.emulate(0)))
}

/// `svm_invoke_exit_handler`.
fn dispatch(cx: &mut Cx<'_>) -> Resume {
    use SvmExitCode as C;
    match cx.control().exit_code() {
        C::NPF => npf(cx),
        C::EXCP_PF => page_fault(cx),
        C::EXCP_UD => forced::handle_ud(cx.shared, cx.vcpu, cx.state, cx.host),
        C::EXCP_GP => gp(cx),
        C::EXCP_AC => cx.inject(Exception::with_code(Vector::AC, 0)),
        C::EXCP_DB => debug(cx),
        C::EXCP_MC => machine_check(cx),
        C::INTR | C::NMI | C::SMI | C::INIT => Resume::GUEST,
        C::CPUID => cpuid_exit(cx),
        C::MSR if cx.control().exit_info_1 == 0 => rdmsr(cx),
        C::MSR => wrmsr(cx),
        C::IOIO => io_exit(cx),
        C::HLT => hlt(cx),
        C::VINTR => {
            set_vintr(cx.shared, cx.vcpu, false);
            Resume::GUEST
        }
        C::IRET => {
            set_intercept(cx.shared, cx.vcpu, C::IRET, false);
            Resume::GUEST
        }
        C::READ_CR0 | C::READ_CR3 | C::READ_CR4 => read_cr(cx),
        C::WRITE_CR0 | C::WRITE_CR3 | C::WRITE_CR4 | C::CR0_SEL_WRITE => write_cr(cx),
        C(code) if (C::READ_DR0.0..=C::WRITE_DR7.0).contains(&code) => debug_registers(cx),
        C::INVLPG => invlpg(cx),
        C::INVPCID => invpcid(cx),
        C::RDPMC => rdpmc(cx),
        C::INVD | C::WBINVD | C::MONITOR | C::MWAIT | C::PAUSE => cx.skip(),
        C::XSETBV => xsetbv(cx),
        C::VMMCALL => vmmcall(cx),
        C::RDPRU | C::RDTSCP => cx.inject(Exception::ud()),
        C::RSM => smm::rsm(cx.shared, cx.vcpu, cx.state, cx.host),
        code @ (C::VMRUN | C::VMLOAD | C::VMSAVE | C::STGI | C::CLGI | C::INVLPGA | C::SKINIT) => {
            nested::instructions::handle(cx, code)
        }
        C::SHUTDOWN => shutdown(cx),
        _ => not_modelled(cx),
    }
}

/// `svm_complete_interrupts`: software exceptions are not queued, the instruction is executed again. An exception that still waited for
/// an entry is lost: one that KVM queued at VMRUN, whose first entry into L2 exits at once.
fn complete_interrupts(cx: &mut Cx<'_>) {
    let mut delivering = cx.exit.access.delivering;
    cx.vcpu.core.vectoring = delivering.valid.is_set();
    if delivering.kind == EventKind::SOFTWARE_EXCEPTION && !cx.vcpu.is_guest_mode() {
        delivering.valid = false.into();
    }
    cx.vcpu.core.events.clear_exceptions();
    cx.vcpu.core.events.complete(&delivering);
    if delivering.valid.is_set() {
        cx.note(Rule::EVENT_REINJECTED.note());
    }
}

impl Cx<'_> {
    /// The control area as #VMEXIT left it.
    pub fn control(&self) -> &ControlArea {
        &self.vcpu.vmcb().control
    }

    pub fn note(&mut self, note: Note) {
        self.vcpu.core.note(note, self.host);
    }

    pub fn inject(&mut self, exception: Exception) -> Resume {
        self.vcpu.core.inject(self.state, &exception);
        Resume::GUEST
    }

    /// #GP(0).
    pub fn gp(&mut self) -> Resume {
        self.inject(Exception::gp(0))
    }

    /// Whether KVM has this change.
    pub fn on(&self, switch: Switch) -> bool {
        self.shared.kvm.options.on(switch)
    }

    /// `kvm_emulate_instruction`.
    fn emulate(&mut self, flags: u32) -> Resume {
        self.shared.kvm.emulate(&mut self.vcpu.core, self.state, flags, self.host)
    }

    /// Emulates where L1 has been asked already.
    fn without_asking(&mut self, emulate: impl FnOnce(&mut Self) -> Resume) -> Resume {
        let wanted = std::mem::take(&mut self.vcpu.core.l1_intercepts);
        let resume = emulate(self);
        self.vcpu.core.l1_intercepts = wanted;
        resume
    }

    /// `kvm_skip_emulated_instruction`.
    pub fn skip(&mut self) -> Resume {
        if self.shared.nrips() {
            self.vcpu.core.skip(self.state, self.exit.insn.len);
            return Resume::GUEST;
        }
        let stepped = events::single_step(self.state.rflags().tf());
        let resume = self.skip_by_decoding();
        vmtape_kvm_core::vcpu::clear_shadow(self.state);
        if let Some(trap) = stepped {
            self.inject(trap);
        }
        resume
    }

    /// `svm_skip_emulated_instruction` where silicon does not save the next RIP: KVM decodes the instruction.
    fn skip_by_decoding(&mut self) -> Resume {
        self.emulate(emultype::SKIP)
    }

    /// `kvm_complete_insn_gp`: the exception, or past the instruction.
    fn complete(&mut self, result: Result<(), Exception>) -> Resume {
        match result {
            Ok(()) => self.skip(),
            Err(exception) => self.inject(exception),
        }
    }

    /// An instruction that KVM's emulator executes with `act`, which writes control registers or the MMU: past the
    /// instruction first, so that it is fetched under the old state.
    fn emulate_with(&mut self, act: impl FnOnce(&mut Self) -> Result<(), Exception>) -> Resume {
        let (rip, icount) = (self.state.rip, self.state.icount);
        let stepped = events::single_step(self.state.rflags().tf());
        let resume = self.skip_by_decoding();
        if self.state.rip == rip {
            return resume;
        }
        if let Err(exception) = act(self) {
            (self.state.rip, self.state.icount) = (rip, icount);
            return self.inject(exception);
        }
        vmtape_kvm_core::vcpu::clear_shadow(self.state);
        if let Some(trap) = stepped {
            self.inject(trap);
        }
        resume
    }

    fn apply(&mut self, result: cr::Outcome) -> Result<(), Exception> {
        let effect = result?;
        setup::apply(self.shared, self.vcpu, self.state, effect, self.host);
        Ok(())
    }
}

/// KVM would go on here, and this model does not know how.
pub fn not_modelled(cx: &mut Cx<'_>) -> Resume {
    let mut resume = Resume::new(ResumeKind::NOT_MODELLED);
    resume.data[0] = cx.exit.insn.kind.0.into();
    resume
}

/// `shutdown_interception`.
fn shutdown(cx: &mut Cx<'_>) -> Resume {
    cx.note(Note::UserspaceExit { reason: ResumeKind::SHUTDOWN.0, errno: 0 });
    Resume::new(ResumeKind::SHUTDOWN)
}

/// `npf_interception`. No release looks at the guest's width here: software cannot take back the accessed bit that silicon
/// has set by now. Two postings of 2020 did.
fn npf(cx: &mut Cx<'_>) -> Resume {
    let (address, code) = (cx.control().exit_info_2, cx.control().exit_info_1);
    cx.note(Note::PageFault { address, code });
    let illegal = address & cx.vcpu.core.cpuid.reserved_gpa_bits() != 0;
    let options = &cx.shared.kvm.options;
    if illegal && options.on(Switch::V1_NPF_CHECK) && options.on(Switch::V1_RSVD_PF) {
        cx.note(Rule::RESERVED_BY_V1.note());
        return cx.inject(v1_reserved_fault(address));
    }
    if illegal && options.on(Switch::V2_NPF_EMULATE) {
        cx.note(Rule::EMULATED_BY_GUEST_WIDTH.note());
        return cx.emulate(0);
    }
    let code = FaultCode::from_bits(code);
    cx.shared.kvm.mmu_page_fault(&mut cx.vcpu.core, cx.state, address, code, cx.host)
}

/// `kvm_inject_rsvd_bits_pf` of the first posting: neither the present flag, which reserved bits imply, nor the access, and
/// the guest physical address where CR2 wants the linear one.
fn v1_reserved_fault(gpa: u64) -> Exception {
    Exception::pf(gpa, PageFaultError::new().with_rsvd(true))
}

/// A page fault that silicon found in the guest's own tables: it is the guest's, corrected by the second posting for the
/// guest's width.
fn guests_page_fault(cx: &mut Cx<'_>, gva: u64, error: PageFaultError) -> Resume {
    if !cx.shared.kvm.options.on(Switch::V2_SVM_PF_FIXUP) {
        return cx.inject(Exception::pf(gva, error));
    }
    cx.note(Rule::FIXED_UP.note());
    let fault = cx.shared.kvm.mmu.fixup_page_fault(cx.vcpu.core.id, cx.state, gva, error, cx.host);
    cx.inject(fault)
}

/// `pf_interception`, `kvm_handle_page_fault`.
fn page_fault(cx: &mut Cx<'_>) -> Resume {
    let (address, code) = (cx.control().exit_info_2, cx.control().exit_info_1);
    if cx.shared.kvm.tdp() {
        return guests_page_fault(cx, address, PageFaultError::from_bits(code as u32));
    }
    cx.note(Note::PageFault { address, code });
    if cx.exit.access.delivering.valid.is_set() && !cx.on(Switch::UNPROTECT_FOR_REINJECTION) {
        // The event may be stuck on a page that is a page table no longer.
        cx.shared.kvm.mmu.unprotect_and_retry(cx.vcpu.core.id, cx.state, address, cx.host);
    }
    let code = FaultCode::from_bits(code);
    cx.shared.kvm.mmu_page_fault(&mut cx.vcpu.core, cx.state, address, code, cx.host)
}

/// `svm_handle_mce`: the host's handler has the machine check, unless it is the erratum that only the guest can pay for.
fn machine_check(cx: &mut Cx<'_>) -> Resume {
    /// MC0_STATUS of erratum 383. See: KVM svm/svm.c is_erratum_383()
    const ERRATUM_383: u64 = 0xb600_0000_0001_0015;
    if cx.exit.exception.payload == ERRATUM_383 {
        cx.host.log(1, "kvm: Guest triggered AMD Erratum 383");
        cx.vcpu.core.events.request_triple_fault();
    }
    Resume::GUEST
}

/// `db_interception`.
/// `gp_interception`. That silicon of AMD's takes VMRUN, VMLOAD and VMSAVE of some addresses for a #GP is not modelled.
fn gp(cx: &mut Cx<'_>) -> Resume {
    let error_code = cx.control().exit_info_1 as u32;
    vmware::handle_gp(cx.shared, cx.vcpu, cx.state, error_code, cx.host)
}

fn rdpmc(cx: &mut Cx<'_>) -> Resume {
    let read = pmu::rdpmc(cx.shared.kvm.silicon.vendor, &cx.vcpu.core, cx.state);
    cx.complete(read)
}

fn debug(cx: &mut Cx<'_>) -> Resume {
    if cx.exit.insn.kind == SensitiveKind::NMI_WINDOW {
        cx.vcpu.nmi_singlestep = false;
        return Resume::GUEST;
    }
    // A trap of the instruction itself (ICEBP): silicon reports it with the next instruction's RIP.
    let len = cx.exit.exception.insn_len;
    if len != 0 {
        cx.state.rip = cx.state.rip.wrapping_add(len.into());
        vmtape_kvm_core::vcpu::clear_shadow(cx.state);
    }
    cx.inject(Exception { insn_len: 0, ..cx.exit.exception })
}

fn cpuid_exit(cx: &mut Cx<'_>) -> Resume {
    cpuid::emulate(&cx.vcpu.core, cx.state, cx.host);
    cx.skip()
}

fn rdmsr(cx: &mut Cx<'_>) -> Resume {
    let result = msr::emulate_rdmsr(cx.shared, cx.vcpu, cx.state, cx.host);
    cx.complete(result)
}

fn wrmsr(cx: &mut Cx<'_>) -> Resume {
    let outcome = msr::emulate_wrmsr(cx.shared, cx.vcpu, cx.state, cx.host);
    let result = cx.apply(outcome);
    cx.complete(result)
}

/// `io_interception`: silicon says where the next instruction is.
fn io_exit(cx: &mut Cx<'_>) -> Resume {
    let info = IoInfo::from_bits(cx.control().exit_info_1);
    if info.string() {
        // By its map, where L1 has one, it has left the port to L0.
        return cx.without_asking(|cx| cx.emulate(0));
    }
    let insn_len = cx.control().exit_info_2.wrapping_sub(cx.state.rip) as u8;
    let pio = io::Pio { port: info.port(), size: info.size(), input: info.input(), insn_len };
    io::fast_pio(&mut cx.vcpu.core, cx.state, &pio, cx.host)
}

/// `kvm_emulate_halt`.
fn hlt(cx: &mut Cx<'_>) -> Resume {
    if cx.shared.nrips() {
        return io::halt(&mut cx.vcpu.core, cx.state, cx.exit.insn.len);
    }
    cx.skip();
    io::block(&cx.vcpu.core, cx.state)
}

/// `kvm_emulate_hypercall`.
fn vmmcall(cx: &mut Cx<'_>) -> Resume {
    // L2's, and L1 does not want it. See: KVM svm/svm.c vmmcall_interception()
    if cx.vcpu.is_guest_mode() {
        return cx.inject(Exception::ud());
    }
    if cx.shared.nrips() {
        let insn_len = cx.exit.insn.len;
        return hypercall::hypercall(&mut cx.shared.kvm, &mut cx.vcpu.core, cx.state, insn_len, cx.host);
    }
    hypercall::answer(&mut cx.shared.kvm, &cx.vcpu.core, cx.state, cx.host);
    cx.skip()
}

fn xsetbv(cx: &mut Cx<'_>) -> Resume {
    let value = cx.state.gpr[gpr::RAX] & 0xffff_ffff | cx.state.gpr[gpr::RDX] << 32;
    let index = cx.state.gpr[gpr::RCX] as u32;
    let result = cr::xsetbv(&mut cx.vcpu.core, cx.state, index, value);
    cx.complete(result)
}

/// `cr_interception`, reads.
fn read_cr(cx: &mut Cx<'_>) -> Resume {
    if !cx.shared.kvm.silicon.decode_assists || cx.exit.insn.kind != SensitiveKind::CR_READ {
        return cx.emulate(0);
    }
    let number = cx.exit.insn.number;
    let value = match number {
        0 => cx.state.cr0,
        3 => cx.state.cr3,
        _ => cx.state.cr4,
    };
    cx.state.gpr[usize::from(cx.exit.insn.gpr)] = value;
    cx.note(Note::Cr { write: false, number: number as u8, value });
    cx.skip()
}

/// `cr_interception`, writes. Without decode assists the emulator decodes the instruction, and does the same.
fn write_cr(cx: &mut Cx<'_>) -> Resume {
    let insn = cx.exit.insn;
    let value = match insn.kind {
        SensitiveKind::CLTS => cx.state.cr0().with_ts(false).into_bits(),
        SensitiveKind::LMSW => cr::lmsw(cx.state.cr0, insn.value),
        _ => insn.value,
    };
    if insn.number == 0 && nested::exit::cr0_vmexit(cx) {
        return Resume::GUEST;
    }
    if cx.shared.kvm.silicon.decode_assists.is_set() && insn.kind == SensitiveKind::CR_WRITE {
        cx.note(Note::Cr { write: true, number: insn.number as u8, value });
        let result = set_cr(cx, insn.number, value);
        return cx.complete(result);
    }
    cx.emulate_with(|cx| set_cr(cx, insn.number, value))
}

fn set_cr(cx: &mut Cx<'_>, number: u32, value: u64) -> Result<(), Exception> {
    let outcome = cx.shared.kvm.set_cr(&mut cx.vcpu.core, cx.state, number, value, cx.host);
    cx.apply(outcome)
}

/// `dr_interception`: the first access lets all further ones through, until the next exit.
fn debug_registers(cx: &mut Cx<'_>) -> Resume {
    setup::set_dr_intercepts(cx.shared, cx.vcpu, false);
    cx.vcpu.debug_registers_owned = true;
    Resume::GUEST
}

/// `invlpg_interception`.
fn invlpg(cx: &mut Cx<'_>) -> Resume {
    let (id, gva) = (cx.vcpu.core.id, cx.exit.insn.address);
    if cx.shared.kvm.silicon.decode_assists.is_set() {
        cx.shared.kvm.mmu.invlpg(id, gva, cx.host);
        return cx.skip();
    }
    cx.emulate_with(|cx| {
        cx.shared.kvm.mmu.invlpg(id, gva, cx.host);
        Ok(())
    })
}

/// `invpcid_interception`.
fn invpcid(cx: &mut Cx<'_>) -> Resume {
    let result = cx.shared.kvm.invpcid(&cx.vcpu.core, cx.state, &cx.exit.insn, cx.host);
    cx.complete(result)
}
