//! One line of a trace as text, in the forms in which its writers print it.
//!
//! - tracefs (`trace`, `trace_pipe`): `CPU 0/KVM-186 [000] d..1. 7.431541: kvm_exit: vcpu 0 ...`, with `record-tgid` `(184)`
//!   after the task, with `latency-format` the task's name cut and `0d..1.` for the CPU.
//! - `trace-cmd report`: no flags, or after `-l` as with `latency-format`; texts aligned after the event's name;
//!   `(+82)` after the time with `--ts-diff`; the name of a buffer instance before the task.
//! - `perf script`: `CPU 0/KVM 186 [000] 7.431541: kvm:kvm_exit: ...`, `184/186` with both ids, a period before the event.
//!
//! Clocks that count (`x86-tsc`, `counter`, `--raw-ts`) have no decimal point: [`Time::Ticks`]. Leading `>` are a mail's.

use super::{binary::Raw, fields::Fields, name::Name, note};
use crate::text::split_place;
use std::borrow::Cow;
use vmtape_arch::{
    exit::{Exit, Isa},
    level::Place,
    note::Note,
};

/// What a line is.
pub enum Line<'a> {
    /// A header, a frame of a call chain, or nothing.
    Comment,
    Lost(Lost),
    Event(Record<'a>),
    Unreadable,
}

/// The buffer of a CPU overran and events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// `None` if it does not say which.
    pub cpu: Option<u32>,
    /// 0: it does not say how many.
    pub events: u64,
}

/// When, by the trace's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    Micros(u64),
    /// Of a clock that counts in a unit of its own.
    Ticks(u64),
}

impl Time {
    /// The number on the tape.
    pub fn count(self) -> u64 {
        match self {
            Self::Micros(count) | Self::Ticks(count) => count,
        }
    }
}

/// An event as printed.
pub struct Record<'a> {
    pub comm: &'a str,
    /// The thread.
    pub pid: u32,
    /// Its process, where the trace says so.
    pub tgid: Option<u32>,
    pub cpu: Option<u32>,
    pub time: Time,
    pub event: &'a str,
    pub body: Body<'a>,
}

