//! What a guest got from what surrounds it, as a number: the same under every backend, for as long as they treat it alike.
//!
//! Registers and memory at the end of a run do not tell what was there in between. Memory has a digest of its own
//! ([`vmtape_cpu::Ram::changes`]). Registers follow from memory but for what the guest's surroundings give it: so the
//! digest has them after every sensitive instruction, whether silicon or the backend executed it, and after every event.
//!
//! Any other instruction may leave the guest too, and KVM's emulator may make something else of it than silicon. So the digest
//! has the registers, those of the FPU among them, after each instruction that left the guest (it is *sampled* there). Another
//! machine, whose silicon may execute the same instruction, is told to sample it too.

use std::collections::VecDeque;
use vmtape_arch::{state::StateKind, vcpu::VcpuState};
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
    let mut fpu = Words::default();
    state.fpu.each_register(|_, value| fpu.push(value));
    xxh3_64_with_seed(fpu.bytes(), hash(vcpu, &own))
}

/// Registers that every backend has alike between two instructions: how a vCPU waits, and what holds events back, is the same
/// only when it has taken them.
fn hash(vcpu: u32, state: &VcpuState) -> u64 {
    let mut words = Words::default();
    words.push(state.icount);
    state.each_register_but_fpu(|kind, _, value| {
        if !matches!(kind, StateKind::MP_STATE | StateKind::VCPU_EVENTS) {
            words.push(value);
        }
    });
    xxh3_64_with_seed(words.bytes(), vcpu.into())
}

/// More registers than there are.
const WORDS: usize = 128;

/// Words to be hashed.
struct Words {
    bytes: [u8; 8 * WORDS],
    used: usize,
}

impl Default for Words {
    fn default() -> Self {
        Self { bytes: [0; 8 * WORDS], used: 0 }
    }
}

impl Words {
    fn push(&mut self, word: u64) {
        self.bytes.as_chunks_mut::<8>().0[self.used] = word.to_le_bytes();
        self.used += 1;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..8 * self.used]
    }
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
