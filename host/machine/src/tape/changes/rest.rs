//! Registers beside the general ones.

use crate::tape::registers;
use vmtape_arch::vcpu::VcpuState;

/// Whether anything differs but general registers, RIP, the FPU, clocks, and what backends publish.
#[inline]
pub(super) fn differs(a: &VcpuState, b: &VcpuState) -> bool {
    let controls = (a.rflags ^ b.rflags)
        | (a.cr0 ^ b.cr0)
        | (a.cr2 ^ b.cr2)
        | (a.cr3 ^ b.cr3)
        | (a.cr4 ^ b.cr4)
        | (a.cr8 ^ b.cr8)
        | (a.xcr0 ^ b.xcr0)
        | (a.efer ^ b.efer)
        | (a.dr7 ^ b.dr7)
        | u64::from(a.cpl ^ b.cpl)
        | u64::from(a.interruptibility.into_bits() ^ b.interruptibility.into_bits());
    let words = words(a).iter().zip(&words(b)).fold(0, |differ, (a, b)| differ | (a ^ b));
    (controls | words) != 0
}

/// Two words of a segment, and the others.
const WORDS: usize = 2 * 8 + 4 + 4 + 13 + 8;

/// Where the words begin that only chained digests have, and what is special about the first one.
pub(super) const LATER: usize = WORDS - 8;
pub(super) const DR6: usize = LATER;

/// What only the guest changes, but for the instructions of `sets_system_registers`: segments, tables, debug registers, MSRs.
#[inline(always)]
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
