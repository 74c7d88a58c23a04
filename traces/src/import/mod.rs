//! Tapes from recordings of the real KVM: traces as tracefs, trace-cmd and perf write them.
//!
//! Between a vCPU's `kvm_exit` and its `kvm_entry` lines become one exit with its notes, whatever other tasks printed in
//! between. Lines without a decoded form are kept as [`Event::Line`]; nothing is dropped silently: [`Summary`] counts
//! every line. The clock of an imported tape is the trace's own: microseconds, or ticks of a clock that counts.

mod binary;
mod cpuid;
mod dat;
mod fields;
mod group;
mod line;
mod name;
mod note;
mod perf;
mod plugin;
mod source;
mod survey;
mod wrap;

pub use cpuid::{absent_leaves, cpuid_table};
pub(crate) use note::addresses;
pub use source::Source;
pub use survey::VM_SHIFT;

use crate::{Event, Metadata, Options, event::End, writer::Writer};
use group::Groups;
use line::Line;
use schemars::JsonSchema;
use source::Opened;
use std::{collections::BTreeMap, io, path::Path};
use survey::Survey;

/// The origin in the metadata of imported tapes.
pub const ORIGIN: &str = "ftrace";
/// The origin of a tape that was made of another one's text.
const ORIGIN_OF_TEXT: &str = "vmtape text";
/// The name of a note in their metadata, present if the clock is not in microseconds.
pub const CLOCK: &str = "clock";
/// The name of a note in their metadata, present if exits lack fields.
pub const NOT_TOLD: &str = "kvm_exit does not tell";

/// An error of an import.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{trace}: {cause}")]
    Io { trace: String, cause: io::Error },
    #[error("{trace}: line {line} is longer than {limit} bytes: not a text trace")]
    LongLine { trace: String, line: u64, limit: usize },
    #[error("{trace}: a trace.dat file, but {cause}")]
    TraceDat { trace: String, cause: dat::Error },
    #[error(transparent)]
    Dat(#[from] dat::Error),
    #[error("{trace}: a perf.data file, but {cause}")]
    PerfData { trace: String, cause: perf::Error },
    #[error(transparent)]
    Perf(#[from] perf::Error),
    #[error("{trace}: is no regular file, and a trace is read twice: copy it to a file first")]
    Pipe { trace: String },
    #[error("{trace}: none of its {lines} lines is an event of ftrace")]
    NoEvents { trace: String, lines: u64 },
    #[error(
        "{trace}: no event of KVM among its {events} events was understood, so there is nothing to compare"
    )]
    NothingOfKvm { trace: String, events: u64 },
    #[error(transparent)]
    Tape(#[from] crate::Error),
}

/// Names of events that are counted one by one.
const MOST_NAMES: usize = 4096;
/// The count of all others.
const OTHERS: &str = "events of other names";

/// What became of the lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, JsonSchema)]
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
    /// Virtual machines in the trace.
    pub vms: u32,
    /// Tasks that run a vCPU of which the trace does not tell the number: numbered in order of appearance.
    pub numbered: u64,
    /// `kvm_exit` tells neither `intr_info` nor `error_code`.
    pub terse: bool,
    /// The clock counts in a unit of its own.
    pub ticks: bool,
    /// Events that are older than the one before them of the same vCPU.
    pub backwards: u64,
    /// Which vCPUs are of one machine the trace does not tell, and several vCPUs have the same number.
    pub machines_guessed: bool,
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
    let opened = source.open()?;
    let survey = survey::survey(&opened)?;
    read(&opened, &survey, sink, &mut |_| ())
}

fn read(
    source: &Opened<'_>,
    survey: &Survey,
    sink: &mut dyn FnMut(Event) -> Result<(), Error>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, Error> {
    let mut summary = Summary {
        vcpus: survey.vcpus,
        vms: survey.vms,
        numbered: survey.numbered,
        terse: survey.terse,
        ticks: survey.ticks,
        machines_guessed: survey.guessed,
        ..Default::default()
    };
    let mut groups = Groups::new(survey);
    progress(Progress { lines: 0, of: survey.lines });
    source.lines(&mut |line, _| {
        summary.lines += 1;
        if summary.lines.is_multiple_of(PROGRESS_LINES) {
            progress(Progress { lines: summary.lines, of: survey.lines });
        }
        match line {
            Line::Comment => summary.comments += 1,
            Line::Lost(lost) => {
                summary.lost_lines += 1;
                summary.lost_events += lost.events;
                groups.lost(*lost, &mut *sink)?;
            }
            Line::Unreadable => summary.unreadable += 1,
            Line::Event(record) => {
                let decoded = groups.record(record, &mut *sink)?;
                let counts = if decoded { &mut summary.decoded } else { &mut summary.kept };
                // A kernel has fewer; a trace that was made up may have any number.
                let full = counts.len() >= MOST_NAMES;
                match counts.get_mut(record.event) {
                    Some(count) => *count += 1,
                    None if full => *counts.entry(OTHERS.to_owned()).or_default() += 1,
                    None => _ = counts.insert(record.event.to_owned(), 1),
                }
            }
        }
        Ok(())
    })?;
    progress(Progress { lines: summary.lines, of: survey.lines });
    if summary.decoded.is_empty() && summary.kept.is_empty() {
        return Err(Error::NoEvents { trace: source.name().to_owned(), lines: summary.lines });
    }
    summary.backwards = groups.backwards();
    summary.exits = groups.finish(sink)?;
    Ok(summary)
}

/// How far an import is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub lines: u64,
    pub of: u64,
}

const PROGRESS_LINES: u64 = 1 << 16;

/// Reads a trace into a tape. `-` is standard input.
pub fn to_tape(trace: &Path, tape: &Path, options: Options) -> Result<Summary, Error> {
    to_tape_watched(trace, tape, options, &mut |_| ())
}

/// Likewise, and tells how far it is.
pub fn to_tape_watched(
    trace: &Path,
    tape: &Path,
    options: Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, Error> {
    let source = Source::at(trace);
    let opened = source.open()?;
    let survey = survey::survey(&opened)?;
    if survey.events == 0 {
        return Err(Error::NoEvents { trace: source.name(), lines: survey.lines });
    }
    let mut writer = Writer::create_here(tape, &metadata(&source, &survey), options)?;
    let (mut ended, mut icount) = (false, 0);
    let summary = read(
        &opened,
        &survey,
        &mut |event| {
            match &event {
                Event::Exit(exit) => icount = exit.icount,
                Event::Moment { icount: moment, .. } => icount = *moment,
                Event::End { .. } => ended = true,
                _ => {}
            }
            writer.push(event);
            Ok(())
        },
        progress,
    );
    let summary = summary.and_then(|summary| match summary.decoded.is_empty() {
        true => Err(Error::NothingOfKvm { trace: source.name(), events: survey.events }),
        false => Ok(summary),
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

/// What an imported tape says of itself.
fn metadata(source: &Source, survey: &Survey) -> Metadata {
    let mut notes = Vec::new();
    if survey.ticks {
        notes.push((CLOCK.to_owned(), "ticks".to_owned()));
    }
    if survey.terse {
        notes.push((NOT_TOLD.to_owned(), "intr_info, error_code".to_owned()));
    }
    let origin = if survey.in_order { ORIGIN_OF_TEXT } else { ORIGIN };
    Metadata { origin: origin.to_owned(), guest: source.name(), notes, ..Default::default() }
}
