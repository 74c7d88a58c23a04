//! One line of ftrace: `<comm>-<pid> [cpu] flags seconds.fraction: event: text`.

/// What a line is.
pub enum Line<'a> {
    /// A header or nothing.
    Comment,
    /// The ring buffer overran and so many events are missing (0: it does not say).
    Lost(u64),
    Event(Record<'a>),
    Unreadable,
}

/// An event as printed.
pub struct Record<'a> {
    pub comm: &'a str,
    pub pid: u32,
    pub micros: u64,
    pub event: &'a str,
    pub text: &'a str,
}

/// Events that a thread prints only while it runs a vCPU.
const OF_A_VCPU: [&str; 6] =
    ["kvm_exit", "kvm_entry", "kvm_userspace_exit", "kvm_emulate_insn", "kvm_page_fault", "kvm_cpuid"];
/// Events that begin with the number of the vCPU whose thread prints them.
const NAME_THEIR_VCPU: [&str; 4] = ["kvm_exit", "kvm_entry", "kvm_page_fault", "fast_page_fault"];

impl Record<'_> {
    /// The vCPU whose thread this is, if the line says so.
    pub fn vcpu(&self) -> Option<u32> {
        let qemu = self.comm.strip_prefix("CPU ").and_then(|rest| rest.strip_suffix("/KVM"));
        let said = || {
            let text = self.text.strip_prefix("vcpu ").filter(|_| NAME_THEIR_VCPU.contains(&self.event))?;
            text.split([' ', ',']).next()
        };
        qemu.or_else(said)?.parse().ok().filter(|vcpu| *vcpu < 0x1_0000)
    }

    /// Whether only a vCPU's thread prints this event.
    pub fn is_of_a_vcpu(&self) -> bool {
        OF_A_VCPU.contains(&self.event)
    }
}

/// Reads a line.
pub fn classify(line: &str) -> Line<'_> {
    let trimmed = line.trim();
    // trace-cmd report starts with `cpus=N`, or `version = N` before it.
    let header = trimmed.starts_with("cpus=") || trimmed.starts_with("version = ");
    if trimmed.is_empty() || trimmed.starts_with('#') || header {
        return Line::Comment;
    }
    if let Some(count) = lost(trimmed) {
        return Line::Lost(count);
    }
    record(trimmed).map_or(Line::Unreadable, Line::Event)
}

/// `CPU:0 [LOST 1234 EVENTS]`, `CPU:0 [EVENTS DROPPED]` or `CPU 0: 1234 EVENTS LOST` in trace-cmd's words.
fn lost(line: &str) -> Option<u64> {
    let said = line.starts_with("CPU") && line.contains("EVENTS") && !line.contains(": kvm_");
    let lost = said && (line.contains("LOST") || line.contains("DROPPED"));
    lost.then(|| {
        let words = line.split([' ', '[']).skip(1);
        words.filter_map(|word| word.parse().ok()).last().unwrap_or(0)
    })
}

fn record(line: &str) -> Option<Record<'_>> {
    // The comm may hold anything: the cpu is the first bracket after something that ends in `-pid`.
    let (task, rest) = line.match_indices('[').find_map(|(at, _)| {
        let (cpu, rest) = line[at + 1..].split_once(']')?;
        let is_cpu = !cpu.is_empty() && cpu.bytes().all(|b| b.is_ascii_digit());
        let task = task(&line[..at]).filter(|_| is_cpu && rest.starts_with([' ', '\t']))?;
        Some((task, rest))
    })?;
    let (stamp, rest) = rest.split_once(": ")?;
    let (seconds, fraction) = stamp.split_whitespace().next_back()?.split_once('.')?;
    let (event, text) = rest.trim_start().split_once(':')?;
    if event.is_empty() || event.contains(char::is_whitespace) {
        return None;
    }
    Some(Record {
        comm: task.0,
        pid: task.1,
        micros: seconds.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(micros(fraction)?)?,
        event,
        text: text.strip_prefix(' ').unwrap_or(text),
    })
}

/// `comm-pid` or, with thread groups shown, `comm-pid (tgid)`.
fn task(text: &str) -> Option<(&str, u32)> {
    let mut text = text.trim_end();
    if text.ends_with(')') {
        text = text[..text.rfind('(')?].trim_end();
    }
    let (comm, pid) = text.rsplit_once('-')?;
    Some((comm.trim_start(), pid.parse().ok()?))
}

/// A fraction of six digits or of nine as microseconds.
fn micros(fraction: &str) -> Option<u64> {
    let digits = fraction.get(..6).unwrap_or(fraction);
    if !fraction.bytes().all(|b| b.is_ascii_digit()) || digits.is_empty() {
        return None;
    }
    Some(digits.parse::<u64>().ok()? * 10u64.pow(6 - digits.len() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(line: &str) -> Record<'_> {
        match classify(line) {
            Line::Event(record) => record,
            _ => panic!("{line} is an event"),
        }
    }

    #[test]
    fn lines_of_all_writers() {
        let tracefs = event(
            "       CPU 0/KVM-4992    [000] d..1.   437.568747: kvm_exit: vcpu 0 reason npf rip 0xfff0 info1 0x0",
        );
        assert_eq!((tracefs.comm, tracefs.pid, tracefs.micros), ("CPU 0/KVM", 4992, 437_568_747));
        assert_eq!((tracefs.event, tracefs.vcpu()), ("kvm_exit", Some(0)));
        let groups = event(" a-b [1] c-17  (  5) [003] .... 1.5: kvm_entry: vcpu 2, rip 0x1");
        assert_eq!(
            (groups.comm, groups.pid, groups.micros, groups.vcpu()),
            ("a-b [1] c", 17, 1_500_000, Some(2))
        );
        let report = event("qemu-9 [001] 12.000000345: kvm_fpu:              load");
        assert_eq!((report.event, report.text.trim(), report.micros), ("kvm_fpu", "load", 12_000_000));
    }

    #[test]
    fn lines_that_are_no_events() {
        assert!(matches!(classify("CPU:0 [LOST 123 EVENTS]"), Line::Lost(123)));
        assert!(matches!(classify("CPU:1 [EVENTS DROPPED]"), Line::Lost(0)));
        assert!(matches!(classify("cpus=4"), Line::Comment));
        assert!(matches!(classify("# tracer: nop"), Line::Comment));
        for line in ["hello", "a-1 [000", "a-1 [000] 1.0", "a-1 [x] 1.0: e: t", "[000] 1.0: e: t"] {
            assert!(matches!(classify(line), Line::Unreadable), "{line}");
        }
    }
}
