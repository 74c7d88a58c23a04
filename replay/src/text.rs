//! Exits and notes on one line.

use vmtape_arch::{
    exit::{Exit, Isa, Resume, ResumeKind, reason_name},
    note::Note,
};
use vmtape_traces::{ExitGroup, event::End};

/// The name of an exit's reason.
pub fn reason(exit: &Exit) -> String {
    reason_name(exit.isa, exit.reason).map_or_else(|| format!("reason {:#x}", exit.reason), str::to_owned)
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
        reason(&e.exit),
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
    lines.extend(group.notes.iter().map(|note| format!("    {}", note_line(note))));
    lines
}

/// A note in the words of its trace event.
pub fn note_line(note: &Note) -> String {
    let kind = note.to_raw().kind;
    let rw = |write: bool| if write { "write" } else { "read" };
    let text = match *note {
        Note::PageFault { address, code } => format!("address {address:#x} error_code {code:#x}"),
        Note::Cpuid { function, index, eax, ebx, ecx, edx, .. } => {
            format!("func {function:x} idx {index:x} rax {eax:x} rbx {ebx:x} rcx {ecx:x} rdx {edx:x}")
        }
        Note::Msr { write, index, data, exception } => {
            let fault = if exception { " (#GP)" } else { "" };
            format!("msr_{} {index:x} = {data:#x}{fault}", rw(write))
        }
        Note::Cr { write, number, value } => format!("cr_{} {number} = {value:#x}", rw(write)),
        Note::Pio { write, port, size, count, value } => {
            format!("pio_{} at {port:#x} size {size} count {count} val {value:#x}", rw(write))
        }
        Note::Mmio { kind, len, gpa, value } => {
            let kind = ["unsatisfied-read", "read", "write"].get(usize::from(kind)).unwrap_or(&"?");
            format!("mmio {kind} len {len} gpa {gpa:#x} val {value:#x}")
        }
        Note::InjException { vector, has_error, error_code, reinjected } => {
            let code = if has_error { format!(" ({error_code:#x})") } else { String::new() };
            format!("{vector}{code}{}", if reinjected { " [reinjected]" } else { "" })
        }
        Note::InjVirq { vector, .. } => format!("IRQ {vector:#x}"),
        Note::EmulateInsn { rip, len, insn, failed, .. } => {
            let bytes: Vec<_> =
                insn.to_le_bytes().iter().take(len.into()).map(|byte| format!("{byte:02x}")).collect();
            format!("{rip:x}: {}{}", bytes.join(" "), if failed { " failed" } else { "" })
        }
        Note::UserspaceExit { reason, errno } => format!("reason {reason} errno {errno}"),
        Note::SpteRequested { gfn, level, .. } => format!("gfn {gfn:x} level {level}"),
        Note::PagetableWalk { address, pferr } => format!("addr {address:x} pferr {pferr:x}"),
        Note::PagingElement { pte, level } => format!("pte {pte:x} level {level}"),
        Note::WalkerError { pferr } => format!("pferr {pferr:x}"),
        Note::SiliconStep { gpa, before, after, level } => {
            format!("level {level} at {gpa:#x}: {before:#x} -> {after:#x}")
        }
        Note::Entry { rip, .. } => format!("rip {rip:#x}"),
        ref other => {
            let raw = other.to_raw();
            raw.args.iter().map(|arg| format!("{arg:#x}")).collect::<Vec<_>>().join(" ")
        }
    };
    format!("{kind}: {text}")
}

/// How a run ended, in words.
pub fn end_text(end: &End) -> String {
    match end {
        End::DebugExit { status } => format!("the guest left with status {status}"),
        End::Shutdown { reason } => format!("shutdown: {reason}"),
        End::Idle => "all vCPUs are halted for ever".into(),
        End::Fatal { vcpu, resume, reason } => {
            format!("vCPU {vcpu} cannot go on: {} {reason}", resume_text(resume))
        }
        End::Limit { what } => format!("limit reached: {what}"),
        End::NoProgress { vcpu, repeats, reason } => {
            format!("vCPU {vcpu} makes no progress: {repeats} equal exits: {reason}")
        }
        End::Cut => "the recording stops here".into(),
    }
}
