//! Exits: codes, EXITINFO1 and EXITINFO2.
//!
//! See: APM 15.7 #VMEXIT, appendix C SVM Intercept Exit Codes

use super::vmcb::{EventInfo, InterceptVector};
use bitfield_struct::bitfield;
use vmtape_arch::{
    access::Access,
    exception::{Exception, Vector},
    exit::{Exit, Isa, StimulusKind, SvmExitCode},
    regs::Cr0,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::VcpuState,
};
use vmtape_kvm_core::cr;
use vmtape_kvm_mmu::tdp::silicon::NestedStop;

/// EXITINFO1 of an I/O instruction. See: APM 15.10.2 IN and OUT Behavior, Figure 15-2
#[bitfield(u64)]
pub struct IoInfo {
    pub input: bool,
    __: bool,
    pub string: bool,
    pub rep: bool,
    /// Operand size in bytes, one-hot.
    #[bits(3)]
    pub size: u8,
    /// Address size in units of two bytes, one-hot.
    #[bits(3)]
    pub address_size: u8,
    #[bits(3)]
    pub segment: u8,
    #[bits(3)]
    __: u8,
    pub port: u16,
    __: u32,
}

/// EXITINFO1 of MOV CR and MOV DR with decode assists. See: APM 15.8.4 Decode Assists
#[bitfield(u64)]
pub struct MovInfo {
    #[bits(4)]
    pub gpr: u8,
    #[bits(59)]
    __: u64,
    pub is_mov: bool,
}

/// The parts that all exits share.
fn base(code: SvmExitCode, state: &VcpuState, stimulus: StimulusKind) -> Exit {
    let delivering = state.delivering;
    let error = delivering.valid.is_set() && delivering.has_error_code.is_set();
    Exit {
        isa: Isa::SVM,
        reason: code.0,
        intr_info: EventInfo::from(&delivering).into_bits(),
        error_code: if error { delivering.error_code } else { 0 },
        access: Access { delivering, ..Default::default() },
        stimulus,
        ..Default::default()
    }
}

/// The exit for a nested page fault.
pub fn nested(stop: &NestedStop, state: &VcpuState, access: &Access) -> Exit {
    Exit {
        info1: stop.npf_info().into_bits(),
        info2: stop.gpa,
        gpa: stop.gpa,
        access: Access { delivering: state.delivering, ..*access },
        ..base(SvmExitCode::NPF, state, StimulusKind::ACCESS)
    }
}

/// The exit for an exception; a page fault's carries its address.
pub fn exception(exception: &Exception, state: &VcpuState) -> Exit {
    let page_fault = exception.vector == Vector::PF;
    let address = if page_fault { exception.payload } else { 0 };
    Exit {
        info1: if exception.has_error_code.is_set() { exception.error_code.into() } else { 0 },
        info2: address,
        gva: address,
        exception: *exception,
        ..base(exception_code(exception.vector), state, StimulusKind::EXCEPTION)
    }
}

/// The code of an exception's exit, and its bit.
pub fn exception_code(vector: Vector) -> SvmExitCode {
    SvmExitCode(SvmExitCode::EXCP_DE.0 + u32::from(vector.0))
}

/// The exit of an instruction that writes this to CR0. What changes no more than TS and MP is free of the selective intercept,
/// but for LMSW (`always`). See: APM 15.9 Instruction Intercepts, CR0 write and selective CR0 write
fn cr0_write(old: Cr0, new: Cr0, always: bool, vectors: &InterceptVector) -> Option<SvmExitCode> {
    let changes = always || old != new.with_ts(old.ts()).with_mp(old.mp());
    match () {
        () if vectors.has(SvmExitCode::WRITE_CR0) => Some(SvmExitCode::WRITE_CR0),
        () if changes => Some(SvmExitCode::CR0_SEL_WRITE),
        () => None,
    }
}

/// The exit for an NMI of the host's.
pub fn host_nmi(state: &VcpuState) -> Exit {
    base(SvmExitCode::NMI, state, StimulusKind::HOST)
}

/// The exit for an interrupt of the host's.
pub fn physical_interrupt(state: &VcpuState) -> Exit {
    base(SvmExitCode::INTR, state, StimulusKind::HOST)
}

fn one_hot(bytes: u8) -> u8 {
    bytes & 7
}