/// What an event tells.
#[derive(Clone, Copy)]
pub enum Body<'a> {
    /// Text behind `event: `.
    Text(&'a str),
    Raw(Raw<'a>),
}

/// Events that a thread prints only while it runs a vCPU.
const OF_A_VCPU: [&str; 6] =
    ["kvm_exit", "kvm_entry", "kvm_userspace_exit", "kvm_emulate_insn", "kvm_page_fault", "kvm_cpuid"];
/// Events that begin with the number of the vCPU whose thread prints them.
const NAME_THEIR_VCPU: [&str; 5] =
    ["kvm_exit", "kvm_entry", "kvm_page_fault", "fast_page_fault", "kvm_nested_vmexit"];
/// Beyond this a number is no vCPU.
const MOST_VCPUS: u32 = 0x1_0000;

impl Record<'_> {
    /// The vCPU that the event names, if its thread runs it.
    pub fn named_vcpu(&self) -> Option<u32> {
        if !NAME_THEIR_VCPU.contains(&self.event) {
            return None;
        }
        let number = match self.body {
            Body::Raw(raw) => u32::try_from(raw.number(Name::VCPU_ID)?).ok()?,
            Body::Text(text) => match text.strip_prefix("vcpu ") {
                Some(text) => text.split([' ', ',']).next()?.parse().ok()?,
                None => text.split(' ').find_map(|word| word.strip_prefix("vcpu_id="))?.parse().ok()?,
            },
        };
        (number < MOST_VCPUS).then_some(number)
    }

    /// `kvm_exit`'s rip and exit. `last` is the architecture of reasons that are numbers.
    pub fn exit(&self, last: Isa) -> Option<(u64, Exit)> {
        match self.body {
            Body::Text(text) => note::exit(text, last),
            Body::Raw(raw) => raw.exit(),
        }
    }

    /// Whether it is a `kvm_exit` without the event that was being delivered.
    pub fn is_terse(&self) -> bool {
        match self.body {
            Body::Text(text) => !text.contains("intr_info"),
            Body::Raw(raw) => raw.number(Name::INTR_INFO).is_none(),
        }
    }

    /// Whether all of what it tells is understood.
    pub fn is_understood(&self) -> bool {
        if self.event == "kvm_exit" { self.exit(Isa::default()).is_some() } else { self.note().is_ok() }
    }

    /// The rip that `kvm_page_fault` tells, from 6.1 on.
    pub fn rip(&self) -> Option<u64> {
        match self.body {
            Body::Text(text) => note::rip(text),
            Body::Raw(raw) => raw.number(Name::GUEST_RIP),
        }
    }

    /// The note that the event is, and where it belongs; its text if it has no decoded form.
    pub fn note(&self) -> Result<(Place, Note), Cow<'_, str>> {
        match self.body {
            Body::Text(whole) => {
                let (text, place) = split_place(whole);
                note::note(self.event, text).map(|note| (place, note)).ok_or(whole.into())
            }
            Body::Raw(raw) => {
                if let Some(note) = raw.is_noted().then(|| raw.note()).flatten() {
                    return Ok((Place::L1, note));
                }
                let mut text = raw.text();
                // Of some events the fields alone do not tell all that the text does.
                if raw.is_noted()
                    && let Some(note) = note::note(self.event, &text)
                {
                    return Ok((Place::L1, note));
                }
                text.truncate(text.trim_end().len());
                Err(text.into())
            }
        }
    }

    /// The vCPU in a thread's name as QEMU gives it.
    pub fn vcpu_of_comm(&self) -> Option<u32> {
        let rest = self.comm.strip_prefix("CPU ")?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        // Names are cut in some forms: `CPU 0/KV`. Without the slash the number itself may be.
        let (number, rest) = rest.split_at(digits);
        number.parse().ok().filter(|vcpu| *vcpu < MOST_VCPUS && rest.starts_with('/'))
    }

    /// Whether only a vCPU's thread prints this event.
    pub fn is_of_a_vcpu(&self) -> bool {
        OF_A_VCPU.contains(&self.event)
    }
}

/// Reads a line.
pub fn classify(line: &str) -> Line<'_> {
    let trimmed = unquoted(line);
    if is_comment(trimmed) {
        return Line::Comment;
    }
    if let Some(record) = record(trimmed) {
        return Line::Event(record);
    }
    match lost(trimmed) {
        Some(lost) => Line::Lost(lost),
        None if is_frame(trimmed) => Line::Comment,
        None => Line::Unreadable,
    }
}

/// A line without what a mail puts before it.
pub fn unquoted(line: &str) -> &str {
    line.trim_start_matches(['>', ' ', '\t']).trim_end()
}

/// `trace-cmd report` starts with `cpus=N`, or `version = N` before it, and names CPUs without events.
fn is_comment(line: &str) -> bool {
    let of_a_cpu =
        || line.starts_with("CPU") && (line.ends_with(" is empty") || line.contains("[SUBBUFFER START]"));
    line.is_empty()
        || line.starts_with('#')
        || line.starts_with("cpus=")
        || line.starts_with("version = ")
        || of_a_cpu()
}

/// A frame of a call chain below an event: an address, then a symbol.
fn is_frame(line: &str) -> bool {
    let (address, symbol) = line.split_once(' ').unwrap_or((line, ""));
    (8..=16).contains(&address.len())
        && address.bytes().all(|b| b.is_ascii_hexdigit())
        && !symbol.contains(": ")
        // Behind a symbol comes its module.
        && (!symbol.contains(' ') || symbol.ends_with(')'))
}

