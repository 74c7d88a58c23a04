//! Lines for what no tracepoint has: `vmtape_KIND: words for people | the event's tag and words[; bytes]`.

use crate::{
    Metadata,
    event::{Data, Event, Fault, FaultIn, NO_VCPU, PcpuEvent, RegisterChanges, Registers, Skip},
    flat::{Clock, Flat, tag},
    registers::{Register, numbered::CHAIN},
};
use std::fmt::Write;
use vmtape_arch::{
    event::Event as Injected,
    exit::{Exit, StimulusKind},
    level::Level,
    note::Note,
};

/// The first of an exit's words that `kvm_exit` does not show.
const BEYOND_KVM_EXIT: usize = 8;
/// The words before it that it shows in part: stimulus, trap.
const PARTLY: [usize; 2] = [3, 4];

/// What kind of event it is, and what it tells, in words. `names`: of fault points and rules.
fn summary(event: &Event, names: &Metadata) -> (&'static str, String) {
    match event {
        Event::Fault(fault) => ("fault", fault_text(fault, names)),
        Event::Registers(registers) => ("registers", registers_text(registers)),
        Event::Read { hpa, data } => ("read", format!("{hpa:#x}: {}", data_text(data))),
        Event::Note { place, note, .. } => {
            let (kind, text) = note_text(note, names);
            (kind, text + &super::place_text(*place))
        }
        Event::Resume { resume, changes, .. } => ("resume", resume_text(resume) + &changes_text(*changes)),
        Event::Entry(entry) => ("entry", entry.to_string()),
        Event::Input { source, value, .. } => ("input", format!("{source} {value:#x}")),
        Event::FaultIn(page) => ("fault_in", fault_in_text(page)),
        Event::Pcpu(event) => ("pcpu", pcpu_text(event)),
        Event::Control { control, .. } => ("control", control.to_string()),
        Event::StateHash { exits, hash, .. } => ("state_hash", format!("after {exits} exits {hash:016x}")),
        Event::Milestone(m) => ("milestone", format!("after {} exits {:016x}", m.exits, m.hash)),
        Event::Devices { accesses, hash, .. } => ("devices", format!("{accesses} accesses {hash:016x}")),
        Event::End { end, .. } => ("end", end.to_string()),
        Event::Moment { icount, .. } => ("moment", format!("at {icount}")),
        Event::Exit(_) | Event::Line { .. } => ("event", String::new()),
    }
}

/// The words of an event that no tracepoint has.
pub fn own_text(event: &Event, names: &Metadata) -> String {
    summary(event, names).1
}

/// The event's name and text.
pub fn text(event: &Event, names: &Metadata) -> (String, String) {
    let (kind, summary) = summary(event, names);
    let mut flat = Flat::default();
    flat.set(event, &mut Clock::default());
    let mut line = format!("{summary} | {:x}", flat.tag);
    for word in &flat.words {
        let _ = write!(line, " {word:x}");
    }
    if !flat.blob.is_empty() {
        line.push(';');
        flat.blob.iter().for_each(|byte| _ = write!(line, "{byte:02x}"));
    }
    (format!("{}{kind}", super::OWN), line)
}

/// What `kvm_exit` does not show of an exit, if there is any.
pub fn stimulus(exit: &Event) -> Option<String> {
    let Event::Exit(event) = exit else { return None };
    let mut flat = Flat::default();
    flat.set(exit, &mut Clock::default());
    let mut line = format!("{} |", stimulus_text(&event.exit));
    let mut any = false;
    for (i, word) in flat.words.iter().enumerate() {
        let shown = if PARTLY.contains(&i) { word & 0xffff_ffff } else { 0 };
        if (i >= BEYOND_KVM_EXIT || PARTLY.contains(&i)) && word ^ shown != 0 {
            let _ = write!(line, " {i}={word:x}");
            any = true;
        }
    }
    any.then_some(line)
}

/// Puts what [`stimulus`] wrote back into an exit.
pub fn merge_stimulus(exit: &mut Event, text: &str) -> Option<()> {
    let icount = match exit {
        Event::Exit(event) => event.icount,
        _ => return None,
    };
    let mut flat = Flat::default();
    flat.set(exit, &mut Clock { icount, exits: 0 });
    for pair in text.rsplit_once('|')?.1.split_whitespace() {
        let (index, word) = pair.split_once('=')?;
        *flat.words.get_mut(index.parse::<usize>().ok()?)? = u64::from_str_radix(word, 16).ok()?;
    }
    *exit = flat.event(&mut Clock { icount, exits: 0 }).ok()?;
    Some(())
}

/// The inverse of [`text`].
pub fn parse(text: &str) -> Option<Event> {
    let exact = text.rsplit_once(" | ")?.1;
    let (words, blob) = exact.split_once(';').unwrap_or((exact, ""));
    let mut words = words.split_whitespace().map(|word| u64::from_str_radix(word, 16).ok());
    let tag = words.next()??;
    let words = words.collect::<Option<Vec<_>>>()?;
    let (pairs, rest) = blob.trim_end().as_bytes().as_chunks::<2>();
    if tag == tag::EXIT || !rest.is_empty() {
        return None;
    }
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let blob = pairs.iter().map(byte).collect::<Option<Vec<_>>>()?;
    Flat { tag, words, blob }.event(&mut Clock::default()).ok()
}

