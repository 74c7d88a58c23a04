//! What INIT does to a processor.

use vmtape_arch::{regs::Cr0, vcpu::VcpuState};

/// The state after INIT: as after RESET, but for what INIT leaves alone.
// See: SDM vol. 3A Table 10-1. IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT
pub(crate) fn init(state: &mut VcpuState) {
    let old = *state;
    *state = VcpuState {
        cr0: VcpuState::reset().cr0 & !CACHE_BITS | old.cr0 & CACHE_BITS,
        xcr0: old.xcr0,
        fpu: old.fpu,
        pat: old.pat,
        tsc_aux: old.tsc_aux,
        tsc_offset: old.tsc_offset,
        tsc_adjust: old.tsc_adjust,
        star: old.star,
        lstar: old.lstar,
        cstar: old.cstar,
        sfmask: old.sfmask,
        kernel_gs_base: old.kernel_gs_base,
        icount: old.icount,
        tsc: old.tsc,
        intercepts: old.intercepts,
        ..VcpuState::reset()
    };
}

/// CR0.CD and CR0.NW, which INIT leaves alone.
const CACHE_BITS: u64 = Cr0::new().with_cd(true).with_nw(true).into_bits();
