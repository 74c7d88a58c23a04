//! Exits, notes and any other event on one line.

use vmtape_arch::{
    exit::{Exit, Isa, Resume, ResumeKind, reason_name},
    level::Level,
    note::Note,
};
use vmtape_traces::{
    Event, ExitGroup, Metadata,
    event::{End, ExitEvent},
    text::{
        changes_text, fault_in_text, fault_text, note_text, own_text, pcpu_text, place_text, stimulus_text,
    },
};

/// The name of an exit's reason.
pub fn reason(exit: &Exit) -> String {
    reason_name(exit.isa, exit.reason).map_or_else(|| format!("reason {:#x}", exit.reason), str::to_owned)
}

/// ` of L2`, or nothing for L1.
pub fn of_level(level: Level) -> String {
    if level == Level::L1 { String::new() } else { format!(" of {level}") }
}

/// The level that an exit left, unless it is L1.
pub fn nested(exit: &ExitEvent) -> Option<String> {
    (exit.exit.level != Level::L1).then(|| exit.exit.level.to_string())
}

/// An exit with where and why.
pub fn exit_line(group: &ExitGroup) -> String {
    let e = &group.exit;
    let mut line = format!(
        "exit {} vcpu {} icount {} rip {:#x} {} info1 {:#x} info2 {:#x}",
        group.number,
        e.vcpu,
        e.icount,
        e.rip,
        reason(&e.exit) + &of_level(e.exit.level),
        e.exit.info1,
        e.exit.info2
    );
    if e.exit.intr_info >> 31 != 0 {
        line += &format!(" intr_info {:#x} error_code {:#x}", e.exit.intr_info, e.exit.error_code);
    }
    if e.exit.gpa != 0 && e.exit.isa == Isa::VMX {
        line += &format!(" gpa {:#x}", e.exit.gpa);
    }
    if let Some(resume) = &group.resume
        && resume.kind != ResumeKind::RESUME
    {
        line += &format!(" -> {}", resume_text(resume));
    }
    line
}

/// The end of an exit's handling.
pub fn resume_text(resume: &Resume) -> String {
    match resume.kind {
        ResumeKind::ERRNO => format!("errno {}", resume.errno),
        ResumeKind::INTERNAL_ERROR => format!("{} suberror {}", resume.kind, resume.data[0]),
        ResumeKind::MEMORY_FAULT => format!("{} gpa {:#x}", resume.kind, resume.data[1]),
        kind => kind.to_string(),
    }
}

/// The last `count` groups, each exit with its notes below it.
pub fn context<'a>(groups: impl DoubleEndedIterator<Item = &'a ExitGroup>, count: usize) -> Vec<String> {
    let mut last: Vec<_> = groups.rev().take(count).collect();
    last.reverse();
    last.into_iter().flat_map(group_lines).collect()
}

/// An exit and what was done about it.
pub fn group_lines(group: &ExitGroup) -> Vec<String> {
    let mut lines = vec![exit_line(group)];
    let (vcpu, rip) = (group.exit.vcpu, group.exit.rip);
    // Rules are told apart, by name.
    let notes = group.notes.iter().filter(|note| !matches!(note, Note::Rule { .. }));
    lines.extend(notes.map(|note| format!("    {}", note_line(note, vcpu, rip))));
    lines
}

/// A note in the words of its trace event; `vcpu` and `rip` are those of its exit.
pub fn note_line(note: &Note, vcpu: u32, rip: u64) -> String {
    let kind = note.to_raw().kind;
    let text = note_text(note, vcpu, rip).unwrap_or_else(|| match *note {
        Note::SiliconStep { gpa, before, after, level } if before == after => {
            format!("level {level} at {gpa:#x}: {before:#x}")
        }
        Note::SiliconStep { gpa, before, after, level } => {
            format!("level {level} at {gpa:#x}: {before:#x} -> {after:#x}")
        }
        Note::MemoryType { gva, gpa, memory_type, guest, icount } => {
            format!("{memory_type} at {gva:#x} (gpa {gpa:#x}), guest {guest}, from instruction {icount}")
        }
        Note::Rule { id } => id.to_string(),
        ref other => {
            let raw = other.to_raw();
            raw.args.iter().map(|arg| format!("{arg:#x}")).collect::<Vec<_>>().join(" ")
        }
    });
    format!("{kind}: {text}")
}

