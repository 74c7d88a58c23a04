//! Exit handlers: one table from reason to function, as `kvm_vmx_exit_handlers`.
//!
//! See: KVM arch/x86/kvm/vmx/vmx.c

use super::{faults::*, registers::*, setup};
use crate::{
    rules::Rule,
    vm::{Shared, VmxVcpu},
};
use vmtape_abi::Host;
use vmtape_arch::{
    exception::Exception,
    exit::{Exit, Resume, ResumeKind, VmxReason},
    note::Note,
    qualification::IoQualification,
    vcpu::VcpuState,
};
use vmtape_kvm_core::{
    cpuid, cr,
    emulate::{self, DELIVERY_WORDS},
    hypercall, io, pmu,
    profile::Switch,
};

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
    put(&mut t, R::EOI_INDUCED, apic_eoi_induced);
    put(&mut t, R::EPT_VIOLATION, ept_violation);
    put(&mut t, R::EPT_MISCONFIG, ept_misconfig);
    put(&mut t, R::PREEMPTION_TIMER, preemption_timer);
    put(&mut t, R::PML_FULL, pml_full);
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
    cx.vcpu.core.vectoring = delivering.valid.is_set();
    if delivering.valid.is_set() {
        cx.note(Rule::EVENT_REINJECTED.note());
        let checked = cx.shared.kvm.options.on(Switch::EVENT_VECTORING_CHECKED);
        if !may_interrupt_delivery(reason, checked) {
            return delivery_error(cx, reason, checked);
        }
    }
    match TABLE.get(reason.0 as usize).copied().flatten() {
        Some(handler) => handler(cx),
        None => not_modelled(cx),
    }
}

/// Exits that may interrupt the delivery of an event. MMIO is not among them, as it would come back for ever, unless the
/// emulator is `checked` for that.
/// See: KVM vmx/vmx.c __vmx_handle_exit()
fn may_interrupt_delivery(reason: VmxReason, checked: bool) -> bool {
    use VmxReason as R;
    let fixed = matches!(
        reason,
        R::EXCEPTION_NMI | R::EPT_VIOLATION | R::PML_FULL | R::APIC_ACCESS | R::TASK_SWITCH | R::NOTIFY
    );
    fixed || checked && reason == R::EPT_MISCONFIG
}

/// INVALID_GPA: the exit has no address.
const INVALID_GPA: u64 = u64::MAX;

fn delivery_error(cx: &mut Cx<'_>, reason: VmxReason, checked: bool) -> Resume {
    let cpu = cx.vcpu.core.last_vmentry_cpu as u64;
    let (ndata, last) = match (checked, reason) {
        (true, _) => (DELIVERY_WORDS, INVALID_GPA),
        (false, VmxReason::EPT_MISCONFIG) => (DELIVERY_WORDS, cx.exit.gpa),
        // Without an address the CPU comes in its place.
        (false, _) => (DELIVERY_WORDS - 1, cpu),
    };
    let words = [cx.exit.info2, cx.exit.reason.into(), cx.exit.info1, last];
    emulate::delivery_error(cx.vcpu.core.tracer(), ndata, words, cx.host)
}

impl Cx<'_> {
    pub fn skip(&mut self) -> Resume {
        self.vcpu.core.skip(self.state, self.exit.insn.len);
        Resume::GUEST
    }

    pub fn inject(&mut self, exception: Exception) -> Resume {
        self.vcpu.core.inject(self.state, &exception);
        Resume::GUEST
    }

    /// `kvm_complete_insn_gp`: the exception, or past the instruction.
    pub fn complete(&mut self, result: Result<(), Exception>) -> Resume {
        match result {
            Ok(()) => self.skip(),
            Err(exception) => self.inject(exception),
        }
    }

    pub fn note(&mut self, note: Note) {
        self.vcpu.core.note(note, self.host);
    }

    pub fn userspace(&mut self, kind: ResumeKind) {
        self.note(Note::UserspaceExit { reason: kind.0, errno: 0 });
    }

    /// `kvm_emulate_instruction`.
    pub fn emulate(&mut self, flags: u32) -> Resume {
        self.shared.kvm.emulate(&mut self.vcpu.core, self.state, flags, self.host)
    }

    /// Does what a control-register write asks of the MMU and the TLB.
    pub fn apply(&mut self, result: cr::Outcome) -> Result<(), Exception> {
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
    let controls = cx.vcpu.vmcs01.cpu_based();
    cx.vcpu.vmcs01.set_cpu_based(controls.with_interrupt_window_exiting(false));
    Resume::GUEST
}

fn nmi_window(cx: &mut Cx<'_>) -> Resume {
    let controls = cx.vcpu.vmcs01.cpu_based();
    cx.vcpu.vmcs01.set_cpu_based(controls.with_nmi_window_exiting(false));
    Resume::GUEST
}

/// `handle_preemption_timer`: it was asked for, to be out of the guest at once.
fn preemption_timer(_cx: &mut Cx<'_>) -> Resume {
    Resume::GUEST
}

fn cpuid_exit(cx: &mut Cx<'_>) -> Resume {
    cpuid::emulate(&cx.vcpu.core, cx.state, cx.host);
    cx.skip()
}

fn hlt(cx: &mut Cx<'_>) -> Resume {
    io::halt(&mut cx.vcpu.core, cx.state, cx.exit.insn.len)
}

fn vmcall(cx: &mut Cx<'_>) -> Resume {
    hypercall::hypercall(&mut cx.shared.kvm, &mut cx.vcpu.core, cx.state, cx.exit.insn.len, cx.host)
}

fn rdpmc(cx: &mut Cx<'_>) -> Resume {
    let read = pmu::rdpmc(cx.shared.kvm.silicon.vendor, &cx.vcpu.core, cx.state);
    cx.complete(read)
}

fn invalid_opcode(cx: &mut Cx<'_>) -> Resume {
    cx.inject(Exception::ud())
}

/// VMX is hidden from guests, and without VMXON all its instructions are #UD. A guest whose CPUID has it anyway meets the
/// end of this model where VMXON would succeed. See: KVM vmx/nested.c handle_vmxon(), nested_vmx_check_permission()
fn vmx_instruction(cx: &mut Cx<'_>) -> Resume {
    let vmxon = VmxReason(cx.exit.reason) == VmxReason::VMON;
    if vmxon && cx.vcpu.core.cpuid.has(cpuid::feature::VMX) && cx.state.cr4().vmxe() {
        return not_modelled(cx);
    }
    cx.inject(Exception::ud())
}

/// `handle_io`.
fn io_instruction(cx: &mut Cx<'_>) -> Resume {
    let qualification = IoQualification::from_bits(cx.exit.info1);
    if qualification.string() {
        return cx.emulate(0);
    }
    let pio = io::Pio {
        port: qualification.port(),
        size: qualification.size_minus_one() + 1,
        input: qualification.input(),
        insn_len: cx.exit.insn.len,
    };
    io::fast_pio(&mut cx.vcpu.core, cx.state, &pio, cx.host)
}
