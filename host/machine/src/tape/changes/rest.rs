//! Registers beside the general ones.

use crate::tape::registers;
use std::{mem::offset_of, ops::Range};
use vmtape_arch::{fpu::Fpu, vcpu::VcpuState};
use zerocopy::IntoBytes;

/// Where in a state those registers begin of which [`words`] and the rule's masks have some, and where they end: behind the general
/// ones and RIP, before the clocks and what backends publish.
const REGISTERS: Range<usize> = offset_of!(VcpuState, rflags)..offset_of!(VcpuState, icount);
const FPU: Range<usize> = offset_of!(VcpuState, fpu)..offset_of!(VcpuState, fpu) + size_of::<Fpu>();

/// Whether anything differs but general registers, RIP, the FPU, clocks, and what backends publish: all at one look, since after most
/// exits nothing does.
pub(super) fn differs(a: &VcpuState, b: &VcpuState) -> bool {
    a.as_bytes()[REGISTERS] != b.as_bytes()[REGISTERS]
}

/// Whether a register of the FPU differs.
pub(super) fn fpu_differs(a: &VcpuState, b: &VcpuState) -> bool {
    a.as_bytes()[FPU] != b.as_bytes()[FPU]
}

/// Two words of a segment, and the others.
const WORDS: usize = 2 * 8 + 4 + 4 + 13 + 8;

/// Where the words begin that only chained digests have, and what is special about the first one.
pub(super) const LATER: usize = WORDS - 8;
pub(super) const DR6: usize = LATER;

/// What only the guest changes, but for the instructions of `sets_system_registers`: segments, tables, debug registers, MSRs.
pub(super) fn words(state: &VcpuState) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (pair, segment) in words.chunks_exact_mut(2).zip(&state.seg) {
        pair.copy_from_slice(&registers::segment(segment));
    }
    words[16..].copy_from_slice(&[
        state.gdtr.base,
        state.gdtr.limit.into(),
        state.idtr.base,
        state.idtr.limit.into(),
        state.dr[0],
        state.dr[1],
        state.dr[2],
        state.dr[3],
        state.sysenter_cs,
        state.sysenter_esp,
        state.sysenter_eip,
        state.star,
        state.lstar,
        state.cstar,
        state.sfmask,
        state.kernel_gs_base,
        state.tsc_aux,
        state.pat,
        state.xss,
        state.tsc_adjust,
        state.pkru.into(),
        state.dr6,
        state.pdptr[0],
        state.pdptr[1],
        state.pdptr[2],
        state.pdptr[3],
        state.spec_ctrl,
        state.debugctl,
        state.tsc_offset,
    ]);
    words
}
