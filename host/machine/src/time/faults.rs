//! Fault points: who decides what they answer, and how often each was asked.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vmtape_arch::{exit::Isa, level::Level};
use vmtape_traces::event::Skip;

/// What a fault point asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Instructions retired by all vCPUs.
    pub icount: u64,
    /// [`NO_VCPU`](vmtape_traces::event::NO_VCPU) or all of them where it is about none.
    pub vcpu: u32,
    pub point: u32,
    /// How often the vCPU has asked the point, this time included.
    pub occurrence: u64,
    /// Two words of detail, which the point's row in its table describes.
    pub a: u64,
    pub b: u64,
    /// Of the migration that asks.
    pub phase: Phase,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The plan's rule, from one on; zero: none.
    pub rule: u32,
    /// Why the fault does not happen though it was due.
    pub skipped: Skip,
    pub answer: u64,
}

/// An exit, as far as a plan may wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exited {
    /// Instructions retired by all vCPUs.
    pub icount: u64,
    pub vcpu: u32,
    pub isa: Isa,
    pub reason: u32,
    pub level: Level,
}

/// Decides what a fault point answers. What it decides is on the tape, so a replay needs it no more.
pub trait Faults {
    /// What comes of it that a point asks; `None`: nothing.
    fn decide(&mut self, asked: &Asked) -> Option<Decision>;

    /// A vCPU leaves the guest.
    fn exited(&mut self, _exit: &Exited) {}

    /// The instruction count at which [`HostPoint::NMI`] is to be asked next, after so many of its occurrences. What it is asked
    /// then has a [`Decision`], be it that the fault is skipped.
    fn next_nmi(&self, _occurrences: u64) -> Option<u64> {
        None
    }
}

vmtape_arch::open_enum! {
    /// How far a migration is.
    pub struct Phase(u32) {
        NONE = 0 => "none",
        /// The two ends agree on what is to move.
        SETUP = 1 => "setup",
        /// Memory moves while the guest runs.
        PRE_COPY = 2 => "pre-copy",
        /// The guest has stopped: the rest of its memory.
        STOP = 3 => "stop",
        /// Its state is saved, sent and loaded.
        STATE = 4 => "state",
        /// It is decided who goes on.
        HAND_OVER = 5 => "hand-over",
        /// It runs at the destination, and its memory follows.
        POST_COPY = 6 => "post-copy",
        DONE = 7 => "done",
    }
}

vmtape_arch::open_enum! {
    /// The host's own fault points. Their numbers are a space of their own.
    pub struct HostPoint(u32) {
        NMI = 0x8000_0001 => "host-nmi",
        SERIAL = 0x8000_0002 => "host-serial",
        CLOCK_JUMP = 0x8000_0003 => "host-clock-jump",
        TIMER = 0x8000_0004 => "host-timer",
        IRQ_LOST = 0x8000_0005 => "host-irq-lost",
        IRQ_SPURIOUS = 0x8000_0006 => "host-irq-spurious",
        TSC_JUMP = 0x8000_0007 => "host-tsc-jump",
        CREATE_VCPU = 0x8000_0008 => "host-create-vcpu",
        RUN_INTERRUPTED = 0x8000_0009 => "host-run-interrupted",
    }
}

impl HostPoint {
    /// Numbers from here on are the host's.
    pub(crate) const FIRST: u32 = 0x8000_0000;

    /// Each point with its name, what goes wrong, and what its words and its answer mean.
    pub fn table() -> Vec<(Self, &'static str, &'static str, &'static str)> {
        let said = |point| match point {
            Self::NMI => {
                ("An NMI reaches the CPU while the guest runs", "a: the guest's RIP; b: 0; answer: any")
            }
            Self::SERIAL => (
                "A byte that is typed on the serial port does not arrive as it should",
                "a: the byte; b: 0; answer: 0 it is lost, else it comes twice",
            ),
            Self::CLOCK_JUMP => {
                ("The host's clock jumps at an exit", "a: nanoseconds; b: 0; answer: nanoseconds forward")
            }
            Self::TIMER => (
                "A timer is due, and expires late, twice, or without anybody hearing of it",
                "a: the vCPU of a local APIC's timer, or all ones for the PIT; b: when it is due, in nanoseconds; answer: 0 \
                 nobody hears of it, else nanoseconds by which it is late; with bit 63 it comes on time and again so much later",
            ),
            Self::IRQ_LOST => {
                ("An interrupt that waits for the vCPU is gone", "a: the vector; b: 0; answer: any")
            }
            Self::IRQ_SPURIOUS => (
                "An interrupt comes at an exit that nobody has sent",
                "a: the guest's RIP; b: 0; answer: the vector",
            ),
            Self::TSC_JUMP => (
                "A vCPU's time-stamp counter jumps at an exit; at each one it runs at another frequency",
                "a: its offset; b: 0; answer: ticks forward, or back as a negative number",
            ),
            Self::CREATE_VCPU => (
                "KVM_CREATE_VCPU fails, and there is no guest",
                "a: the vCPU; b: 0; answer: the errno (12 is ENOMEM)",
            ),
            Self::RUN_INTERRUPTED => (
                "A signal, or immediate_exit, ends KVM_RUN before the guest is entered: -EINTR, and the VMM calls it again",
                "a: the guest's RIP; b: 0; answer: any",
            ),
            _ => ("", ""),
        };
        let row = |(point, name): &(Self, &'static str)| {
            let (text, words) = said(*point);
            (*point, *name, text, words)
        };
        Self::NAMED.iter().map(row).collect()
    }

    /// Whether nothing else comes of it than that time passes otherwise, or that an input or an interrupt comes, or does not.
    pub fn is_timing(self) -> bool {
        matches!(
            self,
            Self::SERIAL
                | Self::CLOCK_JUMP
                | Self::TIMER
                | Self::IRQ_LOST
                | Self::IRQ_SPURIOUS
                | Self::TSC_JUMP
        )
    }

    /// Numbers and names of all.
    pub fn names() -> Vec<(u32, String)> {
        Self::NAMED.iter().map(|(point, name)| (point.0, (*name).to_owned())).collect()
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
    fn decide(&mut self, asked: &Asked) -> Option<Decision> {
        let wanted = |fault: &&Scripted| {
            (fault.point, fault.occurrence) == (asked.point, asked.occurrence)
                && fault.vcpu.is_none_or(|wanted| wanted == asked.vcpu)
        };
        let found = self.iter().find(wanted)?;
        Some(Decision { answer: found.answer, ..Decision::default() })
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
        let mut ask = |vcpu, point| {
            let occurrence = counts.count(vcpu, point)[0];
            let asked = Asked { vcpu, point, occurrence, ..Asked::default() };
            faults.decide(&asked).map(|decision| decision.answer)
        };
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
