//! What is on a tape, counted.

use crate::{
    Tape,
    error::Result,
    event::{End, Event, Skip},
    format::{
        align,
        header::{ChunkHeader, ChunkKind, Sealed},
    },
    text::tables::reason,
};
use schemars::JsonSchema;
use serde::Serialize;
use std::{borrow::Cow, cmp::Reverse, collections::BTreeMap};
use vmtape_arch::{level::Level, note::Note};

/// How many of the places with the most exits are kept.
const HOTTEST: usize = 20;

/// Counts over a tape. Maps by address have what is counted as hexadecimal text, which JSON keeps exact.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Stat {
    pub bytes: u64,
    /// Bytes of chunks by kind, their headers included, and of the rest of the file.
    pub bytes_by_kind: BTreeMap<String, u64>,
    pub event_bytes_per_exit: f64,
    pub instructions: u64,
    pub exits: u64,
    pub events: u64,
    /// Not on imported tapes, whose clock counts no instructions.
    pub exits_per_million_instructions: Option<f64>,
    pub exits_by_reason: BTreeMap<String, u64>,
    /// Of guests' guests; L1's are the rest.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exits_by_nested_level: BTreeMap<String, u64>,
    pub events_by_kind: BTreeMap<String, u64>,
    /// Injected faults by the name of their point.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub faults: BTreeMap<String, u64>,
    pub hottest: Vec<Hot>,
    pub msrs: BTreeMap<String, Accesses>,
    pub ports: BTreeMap<String, Accesses>,
    /// By the address of the register.
    pub mmio: BTreeMap<String, Accesses>,
    #[serde(skip)]
    pub end: Option<End>,
    /// Why the tape is not whole; the counts go as far as it is good.
    pub damage: Option<String>,
}

/// Exits of one kind at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Hot {
    pub rip: String,
    #[serde(rename = "exit_reason")]
    pub reason: String,
    pub exits: u64,
}

/// Reads and writes of one register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Accesses {
    pub reads: u64,
    pub writes: u64,
    /// Of MSRs: those that gave #GP.
    pub faults: u64,
    /// Of MSRs: those that silicon let through, and the host's.
    #[serde(skip_serializing_if = "is_none")]
    pub passed: u64,
    #[serde(skip_serializing_if = "is_none")]
    pub by_host: u64,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Accesses {
    fn count(&mut self, write: bool) {
        *if write { &mut self.writes } else { &mut self.reads } += 1;
    }
}

impl Event {
    /// The event's name: the tracepoint's where it is one.
    pub fn name(&self) -> Cow<'static, str> {
        match self {
            Self::Exit(_) => "kvm_exit".into(),
            Self::Registers(_) => "registers".into(),
            Self::Read { .. } => "read".into(),
            Self::Note { note, .. } => {
                let kind = note.to_raw().kind;
                kind.name().map_or_else(|| kind.to_string().into(), Cow::from)
            }
            Self::Resume { .. } => "resume".into(),
            Self::Entry(_) => "entry".into(),
            Self::Input { .. } => "input".into(),
            Self::Fault(_) => "fault".into(),
            Self::FaultIn(_) => "fault_in".into(),
            Self::Pcpu(_) => "pcpu".into(),
            Self::Control { .. } => "control".into(),
            Self::StateHash { .. } => "state_hash".into(),
            Self::Milestone(_) => "milestone".into(),
            Self::Devices { .. } => "devices".into(),
            Self::Line { text, .. } => text.split(':').next().unwrap_or_default().to_owned().into(),
            Self::Moment { .. } => "moment".into(),
            Self::End { .. } => "end".into(),
        }
    }
}

