//! Fault points: who decides what they answer, and how often each was asked.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Decides what a fault point answers. What it decides is on the tape, so a replay needs it no more.
pub trait Faults {
    /// What the point answers the `occurrence`-th time (from one on) that the vCPU asks; `None`: nothing happens.
    fn decide(&mut self, vcpu: u32, point: u32, occurrence: u64, a: u64, b: u64) -> Option<u64>;

    /// The instruction count at which [`HostPoint::NMI`] is to be asked next, after so many of its occurrences.
    fn next_nmi(&self, _occurrences: u64) -> Option<u64> {
        None
    }
}

vmtape_arch::open_enum! {
    /// The host's own fault points. Their numbers are a space of their own.
    pub struct HostPoint(u32) {
        /// An NMI reaches the CPU while the guest runs. `a`: RIP; `b`: 0; answer: any.
        NMI = 0x8000_0001 => "host-nmi",
        /// A byte is typed on the serial port. `a`: the byte; `b`: when it was due; answer: 0 lost, else typed twice.
        SERIAL = 0x8000_0002 => "host-serial",
        /// The clock at an exit. `a`: nanoseconds; `b`: 0; answer: nanoseconds by which it jumps forward.
        CLOCK_JUMP = 0x8000_0003 => "host-clock-jump",
    }
}

impl HostPoint {
    /// Numbers from here on are the host's.
    pub(crate) const FIRST: u32 = 0x8000_0000;

    /// Numbers and names of all.
    pub fn names() -> Vec<(u32, String)> {
        let points = [Self::NMI, Self::SERIAL, Self::CLOCK_JUMP];
        points.iter().filter_map(|point| Some((point.0, point.name()?.to_owned()))).collect()
    }
}

/// One fault: the point's answer at one of its occurrences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scripted {
    pub point: u32,
    /// `None`: any.
    pub vcpu: Option<u32>,
    pub occurrence: u64,
    pub answer: u64,
    /// Of [`HostPoint::NMI`]: the instruction count at which it comes.
    pub insn: u64,
}

impl Faults for Vec<Scripted> {
    fn decide(&mut self, vcpu: u32, point: u32, occurrence: u64, _a: u64, _b: u64) -> Option<u64> {
        let wanted = |fault: &&Scripted| {
            (fault.point, fault.occurrence) == (point, occurrence)
                && fault.vcpu.is_none_or(|wanted| wanted == vcpu)
        };
        self.iter().find(wanted).map(|fault| fault.answer)
    }

    fn next_nmi(&self, occurrences: u64) -> Option<u64> {
        let mut nmis = self.iter().filter(|fault| fault.point == HostPoint::NMI.0);
        nmis.find(|fault| fault.occurrence == occurrences + 1).map(|fault| fault.insn)
    }
}

/// How often each vCPU has asked each point: in the run, and since its last exit began.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts(BTreeMap<(u32, u32), [u64; 2]>);

impl Counts {
    /// How often all vCPUs together have asked a point.
    pub(super) fn of(&self, point: u32) -> u64 {
        self.0.iter().filter(|((_, of), _)| *of == point).map(|(_, counts)| counts[0]).sum()
    }

    pub(super) fn count(&mut self, vcpu: u32, point: u32) -> [u64; 2] {
        let counts = self.0.entry((vcpu, point)).or_default();
        counts.iter_mut().for_each(|count| *count += 1);
        *counts
    }

    /// An exit of the vCPU begins. What is about no vCPU counts from any exit on.
    pub(crate) fn begin_exit(&mut self, vcpu: u32) {
        for ((of, _), counts) in &mut self.0 {
            if *of == vcpu || *of == vmtape_abi::ALL_VCPUS {
                counts[1] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_answers_at_its_occurrence() {
        let mut faults = vec![Scripted { point: 7, vcpu: Some(1), occurrence: 2, answer: 5, insn: 0 }];
        let mut counts = Counts::default();
        let mut ask = |vcpu, point| faults.decide(vcpu, point, counts.count(vcpu, point)[0], 0, 0);
        assert_eq!(
            [ask(1, 7), ask(0, 7), ask(1, 8), ask(1, 7), ask(1, 7)],
            [None, None, None, Some(5), None]
        );
    }

    #[test]
    fn exits_count_by_vcpu() {
        let mut counts = Counts::default();
        assert_eq!([counts.count(0, 1), counts.count(0, 1), counts.count(1, 1)], [[1, 1], [2, 2], [1, 1]]);
        counts.begin_exit(0);
        assert_eq!([counts.count(0, 1), counts.count(1, 1)], [[3, 1], [2, 2]]);
    }
}
