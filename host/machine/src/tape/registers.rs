//! The registers that a tape tells by mask: where a vCPU has them, and what an exit's handling uses.

use iced_x86::{Instruction, InstructionInfoFactory, InstructionInfoOptions};
use std::{collections::BTreeSet, ops::Range};
use vmtape_arch::{
    exit::{Exit, StimulusKind},
    level::Level,
    regs::SegAttr,
    sensitive::SensitiveKind,
    vcpu::{Interruptibility, Segment, VcpuState, gpr, seg},
    vmware,
};
use vmtape_traces::registers::{Register, numbered};

/// The general registers.
const GPRS: u32 = 0xffff;
pub(crate) const RFLAGS: u32 = Register::RFLAGS.mask();
pub(crate) const CR0: u32 = Register::CR0.mask();
pub(crate) const CR2: u32 = Register::CR2.mask();
pub(crate) const CR3: u32 = Register::CR3.mask();
pub(crate) const CR4: u32 = Register::CR4.mask();
pub(crate) const CR8: u32 = Register::CR8.mask();
pub(crate) const EFER: u32 = Register::EFER.mask();
pub(crate) const CPL: u32 = Register::CPL.mask();
pub(crate) const PKRU: u32 = Register::PKRU.mask();
pub(crate) const XCR0: u32 = Register::XCR0.mask();
pub(crate) const INTERRUPTIBILITY: u32 = Register::INTERRUPTIBILITY.mask();
pub(crate) const CS: u32 = Register::CS.mask();
pub(crate) const GDTR: u32 = Register::GDTR.mask();
pub(crate) const IDTR: u32 = Register::IDTR.mask();
pub(crate) const DR7: u32 = Register::DR7.mask();
pub(crate) const FPU: u32 = Register::FPU.mask();

/// Numbers behind the FPU's: `VcpuState::last_branch` and `last_exception`, from where and to where. Silicon writes them without an
/// exit while it records branches.
pub(crate) const LAST_BRANCH: u64 = super::fpu::COUNT as u64;
pub(crate) const LAST_EXCEPTION: u64 = LAST_BRANCH + 1;

/// The first of eight: `VcpuState::dr`, and DR6. Silicon writes them without an exit once KVM has let the guest have them.
pub(crate) const DEBUG: u64 = LAST_EXCEPTION + 1;
const DR6: u64 = 6;

/// No register: what all digests of a vCPU's changes make together.
pub(crate) const CHAIN: u64 = numbered::CHAIN;

/// The debug register with such a number.
pub(crate) fn debug(state: &mut VcpuState, number: u64) -> Option<&mut u64> {
    match number.checked_sub(DEBUG)? {
        n @ 0..4 => state.dr.get_mut(n as usize),
        DR6 => Some(&mut state.dr6),
        _ => None,
    }
}

/// The first of eight: `VcpuState::seg`, base and the hidden rest. Told where an instruction is emulated to which they matter.
pub(crate) const SEGMENT: u64 = DEBUG + 8;

/// A segment register in two words.
pub(crate) fn segment(segment: &Segment) -> [u64; 2] {
    let attr = u64::from(segment.attr.into_bits());
    [segment.base, u64::from(segment.limit) | u64::from(segment.selector) << 32 | attr << 48]
}

/// Puts a segment register into its place: the inverse of [`segment`]. Of numbers that there are not, nothing.
pub(crate) fn set_segment(state: &mut VcpuState, number: u64, [base, rest]: [u64; 2]) {
    if let Some(place) = state.seg.get_mut((number - SEGMENT) as usize) {
        let attr = SegAttr::from_bits((rest >> 48) as u16);
        *place = Segment { base, limit: rest as u32, selector: (rest >> 32) as u16, attr };
    }
}

/// The segments that an emulated instruction goes by: FS and GS in 64-bit mode, else all that it names, and that of the code.
pub(crate) fn segments_used(insn: &Instruction, state: &VcpuState) -> Vec<usize> {
    let mut info = InstructionInfoFactory::new();
    let memory = info.info_options(insn, InstructionInfoOptions::NO_REGISTER_USAGE).used_memory();
    let named = memory.iter().map(|memory| memory.segment()).filter(|segment| segment.is_segment_register());
    let code = (!state.is_64bit_code()).then_some(seg::CS);
    let first = if state.is_64bit_code() { seg::FS } else { 0 };
    let used = code.into_iter().chain(named.map(|segment| segment.number())).filter(|n| *n >= first);
    BTreeSet::from_iter(used).into_iter().collect()
}

/// What every exit's handling may look at. CR8 is the local APIC's task priority, which a guest may have changed without an
/// exit.
pub(crate) const ALWAYS: u32 = CR0 | CR3 | CR4 | CR8 | EFER | CPL | INTERRUPTIBILITY | CS;

/// The registers of the mask by position; the base of CS comes after them.
pub(crate) type Values = [u64; 32];
const CS_BASE: usize = 31;

/// Where in [`Values`] the register with a bit's number is, besides the place of that number.
pub(crate) fn more_places(number: u32) -> Range<usize> {
    if 1 << number == CS { CS_BASE..CS_BASE + 1 } else { 0..0 }
}

