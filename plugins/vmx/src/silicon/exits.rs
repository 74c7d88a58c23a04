//! Exits: reasons and qualifications for instructions, exceptions and EPT.
//!
//! See: SDM vol. 3C 28.2.1 Basic VM-Exit Information

use vmtape_arch::{
    access::Access,
    event::EventKind,
    exception::{Exception, Vector},
    exit::{Exit, Isa, StimulusKind, VmxReason},
    qualification::{ApicQualification, CrQualification, DrQualification, IoQualification},
    sensitive::{Sensitive, SensitiveKind},
    vcpu::VcpuState,
};
use vmtape_kvm_mmu::tdp::silicon::{NestedFault, NestedStop};

/// The parts that all exits share. The event in delivery goes along whatever the stimulus: its error code and
/// instruction length are fields of the VMCS too.
fn base(reason: VmxReason, state: &VcpuState, stimulus: StimulusKind) -> Exit {
    let access = Access { delivering: state.delivering, ..Default::default() };
    let info2 = state.delivering.vmx_info().into();
    Exit { isa: Isa::VMX, reason: reason.0, info2, stimulus, access, ..Default::default() }
}

/// The exit for an EPT fault in the middle of an access.
pub fn ept(stop: &NestedStop, advanced: bool, state: &VcpuState, access: &Access) -> Exit {
    let (reason, info1) = match stop.fault {
        NestedFault::Misconfiguration => (VmxReason::EPT_MISCONFIG, 0),
        NestedFault::LogFull => (VmxReason::PML_FULL, 0),
        _ => (VmxReason::EPT_VIOLATION, stop.qualification(advanced).into_bits()),
    };
    let access = Access { delivering: state.delivering, ..*access };
    Exit { info1, gpa: stop.gpa, gva: access.gva, access, ..base(reason, state, StimulusKind::ACCESS) }
}

/// The exit for an exception. See: SDM vol. 3C 28.2.2 Information for VM Exits Due to Vectored Events
pub fn exception(exception: &Exception, state: &VcpuState) -> Exit {
    let kind = match exception.vector {
        Vector::BP | Vector::OF => EventKind::SOFTWARE_EXCEPTION,
        Vector::DB if exception.insn_len != 0 => EventKind::PRIVILEGED_SOFTWARE_EXCEPTION,
        _ => EventKind::HARDWARE_EXCEPTION,
    };
    let info = vmtape_arch::event::Event {
        valid: true.into(),
        kind,
        vector: exception.vector.0,
        has_error_code: exception.has_error_code,
        ..Default::default()
    };
    Exit {
        info1: exception.payload,
        intr_info: info.vmx_info(),
        error_code: exception.error_code,
        gva: if exception.vector == Vector::PF { exception.payload } else { 0 },
        exception: *exception,
        ..base(VmxReason::EXCEPTION_NMI, state, StimulusKind::EXCEPTION)
    }
}

/// The exit for an NMI of the host's.
pub fn host_nmi(state: &VcpuState) -> Exit {
    let exception = Exception::new(Vector::NMI);
    let info = vmtape_arch::event::Event {
        valid: true.into(),
        kind: EventKind::NMI,
        vector: Vector::NMI.0,
        ..Default::default()
    };
    let base = base(VmxReason::EXCEPTION_NMI, state, StimulusKind::HOST);
    Exit { intr_info: info.vmx_info(), exception, ..base }
}

