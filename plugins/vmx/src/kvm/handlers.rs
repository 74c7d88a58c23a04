//! Exit handlers: one table from reason to function, as `kvm_vmx_exit_handlers`.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c

use super::setup;
use crate::{
    rules::Rule,
    silicon::apic::reg,
    vm::{Shared, VmxVcpu},
};
use vmtape_abi::{BusOp, BusSpace, Host, emultype};
use vmtape_arch::{
    event::EventKind,
    exception::{Exception, PageFaultError, Vector},
    exit::{EptQualification, Exit, Resume, ResumeKind, VmxReason},
    note::Note,
    qualification::{ApicQualification, CrQualification, DrQualification, IoQualification},
    regs::{Cr4, Dr6},
    vcpu::{VcpuState, gpr},
};
use vmtape_kvm_core::{cpuid, cr, emulate, io, msr};
use vmtape_kvm_mmu::fault::FaultCode;

/// KVM_INTERNAL_ERROR_SIMUL_EX.
const SUBERROR_SIMUL_EX: u64 = 2;
/// DR7.GD.
const DR7_GD: u64 = 1 << 13;

/// Everything a handler works on.
pub struct Cx<'a> {
    pub shared: &'a mut Shared,
    pub vcpu: &'a mut VmxVcpu,
    pub state: &'a mut VcpuState,
    pub exit: &'a Exit,
    pub host: &'a mut dyn Host,
}