/// Counts what is on a tape: everything, or what belongs to one level.
pub fn stat(tape: &Tape, only: Option<Level>) -> Result<Stat> {
    let mut stat =
        Stat { bytes: tape.size(), damage: tape.damage().map(ToString::to_string), ..Default::default() };
    for chunk in tape.chunks() {
        let bytes = ChunkHeader::SIZE as u64 + align(chunk.length);
        *stat.bytes_by_kind.entry(ChunkKind(chunk.kind).to_string()).or_default() += bytes;
    }
    let chunks: u64 = stat.bytes_by_kind.values().sum();
    stat.bytes_by_kind.insert("header and index".to_owned(), stat.bytes - chunks);
    let mut hot = BTreeMap::new();
    let mut names: BTreeMap<Cow<'static, str>, u64> = BTreeMap::new();
    let mut reasons = BTreeMap::new();
    for event in tape.events() {
        let event = event?;
        let level = match &event {
            Event::Exit(exit) => exit.exit.level,
            Event::Note { place, .. } => place.level,
            Event::End { .. } => only.unwrap_or_default(),
            _ => Level::L1,
        };
        if only.is_some_and(|only| only != level) {
            continue;
        }
        stat.events += 1;
        *names.entry(event.name()).or_default() += 1;
        match event {
            Event::Exit(exit) => {
                let kind = (exit.exit.isa, exit.exit.reason);
                stat.exits += 1;
                stat.instructions = exit.icount;
                *reasons.entry(kind).or_insert(0u64) += 1;
                *hot.entry((exit.rip, kind)).or_insert(0u64) += 1;
                if exit.exit.level != Level::L1 {
                    *stat.exits_by_nested_level.entry(exit.exit.level.to_string()).or_default() += 1;
                }
            }
            Event::Note { note, .. } => stat.note(&note),
            Event::Fault(fault) => {
                let name = tape.metadata().fault_point(fault.point);
                let mut name = name.map_or_else(|| format!("point {:#x}", fault.point), str::to_owned);
                if fault.skipped != Skip::NONE {
                    name += " (skipped)";
                }
                *stat.faults.entry(name).or_default() += 1;
            }
            Event::End { icount, end, .. } => {
                stat.instructions = icount;
                stat.end = Some(end);
            }
            _ => {}
        }
    }
    stat.events_by_kind = names.into_iter().map(|(name, count)| (name.into_owned(), count)).collect();
    stat.exits_by_reason =
        reasons.into_iter().map(|((isa, code), count)| (reason(isa, code), count)).collect();
    let mut hot: Vec<_> = hot.into_iter().collect();
    hot.sort_by_key(|(place, count)| (Reverse(*count), *place));
    let hottest = hot.into_iter().take(HOTTEST);
    stat.hottest = hottest
        .map(|((rip, (isa, code)), exits)| Hot { rip: format!("{rip:#x}"), reason: reason(isa, code), exits })
        .collect();
    let event_bytes = stat.bytes_by_kind.get("events").copied().unwrap_or(0);
    stat.event_bytes_per_exit = event_bytes as f64 / stat.exits.max(1) as f64;
    let counts_instructions = tape.metadata().origin != crate::import::ORIGIN && stat.instructions > 0;
    stat.exits_per_million_instructions =
        counts_instructions.then(|| stat.exits as f64 * 1e6 / stat.instructions as f64);
    Ok(stat)
}

impl Stat {
    fn note(&mut self, note: &Note) {
        match *note {
            Note::Msr { write, index, exception, passed, host_initiated, .. } => {
                let msr = self.msrs.entry(format!("{index:#x}")).or_default();
                msr.count(write);
                msr.faults += u64::from(exception);
                msr.passed += u64::from(passed);
                msr.by_host += u64::from(host_initiated);
            }
            Note::Pio { write, port, .. } => {
                self.ports.entry(format!("{port:#x}")).or_default().count(write);
            }
            // An unsatisfied read is followed by the read that userspace completes.
            Note::Mmio { kind, gpa, .. } if kind != 0 => {
                self.mmio.entry(format!("{gpa:#x}")).or_default().count(kind == 2);
            }
            Note::FastMmio { gpa } => self.mmio.entry(format!("{gpa:#x}")).or_default().count(true),
            _ => {}
        }
    }
}