/// How a run ended, in a word that signatures are made of.
pub fn end_kind(end: &End) -> String {
    match end {
        End::DebugExit { status } => format!("status-{status}"),
        End::Shutdown { .. } => "shutdown".into(),
        End::Idle { .. } => "idle".into(),
        End::Fatal { resume, .. } => resume_text(resume),
        End::Limit { .. } => "limit".into(),
        End::NoProgress { .. } => "no-progress".into(),
        End::Cut => "cut".into(),
        End::Interrupted => "interrupted".into(),
    }
}

/// Whether two runs ended in the same way, whenever they did.
pub fn same_end(a: &End, b: &End) -> bool {
    end_kind(a) == end_kind(b)
}

/// How a run ended, in words.
pub fn end_text(end: &End) -> String {
    end.to_string()
}

/// What an event is, without its numbers.
pub fn event_kind(event: &Event) -> String {
    match event {
        Event::Exit(exit) => reason(&exit.exit),
        Event::Note { note, .. } => note.to_raw().kind.to_string(),
        Event::Resume { resume, .. } => resume.kind.to_string(),
        Event::Entry(_) => "entry".into(),
        Event::Registers(_) => "registers".into(),
        Event::Read { .. } => "read".into(),
        Event::Input { source, .. } => source.to_string(),
        Event::Fault(_) => "fault".into(),
        Event::FaultIn(_) => "fault-in".into(),
        Event::Pcpu(_) => "pcpu".into(),
        Event::Control { .. } => "control".into(),
        Event::StateHash { .. } => "state-hash".into(),
        Event::Milestone(_) => "milestone".into(),
        Event::Devices { .. } => "devices".into(),
        Event::Line { .. } => "line".into(),
        Event::Moment { .. } => "moment".into(),
        Event::End { .. } => "end".into(),
    }
}

/// Any event on one line.
pub fn event_text(event: &Event) -> String {
    named_event_text(event, &Metadata::default())
}

/// Any event on one line, with the names that the tape has for its numbers.
pub fn named_event_text(event: &Event, names: &Metadata) -> String {
    match event {
        Event::Exit(exit) => {
            format!(
                "exit {} at rip {:#x} icount {}: {}",
                reason(&exit.exit),
                exit.rip,
                exit.icount,
                exit_words(&exit.exit)
            )
        }
        Event::Note { vcpu, place, note } => note_line(note, *vcpu, 0) + &place_text(*place),
        Event::Resume { resume, changes, .. } => resume_text(resume) + &changes_text(*changes),
        Event::Entry(entry) => format!("entry at rip {:#x}: {entry}", entry.rip),
        Event::Control { control, .. } => control.to_string(),
        Event::Devices { icount, accesses, hash } => {
            format!("what devices saw in {icount} instructions: {accesses} accesses, hash {hash:016x}")
        }
        Event::FaultIn(page) => fault_in_text(page),
        Event::Pcpu(event) => pcpu_text(event),
        Event::Fault(fault) => format!("fault {}", fault_text(fault, names)),
        Event::End { icount, end, .. } => format!("after {icount} instructions, {end}"),
        Event::Line { text, .. } => text.clone(),
        other => format!("{}: {}", event_kind(other), own_text(other, names)),
    }
}

/// What silicon tells of an exit, and what it is about.
fn exit_words(exit: &Exit) -> String {
    let gpa = if exit.gpa == 0 { String::new() } else { format!(" gpa {:#x}", exit.gpa) };
    format!(
        "info1 {:#x} info2 {:#x} intr_info {:#x} error_code {:#x}{gpa}; {}",
        exit.info1,
        exit.info2,
        exit.intr_info,
        exit.error_code,
        stimulus_text(exit)
    )
}
