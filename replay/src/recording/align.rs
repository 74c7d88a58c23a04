//! Where two streams of exits go on alike after a difference: a diff over a window, in constant memory.

use crate::{exempt, islands::Why};
use std::collections::BTreeMap;
use vmtape_arch::{
    exit::{Exit, Isa, SvmExitCode, VmxReason},
    msr::Msr,
    note::Note,
};
use vmtape_traces::ExitGroup;

/// Exits of each side among which a place to go on is looked for.
pub(super) const WINDOW: usize = 4096;
/// Exits in a row that have to be alike there, so that no chance likeness is taken for one.
const RUN: usize = 4;

/// What two exits have in common that are the same step of a guest. `None` is the end of a tape.
pub(super) type Key = Option<(u32, u64, u64, u64)>;

pub(super) fn key(group: &ExitGroup) -> Key {
    let exit = &group.exit.exit;
    // Masked as for a comparison with any exit of string I/O.
    let info1 = exempt::comparable_info1(exit, exit).0[0];
    Some((exit.reason, group.exit.rip, info1, exit.info2))
}

/// How many exits to leave out of each side, the fewest altogether and not none, so that what follows is alike. `ends`: the
/// window reaches the tape's end.
pub(super) fn resume(expected: &[Key], actual: &[Key], ends: [bool; 2]) -> Option<(usize, usize)> {
    let padded = |keys: &[Key], ends: bool| {
        let mut keys = keys.to_vec();
        keys.extend(std::iter::repeat_n(None, if ends { RUN } else { 0 }));
        keys
    };
    let (expected, actual) = (padded(expected, ends[0]), padded(actual, ends[1]));
    let mut places: BTreeMap<&[Key], usize> = BTreeMap::new();
    for (at, run) in expected.windows(RUN).enumerate() {
        places.entry(run).or_insert(at);
    }
    let mut best: Option<(usize, usize)> = None;
    for (skipped, run) in actual.windows(RUN).enumerate() {
        if best.is_some_and(|(a, b)| a + b <= skipped) {
            break;
        }
        if let Some(&at) = places.get(run)
            && at + skipped > 0
            && best.is_none_or(|(a, b)| at + skipped < a + b)
        {
            best = Some((at, skipped));
        }
    }
    best
}

/// What differing exits have to do with, where all of them, or one that decides, tell.
pub(super) fn why<'g>(groups: impl Iterator<Item = &'g ExitGroup> + Clone) -> Why {
    if groups.clone().any(|group| reads_clock(&group.exit.exit) || group.notes.iter().any(shows_clock)) {
        return Why::Time;
    }
    if groups.clone().next().is_some() && groups.clone().all(|group| group.notes.iter().any(is_output)) {
        return Why::Output;
    }
    if groups.clone().any(|group| waits(&group.exit.exit) || group.notes.iter().any(is_interrupt)) {
        return Why::Interrupts;
    }
    Why::Unexplained
}

fn reads_clock(exit: &Exit) -> bool {
    match exit.isa {
        Isa::VMX => matches!(VmxReason(exit.reason & 0xffff), VmxReason::RDTSC | VmxReason::RDTSCP),
        Isa::SVM => matches!(SvmExitCode(exit.reason), SvmExitCode::RDTSC | SvmExitCode::RDTSCP),
        _ => false,
    }
}

/// The PIT, the real-time clock, ACPI's timer where QEMU has it, the local APIC's timer, and the TSC as an MSR.
fn shows_clock(note: &Note) -> bool {
    const APIC_CURRENT_COUNT: u64 = 0xfee0_0390;
    match *note {
        Note::Pio { write: false, port, .. } => {
            matches!(port, 0x40..=0x43 | 0x61 | 0x70 | 0x71 | 0x608 | 0xb008)
        }
        Note::Mmio { gpa, .. } => gpa == APIC_CURRENT_COUNT,
        Note::Msr { write: false, index, .. } => {
            matches!(Msr(index), Msr::IA32_TSC | Msr::IA32_TSC_DEADLINE) || index == 0x839
        }
        _ => false,
    }
}

/// A character for a serial port or the debug console, and waiting until the port takes it.
fn is_output(note: &Note) -> bool {
    matches!(*note, Note::Pio { port: 0x3f8..=0x3ff | 0x2f8..=0x2ff | 0xe9 | 0x402, .. })
}

fn is_interrupt(note: &Note) -> bool {
    matches!(note, Note::InjVirq { .. })
}

fn waits(exit: &Exit) -> bool {
    match exit.isa {
        Isa::VMX => {
            matches!(VmxReason(exit.reason & 0xffff), VmxReason::HLT | VmxReason::INTERRUPT_WINDOW)
        }
        Isa::SVM => matches!(SvmExitCode(exit.reason), SvmExitCode::HLT | SvmExitCode::VINTR),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A letter is an exit; the rest of it is alike.
    fn keys(text: &str) -> Vec<Key> {
        text.bytes().map(|letter| Some((letter.into(), 0, 0, 0))).collect()
    }

    fn resumed(expected: &str, actual: &str, ends: bool) -> Option<(usize, usize)> {
        resume(&keys(expected), &keys(actual), [ends; 2])
    }

    #[test]
    fn the_fewest_exits_are_left_out() {
        assert_eq!(resumed("xabcdef", "abcdef", false), Some((1, 0)), "one more");
        assert_eq!(resumed("abcdef", "yzabcdef", false), Some((0, 2)), "two fewer");
        assert_eq!(resumed("xxabcdef", "yabcdef", false), Some((2, 1)), "others");
        assert_eq!(resumed("xabcdabcd", "yabcdabcd", false), Some((1, 1)), "the first of several places");
        assert_eq!(resumed("abcde", "fghij", false), None);
        assert_eq!(resumed("xabc", "yabc", false), None, "three may be chance");
    }

    #[test]
    fn ends_are_alike() {
        assert_eq!(resumed("xab", "yab", true), Some((1, 1)));
        assert_eq!(resumed("abc", "def", true), Some((3, 3)));
        assert_eq!(resume(&keys("xab"), &keys("yab"), [true, false]), None);
        assert_eq!(resumed("", "a", true), Some((0, 1)));
    }
}
