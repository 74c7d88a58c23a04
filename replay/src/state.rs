//! What a guest can observe of itself: registers and memory of two machines, compared.

use crate::{cpuid::Change, exempt, explain, observer::PageFault, row::Row, seen::Seen};
use std::{collections::BTreeSet, fmt::Write};
use vmtape_arch::{PAGE_SIZE, cpuid::CpuidEntry, memory_type::MemoryType, paging::Pte, vcpu::VcpuState};
use vmtape_machine::{Machine, Typed, TypedPage};
use vmtape_traces::event::Control;

/// One difference between two machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A register of a vCPU, by name.
    Register { vcpu: u32, name: String, expected: u64, actual: u64 },
    /// An aligned quadword of memory.
    Memory { gpa: u64, expected: u64, actual: u64 },
    /// A page that the guest accesses with another memory type.
    MemoryType { page: TypedPage, expected: Typed, actual: Typed },
    /// What was not the same at some instruction since the comparison began, though nothing differs any more.
    Healed(&'static str),
    /// One of the two got further.
    Progress { expected: u64, actual: u64 },
    /// The runs ended in other ways, in words.
    End { expected: String, actual: String },
    /// What the guest printed since the last comparison.
    Output { expected: String, actual: String },
    /// The first of the page faults since the last comparison that is not the same.
    Fault { expected: Option<PageFault>, actual: Option<PageFault> },
    /// An ioctl with another result.
    Ioctl { expected: Control, actual: Control },
    /// What notes of an exit's handling tell of it, where there are no machines to compare.
    Seen { expected: Vec<Seen>, actual: Vec<Seen> },
}

/// A paging entry on two sides.
struct PagingEntry {
    gpa: u64,
    expected: u64,
    actual: u64,
}

/// Differences listed per comparison; more say nothing more.
const LISTED: usize = 16;

impl Difference {
    pub fn row(&self) -> Row {
        match self {
            Self::Register { vcpu, name, expected, actual } => {
                Row::new(format!("vCPU {vcpu} {name}"), format!("{expected:#x}"), format!("{actual:#x}"))
            }
            Self::Memory { gpa, expected, actual } => {
                Row::new(format!("memory at {gpa:#x}"), format!("{expected:#x}"), format!("{actual:#x}"))
            }
            Self::MemoryType { page, expected, actual } => Row::new(
                format!("memory type of {:#x} (gpa {:#x})", page.gva, page.gpa),
                typed_text(expected),
                typed_text(actual),
            ),
            Self::Healed(what) => Row::new(*what, "one way", "another, and no difference is left"),
            Self::Progress { expected, actual } => {
                Row::new("instructions retired", expected.to_string(), actual.to_string())
            }
            Self::End { expected, actual } => Row::new("the run", expected, actual),
            Self::Fault { expected, actual } => {
                let text = |fault: &Option<PageFault>| {
                    fault.map_or("none".into(), |fault| {
                        format!("#PF ({:#x}), CR2 {:#x}", fault.code, fault.cr2)
                    })
                };
                Row::new("page fault", text(expected), text(actual))
            }
            Self::Output { expected, actual } => {
                Row::new("serial output", format!("{expected:?}"), format!("{actual:?}"))
            }
            Self::Ioctl { expected, actual } => {
                Row::new("what an ioctl gives", expected.to_string(), actual.to_string())
            }
            Self::Seen { expected, actual } => {
                Row::new("what the guest sees", Seen::line(expected), Seen::line(actual))
            }
        }
    }