type Handler = fn(&mut Cx<'_>) -> Resume;

const REASONS: usize = 80;

static TABLE: [Option<Handler>; REASONS] = table();

const fn table() -> [Option<Handler>; REASONS] {
    const fn put(table: &mut [Option<Handler>; REASONS], reason: VmxReason, handler: Handler) {
        table[reason.0 as usize] = Some(handler);
    }
    use VmxReason as R;
    let mut t: [Option<Handler>; REASONS] = [None; REASONS];
    put(&mut t, R::EXCEPTION_NMI, exception_nmi);
    put(&mut t, R::TRIPLE_FAULT, triple_fault);
    put(&mut t, R::INTERRUPT_WINDOW, interrupt_window);
    put(&mut t, R::NMI_WINDOW, nmi_window);
    put(&mut t, R::TASK_SWITCH, not_modelled);
    put(&mut t, R::CPUID, cpuid_exit);
    put(&mut t, R::HLT, hlt);
    put(&mut t, R::INVD, skip);
    put(&mut t, R::WBINVD, skip);
    put(&mut t, R::MONITOR_INSTRUCTION, skip);
    put(&mut t, R::MWAIT_INSTRUCTION, skip);
    put(&mut t, R::INVLPG, invlpg);
    put(&mut t, R::INVPCID, invpcid);
    put(&mut t, R::RDPMC, rdpmc);
    put(&mut t, R::VMCALL, vmcall);
    put(&mut t, R::CR_ACCESS, cr_access);
    put(&mut t, R::DR_ACCESS, dr_access);
    put(&mut t, R::IO_INSTRUCTION, io_instruction);
    put(&mut t, R::MSR_READ, msr_read);
    put(&mut t, R::MSR_WRITE, msr_write);
    put(&mut t, R::APIC_ACCESS, apic_access);
    put(&mut t, R::APIC_WRITE, apic_write);
    put(&mut t, R::EPT_VIOLATION, ept_violation);
    put(&mut t, R::EPT_MISCONFIG, ept_misconfig);
    put(&mut t, R::XSETBV, xsetbv);
    put(&mut t, R::RDRAND, invalid_opcode);
    put(&mut t, R::RDSEED, invalid_opcode);
    put(&mut t, R::VMFUNC, invalid_opcode);
    put(&mut t, R::VMCLEAR, vmx_instruction);
    put(&mut t, R::VMLAUNCH, vmx_instruction);
    put(&mut t, R::VMPTRLD, vmx_instruction);
    put(&mut t, R::VMPTRST, vmx_instruction);
    put(&mut t, R::VMREAD, vmx_instruction);
    put(&mut t, R::VMRESUME, vmx_instruction);
    put(&mut t, R::VMWRITE, vmx_instruction);
    put(&mut t, R::VMOFF, vmx_instruction);
    put(&mut t, R::VMON, vmx_instruction);
    put(&mut t, R::INVEPT, vmx_instruction);
    put(&mut t, R::INVVPID, vmx_instruction);
    t
}

/// `vmx_handle_exit`.
pub fn handle(cx: &mut Cx<'_>) -> Resume {
    let reason = VmxReason(cx.exit.reason & 0xffff);
    let delivering = cx.exit.access.delivering;
    cx.vcpu.core.events.complete(&delivering);
    if delivering.valid {
        cx.host.note(cx.vcpu.core.id, Rule::EVENT_REINJECTED.note());
        if !may_interrupt_delivery(reason) {
            return delivery_error(cx, reason);
        }
    }
    match TABLE.get(reason.0 as usize).copied().flatten() {
        Some(handler) => handler(cx),
        None => not_modelled(cx),
    }
}

/// Exits that may interrupt the delivery of an event. MMIO is not among them: it would come back for ever.
/// See: KVM vmx/vmx.c __vmx_handle_exit()
fn may_interrupt_delivery(reason: VmxReason) -> bool {
    use VmxReason as R;
    matches!(
        reason,
        R::EXCEPTION_NMI | R::EPT_VIOLATION | R::PML_FULL | R::APIC_ACCESS | R::TASK_SWITCH | R::NOTIFY
    )
}

fn delivery_error(cx: &mut Cx<'_>, reason: VmxReason) -> Resume {
    let gpa = if reason == VmxReason::EPT_MISCONFIG { cx.exit.gpa } else { 0 };
    let (info, full) = (cx.exit.info2, cx.exit.reason.into());
    emulate::delivery_error(cx.vcpu.core.id, info, full, cx.exit.info1, gpa, cx.host)
}

impl Cx<'_> {
    fn skip(&mut self) -> Resume {
        self.vcpu.core.skip(self.state, self.exit.insn.len);
        Resume::GUEST
    }

    fn inject(&mut self, exception: Exception) -> Resume {
        self.vcpu.core.inject(self.state, &exception);
        Resume::GUEST
    }

    /// `kvm_complete_insn_gp`: the exception, or past the instruction.
    fn complete(&mut self, result: Result<(), Exception>) -> Resume {
        match result {
            Ok(()) => self.skip(),
            Err(exception) => self.inject(exception),
        }
    }

    fn note(&mut self, note: Note) {
        self.host.note(self.vcpu.core.id, note);
    }

    fn userspace(&mut self, kind: ResumeKind) {
        self.note(Note::UserspaceExit { reason: kind.0, errno: 0 });
    }

    /// Does what a control-register write asks of the MMU and the TLB.
    fn apply(&mut self, result: cr::Outcome) -> Result<(), Exception> {
        let effect = result?;
        setup::apply(self.shared, self.vcpu.core.id, self.state, effect, self.host);
        Ok(())
    }
}

fn skip(cx: &mut Cx<'_>) -> Resume {
    cx.skip()
}

fn not_modelled(cx: &mut Cx<'_>) -> Resume {
    let mut resume = Resume::new(ResumeKind::NOT_MODELLED);
    resume.data[0] = cx.exit.insn.kind.0.into();
    resume
}

fn triple_fault(cx: &mut Cx<'_>) -> Resume {
    cx.userspace(ResumeKind::SHUTDOWN);
    Resume::new(ResumeKind::SHUTDOWN)
}

fn interrupt_window(cx: &mut Cx<'_>) -> Resume {
    cx.vcpu.controls.interrupt_window = false;
    Resume::GUEST
}

fn nmi_window(cx: &mut Cx<'_>) -> Resume {
    cx.vcpu.controls.nmi_window = false;
    Resume::GUEST
}

fn cpuid_exit(cx: &mut Cx<'_>) -> Resume {
    cpuid::emulate(&cx.vcpu.core.cpuid, cx.vcpu.core.id, cx.state, cx.host);
    cx.skip()
}

fn hlt(cx: &mut Cx<'_>) -> Resume {
    io::halt(&mut cx.vcpu.core, cx.state, cx.exit.insn.len)
}

