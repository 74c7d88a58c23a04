//! What a guest got from what surrounds it, as a number: the same under every backend, for as long as they treat it alike.
//!
//! Registers and memory at the end of a run do not tell what was there in between. Memory has a digest of its own
//! ([`vmtape_cpu::Ram::changes`]). Registers follow from memory but for what the guest's surroundings give it: so the
//! digest has them after every sensitive instruction, whether silicon or the backend executed it, and after every event.

use vmtape_arch::vcpu::VcpuState;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The digest so far: a sum, so that the order at one instruction does not matter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcomes {
    sum: u64,
    kept: bool,
}

impl Outcomes {
    /// Somebody wants them.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }

    /// A vCPU has got something.
    pub(crate) fn add(&mut self, vcpu: u32, state: &VcpuState) {
        if self.kept {
            self.sum = self.sum.wrapping_add(hash(vcpu, state));
        }
    }

    pub(crate) fn sum(&self) -> u64 {
        self.sum
    }
}

/// Registers that every backend has alike between two instructions. Vector registers are left to memory: nothing that
/// has an outcome changes them.
fn hash(vcpu: u32, state: &VcpuState) -> u64 {
    const SEGMENTS: usize = 8;
    let s = state;
    let singles = [
        s.rip,
        s.rflags,
        s.icount,
        s.cr0,
        s.cr2,
        s.cr3,
        s.cr4,
        s.cr8,
        s.xcr0,
        s.efer,
        s.dr6,
        s.dr7,
        s.sysenter_cs,
        s.sysenter_esp,
        s.sysenter_eip,
        s.star,
        s.lstar,
        s.cstar,
        s.sfmask,
        s.kernel_gs_base,
        s.tsc_aux,
        s.pat,
        s.xss,
        s.spec_ctrl,
        s.debugctl,
        s.tsc_offset,
        s.tsc_adjust,
        s.pkru.into(),
        s.cpl.into(),
        s.gdtr.base,
        s.gdtr.limit.into(),
        s.idtr.base,
        s.idtr.limit.into(),
    ];
    const WORDS: usize = 16 + 4 + 33 + 2 * SEGMENTS;
    let segments = s.seg.iter().flat_map(|segment| {
        let attr = u64::from(segment.attr.into_bits());
        [segment.base, attr << 48 | u64::from(segment.selector) << 32 | u64::from(segment.limit)]
    });
    let words = s.gpr.into_iter().chain(s.dr).chain(singles).chain(segments);
    let mut bytes = [0; 8 * WORDS];
    for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *to = word.to_le_bytes();
    }
    xxh3_64_with_seed(&bytes, vcpu.into())
}