/// The exit for an instruction or condition, if the vectors ask for one. `decode_assists`: silicon describes the operand.
pub fn instruction(
    insn: &Sensitive,
    state: &VcpuState,
    vectors: &InterceptVector,
    decode_assists: bool,
) -> Option<Exit> {
    use SensitiveKind as K;
    use SvmExitCode as C;
    let number = insn.number;
    let (code, info1, info2) = match insn.kind {
        K::CPUID => (C::CPUID, 0, 0),
        K::RDMSR => (C::MSR, 0, 0),
        K::WRMSR => (C::MSR, 1, 0),
        K::CR_WRITE if number == 0 => {
            let code = cr0_write(state.cr0(), Cr0::from_bits(insn.value), false, vectors)?;
            (code, mov_info(insn, true, decode_assists), 0)
        }
        K::CR_WRITE => (SvmExitCode(C::WRITE_CR0.0 + number), mov_info(insn, true, decode_assists), 0),
        K::CLTS => (cr0_write(state.cr0(), state.cr0().with_ts(false), false, vectors)?, 0, 0),
        K::LMSW => {
            let new = Cr0::from_bits(cr::lmsw(state.cr0, insn.value));
            (cr0_write(state.cr0(), new, true, vectors)?, 0, 0)
        }
        K::CR_READ | K::SMSW => {
            (SvmExitCode(C::READ_CR0.0 + number), mov_info(insn, insn.kind == K::CR_READ, decode_assists), 0)
        }
        K::DR_WRITE => (SvmExitCode(C::WRITE_DR0.0 + number), mov_info(insn, true, decode_assists), 0),
        K::DR_READ => (SvmExitCode(C::READ_DR0.0 + number), mov_info(insn, true, decode_assists), 0),
        K::INVLPG => (C::INVLPG, if decode_assists { insn.address } else { 0 }, 0),
        K::INVPCID => (C::INVPCID, insn.value, insn.address),
        K::HLT => (C::HLT, 0, 0),
        K::IN | K::OUT | K::INS | K::OUTS => {
            (C::IOIO, io_info(insn), state.rip.wrapping_add(insn.len.into()))
        }
        K::RDTSC => (C::RDTSC, 0, 0),
        K::PUSHF => (C::PUSHF, 0, 0),
        K::POPF => (C::POPF, 0, 0),
        K::INTN => (C::SWINT, if decode_assists { number.into() } else { 0 }, 0),
        K::ICEBP => (C::ICEBP, 0, 0),
        K::RDTSCP => (C::RDTSCP, 0, 0),
        K::RDPMC => (C::RDPMC, 0, 0),
        K::WBINVD => (C::WBINVD, 0, 0),
        K::INVD => (C::INVD, 0, 0),
        K::MONITOR => (C::MONITOR, 0, 0),
        K::MWAIT => (C::MWAIT, 0, 0),
        K::PAUSE => (C::PAUSE, 0, 0),
        K::VMMCALL => (C::VMMCALL, 0, 0),
        K::XSETBV => (C::XSETBV, 0, 0),
        K::RDPRU => (C::RDPRU, 0, 0),
        K::RSM => (C::RSM, 0, 0),
        K::IRET => (C::IRET, 0, 0),
        K::SVM => (svm_code(number)?, 0, 0),
        K::TASK_SWITCH => (C::TASK_SWITCH, insn.value, insn.aux),
        K::INTERRUPT_WINDOW => (C::VINTR, 0, 0),
        // A physical interrupt that was pending at VMRUN.
        K::IMMEDIATE_EXIT => (C::INTR, 0, 0),
        // KVM steps over what holds NMIs back with RFLAGS.TF. See: KVM svm/svm.c svm_enable_nmi_window()
        K::NMI_WINDOW => (C::EXCP_DB, 0, 0),
        K::TRIPLE_FAULT => (C::SHUTDOWN, 0, 0),
        K::GDTR_IDTR | K::LDTR_TR => (table_code(insn), 0, 0),
        _ => return None,
    };
    if !vectors.has(code) {
        return None;
    }
    Some(Exit { info1, info2, insn: *insn, ..base(code, state, StimulusKind::SENSITIVE) })
}

fn mov_info(insn: &Sensitive, is_mov: bool, decode_assists: bool) -> u64 {
    if !decode_assists || !is_mov {
        return 0;
    }
    MovInfo::new().with_gpr(insn.gpr).with_is_mov(true).into_bits()
}

fn io_info(insn: &Sensitive) -> u64 {
    let string = matches!(insn.kind, SensitiveKind::INS | SensitiveKind::OUTS);
    let info = IoInfo::new()
        .with_input(matches!(insn.kind, SensitiveKind::IN | SensitiveKind::INS))
        .with_string(string)
        .with_rep(insn.rep.is_set())
        .with_size(one_hot(insn.size))
        .with_port(insn.number as u16);
    if !string {
        return info.into_bits();
    }
    info.with_address_size(one_hot(insn.address_size / 2)).with_segment(insn.segment).into_bits()
}

/// Reads and writes of GDTR, IDTR, LDTR and TR.
pub fn table_code(insn: &Sensitive) -> SvmExitCode {
    use SvmExitCode as C;
    match (insn.kind, insn.number, insn.value) {
        (SensitiveKind::GDTR_IDTR, 0, 0) => C::GDTR_READ,
        (SensitiveKind::GDTR_IDTR, 0, _) => C::GDTR_WRITE,
        (SensitiveKind::GDTR_IDTR, _, 0) => C::IDTR_READ,
        (SensitiveKind::GDTR_IDTR, ..) => C::IDTR_WRITE,
        (_, 0, 0) => C::LDTR_READ,
        (_, 0, _) => C::LDTR_WRITE,
        (.., 0) => C::TR_READ,
        _ => C::TR_WRITE,
    }
}

/// Nested SVM's instructions by the last byte of their opcode.
pub fn svm_code(number: u32) -> Option<SvmExitCode> {
    use SvmExitCode as C;
    Some(match number {
        0xd8 => C::VMRUN,
        0xda => C::VMLOAD,
        0xdb => C::VMSAVE,
        0xdc => C::STGI,
        0xdd => C::CLGI,
        0xde => C::SKINIT,
        0xdf => C::INVLPGA,
        _ => return None,
    })
}