fn vmcall(cx: &mut Cx<'_>) -> Resume {
    io::hypercall(&mut cx.vcpu.core, cx.state, cx.exit.insn.len, cx.host)
}

fn rdpmc(cx: &mut Cx<'_>) -> Resume {
    // There is no virtual PMU, so no counter exists. See: KVM x86.c kvm_emulate_rdpmc()
    cx.inject(Exception::gp(0))
}

fn xsetbv(cx: &mut Cx<'_>) -> Resume {
    let value = cx.state.gpr[gpr::RAX] & 0xffff_ffff | cx.state.gpr[gpr::RDX] << 32;
    let index = cx.state.gpr[gpr::RCX] as u32;
    let result = cr::xsetbv(&mut cx.vcpu.core, cx.state, index, value);
    cx.complete(result)
}

fn invalid_opcode(cx: &mut Cx<'_>) -> Resume {
    cx.inject(Exception::ud())
}

/// VMX is hidden from guests, which then take #UD; a guest whose CPUID has it anyway meets the end of this model.
fn vmx_instruction(cx: &mut Cx<'_>) -> Resume {
    if cx.vcpu.core.cpuid.has(cpuid::feature::VMX) {
        return not_modelled(cx);
    }
    cx.inject(Exception::ud())
}

fn msr_read(cx: &mut Cx<'_>) -> Resume {
    let result = msr::emulate_rdmsr(&mut cx.vcpu.core, cx.state, cx.host);
    cx.complete(result)
}

fn msr_write(cx: &mut Cx<'_>) -> Resume {
    let index = cx.state.gpr[gpr::RCX] as u32;
    let outcome = msr::emulate_wrmsr(&mut cx.vcpu.core, cx.state, cx.host);
    let result = cx.apply(outcome);
    if result.is_ok() {
        setup::after_wrmsr(cx.shared, cx.vcpu, index);
    }
    cx.complete(result)
}

/// `handle_cr`.
fn cr_access(cx: &mut Cx<'_>) -> Resume {
    let qualification = CrQualification::from_bits(cx.exit.info1);
    let number = qualification.number();
    let register = usize::from(qualification.gpr());
    match qualification.kind() {
        0 => {
            let value = operand(cx.state, register);
            cx.note(Note::Cr { write: true, number, value });
            let result = write_cr(cx, number, value);
            cx.complete(result)
        }
        1 => {
            let value = cx.state.cr3;
            cx.state.gpr[register] = value;
            cx.note(Note::Cr { write: false, number, value });
            cx.skip()
        }
        _ => {
            let source = u64::from(qualification.lmsw_source() & 0xf);
            cx.note(Note::Cr { write: true, number: 0, value: cx.state.cr0 & !0xf | source });
            // The result is ignored, as KVM does: LMSW cannot fault once it exits.
            let _ = write_cr(cx, 0, cr::lmsw(cx.state.cr0, source));
            cx.skip()
        }
    }
}

fn operand(state: &VcpuState, register: usize) -> u64 {
    let value = state.gpr[register];
    if state.is_64bit_code() { value } else { value & 0xffff_ffff }
}

fn write_cr(cx: &mut Cx<'_>, number: u8, value: u64) -> Result<(), Exception> {
    let tdp = cx.shared.ept();
    let core = &mut cx.vcpu.core;
    let slots = cx.shared.slots();
    let outcome = match number {
        0 => cr::set_cr0(core, cx.state, slots, value, tdp, cx.host),
        3 => cr::set_cr3(core, cx.state, slots, value, cx.host),
        _ => cr::set_cr4(core, cx.state, slots, value, tdp, cx.host),
    };
    cx.apply(outcome)
}

/// `handle_dr`: the first access lets all further ones through, until the next exit.
fn dr_access(cx: &mut Cx<'_>) -> Resume {
    let number = DrQualification::from_bits(cx.exit.info1).number();
    if matches!(number, 4 | 5) && Cr4::from_bits(cx.state.cr4).de() {
        return cx.inject(Exception::ud());
    }
    if cx.state.cpl != 0 {
        return cx.inject(Exception::gp(0));
    }
    if cx.state.dr7 & DR7_GD != 0 {
        let payload = Dr6::new().with_bd(true).into_bits();
        return cx.inject(Exception { payload, ..Exception::new(Vector::DB) });
    }
    cx.vcpu.controls.mov_dr_exiting = false;
    cx.vcpu.debug_registers_owned = true;
    Resume::GUEST
}