/// `CPU:0 [LOST 1234 EVENTS]` of tracefs, `CPU:0 [1234 EVENTS DROPPED]` of trace-cmd, `CPU 0: 1234 EVENTS LOST`; of perf
/// script `... PERF_RECORD_LOST ... lost 1234`.
fn lost(line: &str) -> Option<Lost> {
    if let Some((_, rest)) = line.split_once("PERF_RECORD_LOST") {
        let events = rest.rsplit_once("lost ").and_then(|(_, count)| count.trim().parse().ok());
        return Some(Lost { cpu: None, events: events.unwrap_or(0) });
    }
    let rest = line.strip_prefix("CPU")?.trim_start_matches([':', ' ']);
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (cpu, rest) = rest.split_at(digits);
    if !rest.contains("EVENTS") || !(rest.contains("LOST") || rest.contains("DROPPED")) {
        return None;
    }
    let count = rest.split([' ', '[', ']', ':']).find_map(|word| word.parse().ok());
    Some(Lost { cpu: cpu.parse().ok(), events: count.unwrap_or(0) })
}

fn record(line: &str) -> Option<Record<'_>> {
    with_bracket(line).or_else(|| without_bracket(line))
}

/// `TASK [cpu] flags time: event: text`.
fn with_bracket(line: &str) -> Option<Record<'_>> {
    // The name may hold anything: the CPU is the first bracket after something that ends in an id.
    line.match_indices('[').find_map(|(at, _)| {
        let (cpu, rest) = line[at + 1..].split_once(']')?;
        let is_cpu = !cpu.is_empty() && cpu.bytes().all(|b| b.is_ascii_digit());
        if !is_cpu || !rest.starts_with([' ', '\t']) {
            return None;
        }
        let task = task(&line[..at])?;
        let (stamp, rest) = rest.split_once(':')?;
        let time = time(stamp.split_whitespace().next_back()?)?;
        Some(task.record(cpu.parse().ok(), time, event(rest)?))
    })
}

/// `TASK 0d..1. time: event: text`, or without any CPU.
fn without_bracket(line: &str) -> Option<Record<'_>> {
    // The name may hold colons: the time is the first word before one that is a time.
    line.match_indices(": ").find_map(|(at, _)| {
        let before = line[..at].trim_end();
        let (head, stamp) = before.rsplit_once([' ', '\t'])?;
        let time = time(stamp)?;
        let head = head.trim_end();
        let (rest, flags) = head.rsplit_once([' ', '\t'])?;
        let digits = flags.find(|c: char| !c.is_ascii_digit()).unwrap_or(flags.len());
        let is_flags = (1..flags.len()).contains(&digits) && flags.as_bytes()[digits] != b'/';
        let (task, cpu) = match task(rest).filter(|_| is_flags) {
            Some(task) => (task, flags[..digits].parse().ok()),
            None => (task(head)?, None),
        };
        Some(task.record(cpu, time, event(&line[at + 1..])?))
    })
}

/// `event: text`, behind what some writers put before it.
fn event(rest: &str) -> Option<(&str, &str)> {
    let mut rest = rest.trim_start();
    if let Some(difference) = rest.strip_prefix("(+") {
        rest = difference.split_once(')')?.1.trim_start();
    }
    let end = rest.find([' ', '\t']).unwrap_or(rest.len());
    let (mut word, mut text) = rest.split_at(end);
    if !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit()) {
        // The period of a sample.
        text = text.trim_start();
        (word, text) = text.split_at(text.find([' ', '\t']).unwrap_or(text.len()));
    }
    let name = word.strip_suffix(':')?;
    let name = name.rsplit_once(':').map_or(name, |(_, name)| name);
    (!name.is_empty()).then(|| (name, without_place(text.trim_start())))
}

/// A text without ` [29293:0xd78:40]`, which `trace-cmd report --debug` puts behind it: where the event is in its buffer.
fn without_place(text: &str) -> &str {
    let place = || {
        let (text, place) = text.strip_suffix(']')?.rsplit_once(" [")?;
        let mut numbers = place.split(':');
        let (delta, offset, size) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        (digits(delta) && offset.starts_with("0x") && digits(size) && numbers.next().is_none())
            .then_some(text)
    };
    place().unwrap_or(text)
}

