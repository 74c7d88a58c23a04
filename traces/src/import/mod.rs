//! Tapes from recordings of the real KVM: ftrace's text, as `trace`, `trace_pipe` and `trace-cmd report` give it.
//!
//! Between a vCPU's `kvm_exit` and its `kvm_entry` lines become one exit with its notes, whatever other tasks printed in
//! between. Lines without a decoded form are kept as [`Event::Line`]; nothing is dropped silently: [`Summary`] counts
//! every line. The clock of an imported tape is the trace's, in microseconds since its first event.

mod cpuid;
mod group;
mod line;
mod note;
mod source;

pub use cpuid::cpuid_table;
pub use source::Source;

use crate::{
    Event, Metadata, Options,
    event::{End, NO_VCPU},
    text::TRACER,
    writer::Writer,
};
use group::Groups;
use line::Line;
use std::{collections::BTreeMap, io, path::Path};

/// The origin in the metadata of imported tapes.
pub const ORIGIN: &str = "ftrace";

/// An error of an import.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{trace}: {cause}")]
    Io { trace: String, cause: io::Error },
    #[error("{trace}: line {line} is longer than {limit} bytes: not a text trace")]
    LongLine { trace: String, line: u64, limit: usize },
    #[error("{trace}: a trace.dat file; give the text that `trace-cmd report` makes of it")]
    TraceDat { trace: String },
    #[error("{trace}: is no regular file, and a trace is read twice: copy it to a file first")]
    Pipe { trace: String },
    #[error("{trace}: none of its {lines} lines is an event of ftrace")]
    NoEvents { trace: String, lines: u64 },
    #[error(transparent)]
    Tape(#[from] crate::Error),
}

/// What became of the lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    pub lines: u64,
    /// Header lines and empty ones.
    pub comments: u64,
    /// Lines that say that events were lost, and how many those were.
    pub lost_lines: u64,
    pub lost_events: u64,
    /// Lines that are no event at all. They are skipped.
    pub unreadable: u64,
    /// Per event: lines decoded.
    pub decoded: BTreeMap<String, u64>,
    /// Per event: lines kept as they are.
    pub kept: BTreeMap<String, u64>,
    pub exits: u64,
    pub vcpus: u32,
}

impl Summary {
    /// Whether every line is in one of the counts.
    pub fn accounts_for_all(&self) -> bool {
        let events: u64 = self.decoded.values().chain(self.kept.values()).sum();
        self.lines == self.comments + self.lost_lines + self.unreadable + events
    }
}

/// Reads a trace and gives its events to `sink`.
pub fn events(source: &Source, sink: &mut dyn FnMut(Event) -> Result<(), Error>) -> Result<Summary, Error> {
    let tasks = vcpus_by_task(source)?;
    let mut summary =
        Summary { vcpus: tasks.values().max().map_or(0, |most| most + 1), ..Default::default() };
    let mut groups = Groups::default();
    let mut first = None;
    source.lines(&mut |text| {
        summary.lines += 1;
        if text.starts_with(TRACER) {
            groups.in_order = true;
            first = Some(0);
        }
        match line::classify(text) {
            Line::Comment => summary.comments += 1,
            Line::Lost(count) => {
                summary.lost_lines += 1;
                summary.lost_events += count;
            }
            Line::Unreadable => summary.unreadable += 1,
            Line::Event(record) => {
                let vcpu = tasks.get(&record.pid).copied().unwrap_or(NO_VCPU);
                let clock = record.micros.wrapping_sub(*first.get_or_insert(record.micros));
                let decoded = groups.record(vcpu, clock, &record, &mut *sink)?;
                let count = if decoded { &mut summary.decoded } else { &mut summary.kept };
                *count.entry(record.event.to_owned()).or_default() += 1;
            }
        }
        Ok(())
    })?;
    if summary.decoded.is_empty() && summary.kept.is_empty() {
        return Err(Error::NoEvents { trace: source.name(), lines: summary.lines });
    }
    summary.exits = groups.finish(sink)?;
    Ok(summary)
}

/// Reads a trace into a tape.
pub fn to_tape(trace: &Path, tape: &Path, options: Options) -> Result<Summary, Error> {
    let metadata =
        Metadata { origin: ORIGIN.to_owned(), guest: trace.display().to_string(), ..Default::default() };
    let source = Source::Path(trace.to_owned());
    let mut writer = Writer::create(tape, &metadata, &[], options)?;
    let (mut ended, mut icount) = (false, 0);
    let summary = events(&source, &mut |event| {
        match &event {
            Event::Exit(exit) => icount = exit.icount,
            Event::End { .. } => ended = true,
            _ => {}
        }
        writer.push(event);
        Ok(())
    });
    match summary {
        Ok(summary) => {
            if !ended {
                writer.push(Event::End { icount, exits: summary.exits, end: End::Cut });
            }
            writer.finish()?;
            Ok(summary)
        }
        Err(error) => {
            writer.discard();
            Err(error)
        }
    }
}

/// Which task is which vCPU: by QEMU's thread names, by the vCPU that events name, or, in a trace where none does, by the
/// order in which tasks first did what only a vCPU does.
fn vcpus_by_task(source: &Source) -> Result<BTreeMap<u32, u32>, Error> {
    let mut named = BTreeMap::new();
    let mut unnamed = Vec::new();
    source.lines(&mut |text| {
        if let Line::Event(record) = line::classify(text) {
            if let Some(vcpu) = record.vcpu() {
                named.entry(record.pid).or_insert(vcpu);
            } else if record.is_of_a_vcpu() && !unnamed.contains(&record.pid) {
                unnamed.push(record.pid);
            }
        }
        Ok(())
    })?;
    if named.is_empty() {
        named = unnamed.into_iter().zip(0..).collect();
    }
    Ok(named)
}