/// `handle_io`.
fn io_instruction(cx: &mut Cx<'_>) -> Resume {
    let qualification = IoQualification::from_bits(cx.exit.info1);
    if qualification.string() {
        return emulate_instruction(cx, 0);
    }
    let pio = io::Pio {
        port: qualification.port(),
        size: qualification.size_minus_one() + 1,
        input: qualification.input(),
        insn_len: cx.exit.insn.len,
    };
    io::fast_pio(&mut cx.vcpu.core, cx.state, &pio, cx.host)
}

fn emulate_instruction(cx: &mut Cx<'_>, flags: u32) -> Resume {
    cx.shared.emulate(&mut cx.vcpu.core, cx.state, flags, None, cx.host)
}

/// `handle_exception_nmi`.
fn exception_nmi(cx: &mut Cx<'_>) -> Resume {
    let exception = cx.exit.exception;
    let page_fault = exception.vector == Vector::PF;
    let error = PageFaultError::from_bits(cx.exit.error_code);
    if exception.vector == Vector::MC {
        return Resume::GUEST;
    }
    if exception.vector == Vector::UD {
        return emulate_instruction(cx, emultype::TRAP_UD);
    }
    if cx.exit.access.delivering.valid && (!page_fault || error.rsvd()) {
        cx.userspace(ResumeKind::INTERNAL_ERROR);
        let mut resume = Resume::new(ResumeKind::INTERNAL_ERROR);
        let (vectoring, info) = (cx.exit.info2, u64::from(cx.exit.intr_info));
        resume.data = [SUBERROR_SIMUL_EX, 4, vectoring, info, cx.exit.error_code.into(), 0];
        return resume;
    }
    match exception.vector {
        Vector::PF if cx.shared.ept() => {
            cx.note(Rule::SMALLER_MAXPHYADDR_PF.note());
            let fault = cx.shared.fixup_page_fault(&cx.vcpu.core, cx.state, cx.exit.info1, error, cx.host);
            cx.inject(fault)
        }
        Vector::PF => shadow_page_fault(cx, error),
        Vector::DB => debug(cx),
        // `vmx_guest_inject_ac`: the host detects no split locks.
        _ => cx.inject(Exception { payload: 0, insn_len: 0, ..exception }),
    }
}

fn debug(cx: &mut Cx<'_>) -> Resume {
    let icebp = cx.exit.intr_info >> 8 & 7 == u32::from(EventKind::PRIVILEGED_SOFTWARE_EXCEPTION.0);
    if icebp {
        // The exit is on the ICEBP itself, whose #DB is a trap.
        cx.state.rip = cx.state.rip.wrapping_add(cx.exit.exception.insn_len.into());
        vmtape_kvm_core::vcpu::clear_shadow(cx.state);
    }
    // Under TF and STI or MOV SS blocking KVM sets BS in the pending debug exceptions, for VM entry's consistency check
    // alone: the injected #DB discards them. See: SDM vol. 3C 27.7.3 Delivery of Pending Debug Exceptions after VM Entry
    cx.inject(Exception { payload: cx.exit.info1, ..Exception::new(Vector::DB) })
}

/// `kvm_handle_page_fault`, without EPT.
fn shadow_page_fault(cx: &mut Cx<'_>, error: PageFaultError) -> Resume {
    let gva = cx.exit.info1;
    cx.note(Note::PageFault { address: gva, code: error.into_bits().into() });
    // A write that allows the gfn's page to be unprotected: the event in delivery may be the reason.
    let code = FaultCode::from_bits(error.into_bits().into());
    cx.shared.mmu_page_fault(&mut cx.vcpu.core, cx.state, gva, code, cx.host)
}