pub(crate) fn values(state: &VcpuState) -> Values {
    let cs = &state.seg[seg::CS];
    let mut values = Values::default();
    values[..16].copy_from_slice(&state.gpr);
    values[16..].copy_from_slice(&[
        state.rflags,
        state.cr0,
        state.cr2,
        state.cr3,
        state.cr4,
        state.cr8,
        state.efer,
        state.cpl.into(),
        state.pkru.into(),
        state.xcr0,
        state.interruptibility.into_bits().into(),
        cs.attr.into_bits().into(),
        state.gdtr.base,
        state.idtr.base,
        state.dr7,
        cs.base,
    ]);
    values
}

/// Sets the registers of a mask: the inverse of [`values`].
pub(crate) fn set(state: &mut VcpuState, mask: u32, values: &Values) {
    let mut gprs = mask & GPRS;
    while gprs != 0 {
        let n = gprs.trailing_zeros() as usize;
        gprs &= gprs - 1;
        state.gpr[n] = values[n];
    }
    let told = |bit: u32| (mask & bit != 0).then(|| values[bit.trailing_zeros() as usize]);
    let put = |register: &mut u64, bit: u32| *register = told(bit).unwrap_or(*register);
    put(&mut state.rflags, RFLAGS);
    put(&mut state.cr0, CR0);
    put(&mut state.cr2, CR2);
    put(&mut state.cr3, CR3);
    put(&mut state.cr4, CR4);
    put(&mut state.cr8, CR8);
    put(&mut state.efer, EFER);
    put(&mut state.xcr0, XCR0);
    put(&mut state.gdtr.base, GDTR);
    put(&mut state.idtr.base, IDTR);
    put(&mut state.dr7, DR7);
    let put_half =
        |register: &mut u32, bit: u32| *register = told(bit).map_or(*register, |value| value as u32);
    put_half(&mut state.cpl, CPL);
    put_half(&mut state.pkru, PKRU);
    if let Some(value) = told(INTERRUPTIBILITY) {
        state.interruptibility = Interruptibility::from_bits(value as u32);
    }
    if let Some(value) = told(CS) {
        state.seg[seg::CS].attr = SegAttr::from_bits(value as u16);
        state.seg[seg::CS].base = values[CS_BASE];
    }
}

/// What a switch between a guest and its guest keeps in memory, as far as it has a bit.
const SWITCHED: u32 = 1 << gpr::RAX | 1 << gpr::RCX | 1 << gpr::RSP | RFLAGS | CR2 | GDTR | IDTR | DR7;

/// What a call by VMware's port has in registers. See: [`crate::devices::vmport`]
pub(crate) const OF_CALL: u32 = 1 << gpr::RAX | 1 << gpr::RBX | 1 << gpr::RCX;

/// The registers that the handling of an exit reads, beyond [`ALWAYS`]. An exit of a guest's guest may become one of the guest's.
pub(crate) fn used(exit: &Exit) -> u32 {
    let saved = if exit.level == Level::L2 { SWITCHED } else { 0 };
    saved | used_in_place(exit)
}

fn used_in_place(exit: &Exit) -> u32 {
    let one = |n: usize| 1 << n;
    if exit.stimulus != StimulusKind::SENSITIVE {
        return RFLAGS | PKRU | CR2;
    }
    let insn = &exit.insn;
    match insn.kind {
        SensitiveKind::CPUID | SensitiveKind::XSETBV | SensitiveKind::WRMSR => {
            one(gpr::RAX) | one(gpr::RCX) | one(gpr::RDX)
        }
        SensitiveKind::RDMSR | SensitiveKind::RDPMC => one(gpr::RCX),
        SensitiveKind::CR_WRITE
        | SensitiveKind::CR_READ
        | SensitiveKind::DR_WRITE
        | SensitiveKind::DR_READ => one(insn.gpr.into()) | CR8 | DR7,
        SensitiveKind::IN | SensitiveKind::OUT if insn.number == u32::from(vmware::PORT) => OF_CALL,
        SensitiveKind::IN | SensitiveKind::OUT => one(gpr::RAX),
        SensitiveKind::INS | SensitiveKind::OUTS => one(gpr::RCX) | one(gpr::RSI) | one(gpr::RDI) | RFLAGS,
        SensitiveKind::VMCALL | SensitiveKind::VMMCALL => {
            one(gpr::RAX) | one(gpr::RBX) | one(gpr::RCX) | one(gpr::RDX) | one(gpr::RSI)
        }
        SensitiveKind::HLT | SensitiveKind::INTERRUPT_WINDOW | SensitiveKind::NMI_WINDOW => RFLAGS,
        SensitiveKind::GDTR_IDTR | SensitiveKind::LDTR_TR => GDTR | IDTR,
        SensitiveKind::SVM => SWITCHED,
        SensitiveKind::APIC_READ | SensitiveKind::APIC_WRITE => CR8,
        _ => RFLAGS | XCR0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_can_be_set_as_they_are_told() {
        let mut state = VcpuState::reset();
        let wanted = Segment {
            base: 0x1234_5678_9abc,
            limit: 0xffff_ffff,
            selector: 0x2b,
            attr: SegAttr::new().with_typ(3).with_present(true).with_db(true),
        };
        set_segment(&mut state, SEGMENT + seg::GS as u64, segment(&wanted));
        assert_eq!(state.seg[seg::GS], wanted);
        set_segment(&mut state, SEGMENT + 8, segment(&wanted));
    }

    #[test]
    fn what_is_read_by_mask_can_be_set_by_it() {
        let wanted: Values = std::array::from_fn(|n| 3 + n as u64);
        let mut state = VcpuState::reset();
        set(&mut state, !FPU, &wanted);
        assert_eq!(values(&state), wanted);
    }
}