/// The exit for an instruction or condition.
pub fn instruction(insn: &Sensitive, state: &VcpuState) -> Exit {
    use SensitiveKind as K;
    // Only the fields that an instruction has are meaningful, so each qualification is built where it is needed.
    let cr = |kind| {
        CrQualification::new().with_number(insn.number as u8 & 0xf).with_kind(kind).with_gpr(insn.gpr & 0xf)
    };
    let io = || {
        IoQualification::new()
            .with_size_minus_one(insn.size.wrapping_sub(1) & 7)
            .with_input(matches!(insn.kind, K::IN | K::INS))
            .with_string(matches!(insn.kind, K::INS | K::OUTS))
            .with_rep(insn.rep.is_set())
            .with_immediate(insn.immediate.is_set())
            .with_port(insn.number as u16)
    };
    let dr = || DrQualification::new().with_number(insn.number as u8 & 7).with_gpr(insn.gpr & 0xf);
    let apic = || ApicQualification::new().with_offset(insn.number as u16 & 0xfff);
    let (reason, info1) = match insn.kind {
        K::CPUID => (VmxReason::CPUID, 0),
        K::RDMSR => (VmxReason::MSR_READ, 0),
        K::WRMSR => (VmxReason::MSR_WRITE, 0),
        K::CR_WRITE => (VmxReason::CR_ACCESS, cr(0).into_bits()),
        K::CR_READ => (VmxReason::CR_ACCESS, cr(1).into_bits()),
        K::LMSW => {
            let lmsw = CrQualification::new().with_kind(3).with_lmsw_memory(insn.memory.is_set());
            (VmxReason::CR_ACCESS, lmsw.with_lmsw_source(insn.value as u16).into_bits())
        }
        K::DR_WRITE => (VmxReason::DR_ACCESS, dr().into_bits()),
        K::DR_READ => (VmxReason::DR_ACCESS, dr().with_read(true).into_bits()),
        K::INVLPG => (VmxReason::INVLPG, insn.address),
        K::INVPCID => (VmxReason::INVPCID, 0),
        K::HLT => (VmxReason::HLT, 0),
        K::IN | K::OUT | K::INS | K::OUTS => (VmxReason::IO_INSTRUCTION, io().into_bits()),
        K::RDPMC => (VmxReason::RDPMC, 0),
        K::WBINVD => (VmxReason::WBINVD, 0),
        K::INVD => (VmxReason::INVD, 0),
        K::MONITOR => (VmxReason::MONITOR_INSTRUCTION, 0),
        K::MWAIT => (VmxReason::MWAIT_INSTRUCTION, 0),
        K::VMCALL => (VmxReason::VMCALL, 0),
        K::XSETBV => (VmxReason::XSETBV, 0),
        K::VMX => (vmx_instruction(&insn.bytes), 0),
        K::RDRAND => (VmxReason::RDRAND, 0),
        K::RDSEED => (VmxReason::RDSEED, 0),
        K::TASK_SWITCH => (VmxReason::TASK_SWITCH, insn.number.into()),
        K::INTERRUPT_WINDOW => (VmxReason::INTERRUPT_WINDOW, 0),
        K::NMI_WINDOW => (VmxReason::NMI_WINDOW, 0),
        // The VMX-preemption timer, at zero.
        K::IMMEDIATE_EXIT => (VmxReason::PREEMPTION_TIMER, 0),
        K::APIC_READ => (VmxReason::APIC_ACCESS, apic().into_bits()),
        K::APIC_WRITE => (VmxReason::APIC_ACCESS, apic().with_kind(1).into_bits()),
        _ => (VmxReason::TRIPLE_FAULT, 0),
    };
    let mut exit =
        Exit { info1, insn: *insn, gva: insn.address, ..base(reason, state, StimulusKind::SENSITIVE) };
    if reason == VmxReason::TRIPLE_FAULT {
        // It counts as no exit during event delivery. See: SDM vol. 3C 28.2.4 Information for VM Exits During Event Delivery
        (exit.info2, exit.access.delivering) = (0, Default::default());
    }
    exit
}

/// An APIC-write exit: the instruction completes first. See: SDM vol. 3C 30.4.3.3 APIC-Write VM Exits
pub fn apic_write(insn: &Sensitive, state: &VcpuState) -> Exit {
    let info1 = ApicQualification::new().with_offset(insn.number as u16 & 0xfff).into_bits();
    Exit {
        info1,
        insn: *insn,
        trap: true.into(),
        ..base(VmxReason::APIC_WRITE, state, StimulusKind::SENSITIVE)
    }
}

/// An EOI-induced exit: silicon has ended the interrupt. See: SDM vol. 3C 30.1.4 EOI Virtualization
pub fn eoi_induced(insn: &Sensitive, vector: u8, state: &VcpuState) -> Exit {
    let base = base(VmxReason::EOI_INDUCED, state, StimulusKind::SENSITIVE);
    Exit { info1: vector.into(), insn: *insn, trap: true.into(), ..base }
}

/// Which of Intel's nested instructions the bytes are. See: SDM vol. 3D chapter 31 VMX Instruction Reference
fn vmx_instruction(bytes: &[u8]) -> VmxReason {
    let is_prefix = |b: &u8| matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf2 | 0xf3);
    let start = bytes.iter().position(|b| !is_prefix(b)).unwrap_or(bytes.len());
    let has = |prefix: u8| bytes[..start].contains(&prefix);
    match bytes[start..] {
        [0x0f, 0x01, 0xc1, ..] => VmxReason::VMCALL,
        [0x0f, 0x01, 0xc2, ..] => VmxReason::VMLAUNCH,
        [0x0f, 0x01, 0xc3, ..] => VmxReason::VMRESUME,
        [0x0f, 0x01, 0xc4, ..] => VmxReason::VMOFF,
        [0x0f, 0x01, 0xd4, ..] => VmxReason::VMFUNC,
        [0x0f, 0x78, ..] => VmxReason::VMREAD,
        [0x0f, 0x79, ..] => VmxReason::VMWRITE,
        [0x0f, 0x38, 0x80, ..] => VmxReason::INVEPT,
        [0x0f, 0x38, 0x81, ..] => VmxReason::INVVPID,
        [0x0f, 0xc7, modrm, ..] if modrm >> 3 & 7 == 7 => VmxReason::VMPTRST,
        [0x0f, 0xc7, ..] if has(0xf3) => VmxReason::VMON,
        [0x0f, 0xc7, ..] if has(0x66) => VmxReason::VMCLEAR,
        _ => VmxReason::VMPTRLD,
    }
}