/// `handle_ept_violation`.
fn ept_violation(cx: &mut Cx<'_>) -> Resume {
    let qualification = EptQualification::from_bits(cx.exit.info1);
    let gpa = cx.exit.gpa;
    if !cx.exit.access.delivering.valid && qualification.nmi_unblocking() {
        cx.state.interruptibility = cx.state.interruptibility.with_nmi(true);
    }
    cx.note(Note::PageFault { address: gpa, code: cx.exit.info1 });
    let present = qualification.perm_r() || qualification.perm_w() || qualification.perm_x();
    // Bit 0 becomes the user flag, which stands for "read" here.
    let code = FaultCode::new()
        .with_u(qualification.read())
        .with_w(qualification.write())
        .with_fetch(qualification.fetch())
        .with_p(present);
    if cx.shared.allow_smaller_maxphyaddr() && gpa & cx.vcpu.core.cpuid.reserved_gpa_bits() != 0 {
        cx.note(Rule::SMALLER_MAXPHYADDR_GPA.note());
        return emulate_instruction(cx, 0);
    }
    cx.shared.mmu_page_fault(&mut cx.vcpu.core, cx.state, gpa, code, cx.host)
}

/// `handle_ept_misconfig`. There are no devices on KVM's fast MMIO bus.
fn ept_misconfig(cx: &mut Cx<'_>) -> Resume {
    cx.shared.mmu_page_fault(
        &mut cx.vcpu.core,
        cx.state,
        cx.exit.gpa,
        FaultCode::new().with_rsvd(true),
        cx.host,
    )
}

/// `handle_apic_access`.
fn apic_access(cx: &mut Cx<'_>) -> Resume {
    let qualification = ApicQualification::from_bits(cx.exit.info1);
    let eoi_write = qualification.kind() == 1 && u32::from(qualification.offset()) == reg::EOI;
    if eoi_write && cx.shared.fasteoi() {
        write_apic(cx, reg::EOI, 0);
        return cx.skip();
    }
    emulate_instruction(cx, 0)
}

/// `handle_apic_write`: the instruction has completed.
fn apic_write(cx: &mut Cx<'_>) -> Resume {
    let register = (cx.exit.info1 & 0xff0) as u32;
    write_apic(cx, register, cx.exit.insn.value);
    Resume::GUEST
}

/// `kvm_apic_write_nodecode` and `kvm_lapic_set_eoi`: the register of the local APIC itself.
fn write_apic(cx: &mut Cx<'_>, register: u32, value: u64) {
    let address = (cx.vcpu.core.apic_base & !0xfff) + u64::from(register);
    let mut op = BusOp {
        space: BusSpace::KERNEL_MMIO,
        write: true,
        size: 4,
        address,
        data: value & 0xffff_ffff,
        pad: 0,
    };
    cx.host.bus(cx.vcpu.core.id, &mut op);
}

/// `handle_invlpg`, without EPT.
fn invlpg(cx: &mut Cx<'_>) -> Resume {
    let gva = cx.exit.info1;
    cx.shared.mmu.invlpg(cx.vcpu.core.id, gva, cx.host);
    cx.skip()
}

/// `handle_invpcid` and `kvm_handle_invpcid`, without EPT.
fn invpcid(cx: &mut Cx<'_>) -> Resume {
    let insn = cx.exit.insn;
    let (kind, pcid, gva) = (insn.value, insn.aux, insn.aux2);
    if !cx.vcpu.core.cpuid.has(cpuid::feature::INVPCID) {
        return cx.inject(Exception::ud());
    }
    let pcide = cx.state.cr4().pcide();
    let canonical = msr::is_canonical(gva, cx.vcpu.core.cpuid.virt_addr_bits(cx.state.cr4().la57()));
    let legal = match kind {
        0 => pcid >> 12 == 0 && canonical && (pcide || pcid == 0),
        1 => pcid >> 12 == 0 && (pcide || pcid == 0),
        2 | 3 => true,
        _ => false,
    };
    if !legal {
        return cx.inject(Exception::gp(0));
    }
    let (id, mmu) = (cx.vcpu.core.id, &mut cx.shared.mmu);
    match kind {
        0 => mmu.invlpg(id, gva, cx.host),
        1 => {
            mmu.free_roots_of_pcid(id, pcid, cx.host);
            mmu.flush_current(id, cx.host);
        }
        _ => mmu.flush_guest(id, cx.host),
    }
    cx.skip()
}