    /// The difference row by row: of CPUID tables each part that differs.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = vec![self.row()];
        if let Self::Ioctl { expected, actual } = self
            && let (Some(expected), Some(actual)) = (table(expected), table(actual))
        {
            let parts = Change::between(expected, actual).into_iter().zip(Change::between(actual, expected));
            rows.extend(
                parts.map(|(new, old)| Row::new("part of the table", old.long_text(), new.long_text())),
            );
        }
        rows
    }

    /// What differs, in a word: for a paging entry the accessed and dirty bits, never an address or a count.
    pub fn name(&self) -> String {
        match self {
            Self::Register { name, .. } => name.clone(),
            Self::Memory { .. } => self.paging_entry().map_or("memory".into(), |entry| {
                let (expected, actual) = (Pte::from_bits(entry.expected), Pte::from_bits(entry.actual));
                let bit = |name: &str, expected: bool, actual: bool| match (expected, actual) {
                    (false, true) => format!("+{name}"),
                    (true, false) => format!("-{name}"),
                    _ => String::new(),
                };
                let bits = [bit("A", expected.a(), actual.a()), bit("D", expected.d(), actual.d())];
                format!("entry:{}", bits.concat())
            }),
            Self::MemoryType { expected, actual, .. } => {
                format!("memory-type:{}>{}", expected.memory_type, actual.memory_type)
            }
            Self::Healed(what) => format!("healed:{what}"),
            Self::Progress { .. } => "progress".into(),
            Self::End { .. } => "end".into(),
            Self::Output { .. } => "output".into(),
            Self::Fault { expected, actual } => {
                let code = |fault: &Option<PageFault>| {
                    fault.map_or("none".into(), |fault| format!("{:#x}", fault.code))
                };
                format!("page-fault:{}>{}", code(expected), code(actual))
            }
            Self::Ioctl { expected, actual } => {
                format!("ioctl:{}:{}>{}", expected.name(), expected.result(), actual.result())
            }
            Self::Seen { expected, actual } => {
                format!("seen:{}>{}", Seen::word(expected, actual), Seen::word(actual, expected))
            }
        }
    }

    /// The difference in a sentence.
    pub fn text(&self) -> String {
        let row = self.row();
        if let Self::End { .. } | Self::Ioctl { .. } = self {
            return format!("expected: {}; actual: {}", row.expected, row.actual);
        }
        if let Self::Healed(what) = self {
            return format!("{what} differed at this instruction, and after it no more");
        }
        if let Self::MemoryType { page, expected, actual } = self {
            let (was, is) = (expected.memory_type, actual.memory_type);
            return format!(
                "the page at {:#x} (gpa {:#x}) was accessed as {was} and is {is}: expected {}; here {}",
                page.gva,
                page.gpa,
                typed_text(expected),
                typed_text(actual)
            );
        }
        format!("{} is {} instead of {}", row.what, row.actual, row.expected)
    }

    /// The sentence for a paging entry whose accessed or dirty bit is all that differs.
    pub fn accessed_dirty(&self) -> Option<String> {
        let PagingEntry { gpa, expected, actual } = self.paging_entry()?;
        let bits = explain::accessed_dirty_difference(expected, actual)?;
        let mut text = String::new();
        let _ = write!(
            text,
            "the guest's paging entry at {gpa:#x} has its {bits}: {actual:#x}, not {expected:#x}"
        );
        Some(text)
    }

    /// The paging entry whose accessed or dirty bit is all that differs: the quadword, or one of two 32-bit entries.
    fn paging_entry(&self) -> Option<PagingEntry> {
        let Self::Memory { gpa, expected, actual } = *self else { return None };
        let is_told =
            |entry: &PagingEntry| explain::accessed_dirty_difference(entry.expected, entry.actual).is_some();
        let half = |shift: u32| PagingEntry {
            gpa: gpa + u64::from(shift / 8),
            expected: u64::from((expected >> shift) as u32),
            actual: u64::from((actual >> shift) as u32),
        };
        let whole = Some(PagingEntry { gpa, expected, actual }).filter(is_told);
        let halves = || [half(0), half(32)].into_iter().filter(|half| half.expected != half.actual);
        whole.or_else(|| halves().all(|half| is_told(&half)).then(|| halves().next()).flatten())
    }

    /// Where it is, if it is a paging entry whose accessed or dirty bit is all that differs.
    pub fn entry(&self) -> Option<u64> {
        self.paging_entry().map(|entry| entry.gpa)
    }

    /// Whether it is such an entry, and one whose address the guest's width does not allow.
    pub fn is_illegal_entry(&self, guest_width: u8) -> bool {
        self.paging_entry().is_some_and(|entry| explain::illegal_bit(entry.expected, guest_width).is_some())
    }

    /// Differences that say most come first: paging entries (those with an address that is illegal for the guest
    /// before others), then how far the runs got, registers, and other memory.
    pub fn rank(&self, guest_width: u8) -> u32 {
        match self {
            Self::Ioctl { .. } => 0,
            Self::Memory { .. } if self.is_illegal_entry(guest_width) => 1,
            Self::Memory { .. } if self.paging_entry().is_some() => 2,
            Self::Fault { .. } => 3,
            Self::End { .. } => 4,
            Self::Register { .. } => 5,
            Self::MemoryType { .. } => 6,
            Self::Progress { .. } => 7,
            Self::Output { .. } => 8,
            Self::Memory { .. } => 9,
            Self::Healed(_) => 10,
            Self::Seen { .. } => 11,
        }
    }
}

/// Ioctls that both VMMs made, with other results: those that change the VM, and those that only ask. `logs_alike`: both sides
/// see writes in the same way, so that dirty logs are to tell the same pages.
pub fn compare_ioctls(
    expected: &Machine,
    actual: &Machine,
    logs_alike: bool,
) -> (Vec<Difference>, Vec<Difference>) {
    let controls =
        |machine: &Machine| machine.controls().iter().map(|(_, control)| control.clone()).collect();
    compare_controls(controls(expected), controls(actual), logs_alike)
}

/// As [`compare_ioctls`], for ioctls by themselves.
pub fn compare_controls(
    expected: Vec<Control>,
    actual: Vec<Control>,
    logs_alike: bool,
) -> (Vec<Difference>, Vec<Difference>) {
    // As nearly all exits have it.
    if expected.is_empty() || actual.is_empty() {
        return Default::default();
    }
    let comparable = |controls: Vec<Control>| {
        controls.into_iter().filter_map(move |control| exempt::comparable_control(control, logs_alike))
    };
    let pairs = comparable(expected).zip(comparable(actual)).filter(|(expected, actual)| expected != actual);
    pairs.map(|(expected, actual)| Difference::Ioctl { expected, actual }).partition(|difference| {
        match difference {
            Difference::Ioctl { expected, .. } => expected.is_change(),
            _ => false,
        }
    })
}

