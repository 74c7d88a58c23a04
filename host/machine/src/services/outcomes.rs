//! What a guest got from what surrounds it, as a number: the same under every backend, for as long as they treat it alike.
//!
//! Registers and memory at the end of a run do not tell what was there in between. Memory has a digest of its own
//! ([`vmtape_cpu::Ram::changes`]). Registers follow from memory but for what the guest's surroundings give it: so the
//! digest has them after every sensitive instruction, whether silicon or the backend executed it, and after every event.
//!
//! Any other instruction may leave the guest too, and KVM's emulator may make something else of it than silicon. So the digest
//! has the registers, those of the FPU among them, after each instruction that left the guest (it is *sampled* there). Another
//! machine, whose silicon may execute the same instruction, is told to sample it too.

use crate::tape::fpu;
use std::collections::VecDeque;
use vmtape_arch::vcpu::VcpuState;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The digest so far: a sum, so that the order at one instruction does not matter.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    sum: u64,
    kept: bool,
    /// Instruction counts after whose last instruction its vCPU is sampled, in order, all of them still to come.
    samples: VecDeque<u64>,
    /// Those that were added here, because an instruction left the guest.
    left: Vec<u64>,
}

impl Outcomes {
    /// Somebody wants them.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }

    /// The next instruction leaves the guest, after so many: it is sampled once it is complete.
    pub(crate) fn leaves(&mut self, icount: u64) {
        if !self.kept || self.left.last() == Some(&(icount + 1)) {
            return;
        }
        self.left.push(icount + 1);
        if self.samples.front() != Some(&(icount + 1)) {
            self.samples.push_front(icount + 1);
        }
    }

    /// The samples that instructions have caused that left the guest, since the last call.
    pub(crate) fn take_left(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.left)
    }

    /// Also sample at these counts, which are in order and lie after `icount`.
    pub(crate) fn sample_at(&mut self, icount: u64, counts: impl Iterator<Item = u64>) {
        let mut all: Vec<u64> =
            self.samples.drain(..).chain(counts.filter(|count| *count > icount)).collect();
        all.sort_unstable();
        all.dedup();
        self.samples = all.into();
    }

    /// When the next one is due after an instruction count. Never: as far as can be counted.
    pub(crate) fn next_sample(&self, icount: u64) -> u64 {
        self.samples.iter().copied().find(|due| *due > icount).unwrap_or(u64::MAX)
    }

    /// Samples a vCPU that has executed an instruction, if that is due.
    pub(crate) fn sample(&mut self, vcpu: u32, state: &VcpuState) {
        while let Some(due) = self.samples.pop_front_if(|due| *due <= state.icount) {
            if due == state.icount {
                self.sum = self.sum.wrapping_add(hash_all(vcpu, state));
            }
        }
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

/// What an instruction leaves in the registers. What events after it do to them is not in it yet, or looked at elsewhere.
fn hash_all(vcpu: u32, state: &VcpuState) -> u64 {
    let rflags = state.rflags().with_rf(false).with_tf(false).into_bits();
    let own = VcpuState { rflags, dr6: 0, dr7: 0, ..*state };
    let fpu: Vec<u8> =
        (0..fpu::COUNT).flat_map(|n| fpu::get(&state.fpu, n)).flat_map(u64::to_le_bytes).collect();
    xxh3_64_with_seed(&fpu, hash(vcpu, &own))
}

/// Registers that every backend has alike between two instructions.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the digest becomes of vector registers that differ after some instruction.
    fn sum(low: u64, samples: [u64; 2]) -> u64 {
        let mut outcomes = Outcomes::default();
        outcomes.keep();
        outcomes.sample_at(10, samples.into_iter());
        for icount in 11..20 {
            let mut state = VcpuState { icount, ..VcpuState::reset() };
            state.fpu.xmm[3] = [if icount == 13 { low } else { 0 }, 0];
            outcomes.sample(0, &state);
        }
        assert_eq!(outcomes.next_sample(0), u64::MAX);
        outcomes.sum()
    }

    #[test]
    fn an_instruction_is_looked_at_where_it_is_asked_for() {
        assert_ne!(sum(1, [13, 15]), sum(2, [13, 15]));
        assert_eq!(sum(1, [12, 14]), sum(2, [12, 14]));
        assert_eq!(sum(1, [9, 10]), 0, "what was before");
    }

    #[test]
    fn an_instruction_that_leaves_is_told_once() {
        let mut outcomes = Outcomes::default();
        outcomes.leaves(4);
        assert_eq!((outcomes.take_left(), outcomes.next_sample(4)), (vec![], u64::MAX), "nobody wants it");
        outcomes.keep();
        (0..3).for_each(|_| outcomes.leaves(4));
        assert_eq!((outcomes.take_left(), outcomes.next_sample(4)), (vec![5], 5));
    }
}