struct Task<'a> {
    comm: &'a str,
    pid: u32,
    tgid: Option<u32>,
}

impl<'a> Task<'a> {
    fn record(self, cpu: Option<u32>, time: Time, (event, text): (&'a str, &'a str)) -> Record<'a> {
        Record { comm: self.comm, pid: self.pid, tgid: self.tgid, cpu, time, event, body: Body::Text(text) }
    }
}

/// `comm-pid`, with thread groups shown `comm-pid (tgid)`; of perf `comm pid`, `comm tgid/pid`.
fn task(text: &str) -> Option<Task<'_>> {
    let mut text = text.trim_end();
    let mut tgid = None;
    if let Some(inside) = text.strip_suffix(')') {
        let (rest, group) = inside.rsplit_once('(')?;
        (text, tgid) = (rest.trim_end(), group.trim().parse().ok());
    }
    let (comm, pid) = match text.rsplit_once([' ', '\t']) {
        Some((comm, ids)) if ids.bytes().all(|b| b.is_ascii_digit() || b == b'/') => {
            let (group, pid) = ids.split_once('/').map_or((None, ids), |(group, pid)| (Some(group), pid));
            tgid = tgid.or(group.and_then(|group| group.parse().ok()));
            (comm.trim_end(), pid)
        }
        _ => text.rsplit_once('-')?,
    };
    // `instance:  comm`.
    let comm = comm.split_once(": ").map_or(comm, |(_, comm)| comm).trim_start();
    Some(Task { comm, pid: pid.parse().ok()?, tgid })
}

/// `7.431541`, with nine digits `7.431541265`, of a clock that counts `7431541265`; of latency tracers `123us`.
fn time(stamp: &str) -> Option<Time> {
    match stamp.split_once('.') {
        Some((seconds, fraction)) => {
            let micros = seconds.parse::<u64>().ok()?.checked_mul(1_000_000)?;
            Some(Time::Micros(micros.checked_add(fraction_micros(fraction)?)?))
        }
        None => {
            let micros = stamp.trim_end_matches(['!', '+', '#', '*', '@', '$']).strip_suffix("us");
            match micros {
                Some(micros) => micros.parse().ok().map(Time::Micros),
                None if stamp.bytes().all(|b| b.is_ascii_digit()) => stamp.parse().ok().map(Time::Ticks),
                None => None,
            }
        }
    }
}