/// The CPUID table that an ioctl gives.
fn table(control: &Control) -> Option<&[CpuidEntry]> {
    match control {
        Control::GetSupportedCpuid { entries, .. } | Control::GetCpuid { entries, .. } => Some(entries),
        _ => None,
    }
}

/// Compares registers, and memory that either machine has ever written.
pub fn compare(expected: &Machine, actual: &Machine) -> Vec<Difference> {
    let mut differences = registers(expected, actual);
    differences.extend(memory_types(expected, actual));
    // The same memory may lie elsewhere on another host.
    let written = |machine: &Machine| -> Vec<u64> {
        machine.written_pages().filter_map(|page| machine.memory().gpa(page)).collect()
    };
    let pages: BTreeSet<u64> = written(expected).into_iter().chain(written(actual)).collect();
    for gpa in pages {
        page(expected, actual, gpa, &mut differences);
    }
    differences
}

fn page(expected: &Machine, actual: &Machine, gpa: u64, differences: &mut Vec<Difference>) {
    let read = |machine: &Machine| {
        let mut bytes = [0; PAGE_SIZE as usize];
        let memory = machine.memory();
        let read = memory.hpa(gpa).is_some_and(|hpa| memory.ram().read(hpa, &mut bytes));
        read.then_some(bytes)
    };
    let (Some(a), Some(b)) = (read(expected), read(actual)) else { return };
    if a == b {
        return;
    }
    let words = |bytes: &[u8; PAGE_SIZE as usize]| -> Vec<u64> {
        bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect()
    };
    let pairs = words(&a).into_iter().zip(words(&b)).enumerate();
    let found = pairs.filter(|(_, (a, b))| a != b).map(|(n, (expected, actual))| Difference::Memory {
        gpa: gpa + 8 * n as u64,
        expected,
        actual,
    });
    let room = LISTED.saturating_sub(differences.len()).max(1);
    differences.extend(found.take(room));
}

fn registers(expected: &Machine, actual: &Machine) -> Vec<Difference> {
    let mut differences = Vec::new();
    for vcpu in 0..expected.spec().vcpus {
        let (Some(a), Some(b)) = (expected.state(vcpu), actual.state(vcpu)) else { continue };
        if is_equal(a, b) {
            continue;
        }
        let mut others = Vec::new();
        b.each_register(|_, _, value| others.push(value));
        let mut others = others.into_iter();
        a.each_register(|_, name, expected| match others.next() {
            Some(actual) if actual != expected => {
                differences.push(Difference::Register { vcpu, name: name.to_string(), expected, actual });
            }
            _ => {}
        });
    }
    differences
}

/// The first page that the two guests access with other memory types. Of a side that does not tell them nothing is said.
fn memory_types(expected: &Machine, actual: &Machine) -> Option<Difference> {
    let (expected, actual) = (expected.memory_types(), actual.memory_types());
    if !expected.is_told() || !actual.is_told() {
        return None;
    }
    let mut pages = expected.pages().keys().chain(actual.pages().keys());
    let page = *pages.find(|page| expected.of(page).memory_type != actual.of(page).memory_type)?;
    Some(Difference::MemoryType { page, expected: expected.of(&page), actual: actual.of(&page) })
}

/// A memory type, and who decided it.
fn typed_text(typed: &Typed) -> String {
    let Typed { memory_type, guest } = typed;
    match *guest {
        MemoryType::UNTOLD => format!("{memory_type}, whatever the guest's tables say"),
        guest if guest == *memory_type => format!("{memory_type}, as the guest's tables and PAT say"),
        _ => format!("{memory_type} by the tables below, where the guest's tables and PAT say {guest}"),
    }
}

/// Whether a guest observes the same of two states.
pub fn is_equal(a: &VcpuState, b: &VcpuState) -> bool {
    a.observable() == b.observable()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two entries of 32 bits share a quadword; each has its accessed and dirty bits in its own half.
    #[test]
    fn entries_of_32_bits_are_found_in_their_quadword() {
        let memory = |expected, actual| Difference::Memory { gpa: 0x1000, expected, actual };
        for (expected, actual, entry, name) in [
            (0x8040_0087_0000_0001, 0x8040_00a7_0000_0001, Some(0x1004), "entry:+A"),
            (0x8040_0087_0000_0001, 0x8040_0087_0000_0021, Some(0x1000), "entry:+A"),
            (0x0000_0067_0000_0067, 0x0000_0027_0000_0027, Some(0x1000), "entry:-D"),
            (0x0000_0001_0000_0000, 0x0000_0021_0000_0001, None, "memory"),
            (0x0000_0000_0000_0000, 0x0000_0020_0000_0000, None, "memory"),
        ] {
            let difference = memory(expected, actual);
            assert_eq!(difference.entry(), entry, "{expected:#x} {actual:#x}");
            assert_eq!(difference.name(), name, "{expected:#x} {actual:#x}");
        }
    }
}
