//! Registers beside the general ones.

use crate::tape::registers;
use vmtape_arch::vcpu::VcpuState;

/// Whether anything differs but general registers, RIP, the FPU, clocks, and what backends publish.
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
        | u64::from(a.pkru ^ b.pkru)
        | u64::from(a.cpl ^ b.cpl)
        | u64::from(a.interruptibility.into_bits() ^ b.interruptibility.into_bits());
    controls != 0 || words_differ(a, b)
}

/// Whether [`words`] differ: asked twice per exit, and nearly always it does not.
#[inline(always)]
fn words_differ(a: &VcpuState, b: &VcpuState) -> bool {
    let tables = (a.gdtr.base ^ b.gdtr.base)
        | (a.idtr.base ^ b.idtr.base)
        | u64::from((a.gdtr.limit ^ b.gdtr.limit) | (a.idtr.limit ^ b.idtr.limit));
    let msrs = (a.sysenter_cs ^ b.sysenter_cs)
        | (a.sysenter_esp ^ b.sysenter_esp)
        | (a.sysenter_eip ^ b.sysenter_eip)
        | (a.star ^ b.star)
        | (a.lstar ^ b.lstar)
        | (a.cstar ^ b.cstar)
        | (a.sfmask ^ b.sfmask)
        | (a.kernel_gs_base ^ b.kernel_gs_base)
        | (a.tsc_aux ^ b.tsc_aux)
        | (a.pat ^ b.pat)
        | (a.xss ^ b.xss)
        | (a.tsc_adjust ^ b.tsc_adjust);
    let segments = a.seg.iter().zip(&b.seg).fold(0, |differ, (a, b)| {
        differ
            | (a.base ^ b.base)
            | u64::from(a.limit ^ b.limit)
            | u64::from((a.selector ^ b.selector) | (a.attr.into_bits() ^ b.attr.into_bits()))
    });
    (tables | msrs | segments) != 0 || a.dr != b.dr
}

const WORDS: usize = 2 * 8 + 4 + 4 + 13;

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
    ]);
    words
}