/// A fraction of a second as microseconds, rounded as the kernel does.
/// See: kernel/trace/trace.h ns2usecs() (6.12)
fn fraction_micros(fraction: &str) -> Option<u64> {
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = fraction.get(..6).unwrap_or(fraction);
    let micros = digits.parse::<u64>().ok()? * 10u64.pow(6 - digits.len() as u32);
    let up = fraction.as_bytes().get(6).is_some_and(|digit| *digit >= b'5');
    Some(micros + u64::from(up))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<'a>(record: &Record<'a>) -> &'a str {
        match record.body {
            Body::Text(text) => text,
            Body::Raw(_) => panic!("{} is a line", record.event),
        }
    }

    fn event(line: &str) -> Record<'_> {
        match classify(line) {
            Line::Event(record) => record,
            _ => panic!("{line} is an event"),
        }
    }

    /// What each writer prints of the same event.
    #[test]
    fn lines_of_all_writers() {
        let text = "vcpu 0 reason npf rip 0xfff0 info1 0x0";
        let head = [
            "       CPU 0/KVM-4992    [000] d..1.   437.568747: kvm_exit: ",
            "CPU 0/KVM-4992 (  4990) [000] d..1.   437.568747: kvm_exit: ",
            " CPU 0/KVM-4992  [000]   437.568747: kvm_exit:             ",
            " CPU 0/KVM-4992  [000]   437.568746500: kvm_exit:             ",
            "CPU 0/KV-4992    0d..1.   437.568747: kvm_exit:             ",
            " CPU 0/KVM-4992  [000]   437.568747: (+82)   kvm_exit:             ",
            "gt:        CPU 0/KVM-4992  [000]   437.568747: kvm_exit:             ",
            "       CPU 0/KVM  4992 [000]   437.568747:            kvm:kvm_exit: ",
            "       CPU 0/KVM  4990/4992  [000]   437.568747:          1 kvm:kvm_exit: ",
            "       CPU 0/KVM  4992   437.568747: kvm:kvm_exit: ",
            ">> CPU 0/KVM-4992    [000] d..1.   437.568747: kvm_exit: ",
        ];
        for head in head {
            let record = event(&[head, text].concat()).pid;
            let line = [head, text].concat();
            let r = event(&line);
            assert_eq!(
                (record, r.time, r.event, self::text(&r)),
                (4992, Time::Micros(437_568_747), "kvm_exit", text),
                "{line}"
            );
            assert_eq!((r.named_vcpu(), r.vcpu_of_comm()), (Some(0), Some(0)), "{line}");
            assert!(
                r.cpu == Some(0) || !line.contains(['[', 'd']) || head.contains("KVM  4992   437"),
                "{line}"
            );
            assert!(matches!(r.tgid, None | Some(4990)), "{line}");
        }
    }

    #[test]
    fn names_hold_anything() {
        let groups = event(" a-b [1] c-17  (  5) [003] .... 1.5: kvm_entry: vcpu 2, rip 0x1");
        assert_eq!((groups.comm, groups.pid, groups.tgid), ("a-b [1] c", 17, Some(5)));
        assert_eq!(
            (groups.cpu, groups.time, groups.named_vcpu()),
            (Some(3), Time::Micros(1_500_000), Some(2))
        );
        let colons = event("kworker/1:2-40   1.....  12.000001: kvm_fpu: load");
        assert_eq!((colons.comm, colons.pid, text(&colons)), ("kworker/1:2", 40, "load"));
        let debug = event(" x-1 [000] 7.916539: kvm_fpu: load [29293:0xd78:40]");
        assert_eq!(text(&debug), "load");
        let empty = event(" x-1 [000] ..... 5.000001: kvm_ple:");
        assert_eq!((empty.event, text(&empty)), ("kvm_ple", ""));
    }

    #[test]
    fn clocks_that_count() {
        let tsc = event(" CPU 1/KVM-9 [001] d..1. 7431541265: kvm_entry: vcpu 1, rip 0x1000");
        assert_eq!(tsc.time, Time::Ticks(7_431_541_265));
        let latency = event("CPU 1/KV-9 1d..2 123us+: kvm_fpu: load");
        assert_eq!((latency.time, latency.cpu), (Time::Micros(123), Some(1)));
    }

    #[test]
    fn lines_that_are_no_events() {
        let lost = |line| match classify(line) {
            Line::Lost(Lost { cpu, events }) => (cpu, events),
            _ => panic!("{line} tells of a loss"),
        };
        assert_eq!(lost("CPU:0 [LOST 123 EVENTS]"), (Some(0), 123));
        assert_eq!(lost("CPU:1 [EVENTS DROPPED]"), (Some(1), 0));
        assert_eq!(lost("CPU:12 [7 EVENTS DROPPED]"), (Some(12), 7));
        assert_eq!(lost("CPU 3: 1234 EVENTS LOST"), (Some(3), 1234));
        for line in [
            "cpus=4",
            "version = 7",
            "# tracer: nop",
            "CPU 1 is empty",
            "\tffffffff8104f45c kvm_exit+0x1c ([kernel])",
            ">",
        ] {
            assert!(matches!(classify(line), Line::Comment), "{line}");
        }
        for line in [
            "hello",
            "a-1 [000",
            "a-1 [000] 1.0",
            "a-1 [x] 1.0: e: t",
            "[000] 1.0: e: t",
            "a-1 [000] 1.x: e: t",
        ] {
            assert!(matches!(classify(line), Line::Unreadable), "{line}");
        }
    }
}