/// A fault in words.
pub fn fault_text(fault: &Fault, names: &Metadata) -> String {
    let Fault { vcpu, point, occurrence, a, b, answer, rule, skipped, .. } = *fault;
    let name = names.fault_point(point).map_or_else(|| format!("point {point:#x}"), str::to_owned);
    let whose = if vcpu == NO_VCPU { String::new() } else { format!(" of vcpu {vcpu}") };
    let by = if rule == 0 { String::new() } else { format!(" (rule {rule})") };
    let answer = match skipped {
        Skip::NONE => format!("{answer:#x}"),
        why => format!("skipped, {why}"),
    };
    format!("{name} #{occurrence}{whose} a {a:#x} b {b:#x}: {answer}{by}")
}

/// A page that was waited for in words.
pub fn fault_in_text(page: &FaultIn) -> String {
    format!("page {:#x}: {}", page.gpa, page.answer)
}

/// An event of a physical CPU in words.
pub fn pcpu_text(event: &PcpuEvent) -> String {
    let PcpuEvent { kind, cpu, vcpu, result, .. } = *event;
    let whose = if vcpu == NO_VCPU { String::new() } else { format!(" vcpu {vcpu}") };
    let failed = if result == 0 { String::new() } else { format!(": {result}") };
    format!("{kind} cpu {cpu}{whose}{failed}")
}

fn registers_text(registers: &Registers) -> String {
    let mut values = registers.values.iter().copied();
    let mut next = || values.next().unwrap_or(0);
    let mut words = Vec::new();
    for &(register, name) in Register::NAMED.iter().filter(|(bit, _)| registers.mask & bit.mask() != 0) {
        words.push(match register {
            Register::CS => format!("{name}={:x} cs.base={:x}", next(), next()),
            Register::FPU => match (next(), next(), next()) {
                (CHAIN, chain, _) => format!("changes={chain:016x}"),
                (number, low, high) => format!("{name}{number}={high:016x}{low:016x}"),
            },
            _ => format!("{name}={:x}", next()),
        });
    }
    words.join(" ")
}

fn data_text(data: &Data) -> String {
    match data {
        Data::U64(value) => format!("{value:016x}"),
        Data::U32(value) => format!("{value:08x}"),
        Data::Bytes(bytes) => bytes.iter().take(16).map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" "),
    }
}

fn note_text(note: &Note, names: &Metadata) -> (&'static str, String) {
    match note {
        Note::SiliconStep { gpa, before, after, level } => {
            let change = if before == after { String::new() } else { format!(" -> {after:x}") };
            ("silicon_step", format!("level {level} at {gpa:x}: {before:x}{change}"))
        }
        Note::MemoryType { gva, gpa, memory_type, guest, icount } => {
            let text =
                format!("{memory_type} at {gva:x} (gpa {gpa:x}), guest {guest}, from instruction {icount}");
            ("memory_type", text)
        }
        Note::Rule { id } => ("rule", names.rule(*id).map_or_else(|| id.to_string(), str::to_owned)),
        Note::Warning { id, value } => ("warning", format!("{id} {value:#x}")),
        other => ("note", format!("{}", other.to_raw().kind)),
    }
}

/// What an exit changed in registers, behind how its handling ended.
pub fn changes_text(changes: RegisterChanges) -> String {
    if changes == RegisterChanges::NONE { String::new() } else { format!(", changes {changes}") }
}

fn resume_text(resume: &vmtape_arch::exit::Resume) -> String {
    let mut text = resume.kind.to_string();
    if resume.errno != 0 {
        let _ = write!(text, " {}", resume.errno);
    }
    if resume.data != [0; 6] {
        let _ = write!(text, " {:x?}", resume.data);
    }
    text
}

/// What the guest did that made it exit, in words.
pub fn stimulus_text(exit: &Exit) -> String {
    let mut text = String::new();
    match exit.stimulus {
        StimulusKind::SENSITIVE => {
            let _ = write!(text, "{} value {:#x}", exit.insn.kind, exit.insn.value);
        }
        StimulusKind::EXCEPTION => {
            let _ = write!(text, "{} ({:#x})", exit.exception.vector, exit.exception.error_code);
        }
        _ => {
            let access = &exit.access;
            let user = if access.user.is_set() { "user" } else { "supervisor" };
            let _ = write!(text, "{} {user} {} gva {:#x}", access.kind, access.size, access.gva);
        }
    }
    if exit.level != Level::L1 {
        let _ = write!(text, " of {}", exit.level);
    }
    if exit.gpa != 0 {
        let _ = write!(text, " gpa {:#x}", exit.gpa);
    }
    if exit.access.delivering != Injected::default() {
        let _ = write!(text, " delivering {:#010x}", exit.access.delivering.vmx_info());
    }
    text
}
