use crate::output::{ExitCode, print_json};
use anyhow::Result;
use clap::ValueHint;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
};
use vmtape_replay::text;
use vmtape_traces::{
    Event, Tape,
    event::End,
    format::{
        align,
        header::{ChunkHeader, ChunkKind, Sealed},
    },
};

/// Count what is on a tape: exits by reason, events by kind, bytes per exit
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_hint = ValueHint::FilePath)]
    tape: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Default, Serialize)]
struct Report {
    tape: String,
    format_version: u16,
    origin: String,
    backend: String,
    options: Vec<(String, String)>,
    guest: String,
    command_line: String,
    memory: u64,
    vcpus: u32,
    bytes: u64,
    bytes_by_kind: BTreeMap<String, u64>,
    event_bytes_per_exit: f64,
    instructions: u64,
    exits: u64,
    events: u64,
    exits_by_reason: BTreeMap<String, u64>,
    events_by_kind: BTreeMap<String, u64>,
    end: Option<String>,
    damage: Option<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let tape = Tape::open(&args.tape)?;
    let report = count(&tape)?;
    if args.json {
        print_json(&report)?;
    } else {
        print(&mut io::stdout().lock(), &report)?;
    }
    Ok(if report.damage.is_some() { ExitCode::COULD_NOT_TEST } else { ExitCode::SAME })
}

fn count(tape: &Tape) -> Result<Report> {
    let meta = tape.metadata();
    let mut report = Report {
        tape: tape.name().to_owned(),
        format_version: tape.version(),
        origin: meta.origin.clone(),
        backend: meta.backend.clone(),
        options: meta.options.clone(),
        guest: meta.guest.clone(),
        command_line: meta.command_line.clone(),
        memory: meta.memory,
        vcpus: meta.vcpus,
        bytes: tape.size(),
        damage: tape.damage().map(ToString::to_string),
        ..Report::default()
    };
    for chunk in tape.chunks() {
        let kind = ChunkKind(chunk.kind).to_string();
        let bytes = ChunkHeader::SIZE as u64 + align(chunk.length);
        *report.bytes_by_kind.entry(kind).or_default() += bytes;
    }
    for event in tape.events() {
        let event = event?;
        report.events += 1;
        *report.events_by_kind.entry(kind(&event)).or_default() += 1;
        match event {
            Event::Exit(exit) => {
                report.exits += 1;
                report.instructions = exit.icount;
                *report.exits_by_reason.entry(text::reason(&exit.exit)).or_default() += 1;
            }
            Event::End { icount, end, .. } => {
                report.instructions = icount;
                report.end = (end != End::Cut).then(|| text::end_text(&end));
            }
            _ => {}
        }
    }
    let event_bytes = report.bytes_by_kind.get("events").copied().unwrap_or(0);
    report.event_bytes_per_exit = event_bytes as f64 / report.exits.max(1) as f64;
    Ok(report)
}

/// The kind of an event in a word: a note by its trace event.
fn kind(event: &Event) -> String {
    match event {
        Event::Exit(_) => "kvm_exit".into(),
        Event::Registers(_) => "registers".into(),
        Event::Read { .. } => "memory read".into(),
        Event::Note { note, .. } => note.to_raw().kind.to_string(),
        Event::Resume { .. } => "end of handling".into(),
        Event::Input { .. } => "input".into(),
        Event::Control { .. } => "control".into(),
        Event::StateHash { .. } => "state hash".into(),
        Event::Line { text, .. } => text.split(':').next().unwrap_or_default().to_owned(),
        Event::End { .. } => "end".into(),
    }
}

fn print(out: &mut impl Write, r: &Report) -> io::Result<()> {
    writeln!(out, "{}: format {}, made by {}", r.tape, r.format_version, r.origin)?;
    if !r.backend.is_empty() {
        let options: Vec<_> = r.options.iter().map(|(key, value)| format!("{key}={value}")).collect();
        writeln!(out, "  backend {} ({})", r.backend, options.join(" "))?;
        writeln!(out, "  guest {} {}, {} MiB, {} vCPUs", r.guest, r.command_line, r.memory >> 20, r.vcpus)?;
    }
    writeln!(out, "  {} instructions, {} exits, {} events", r.instructions, r.exits, r.events)?;
    if let Some(end) = &r.end {
        writeln!(out, "  {end}")?;
    }
    if let Some(damage) = &r.damage {
        writeln!(out, "  NOT WHOLE: {damage}; counted as far as it is good")?;
    }
    writeln!(out, "  {} bytes, {:.2} bytes of events per exit", r.bytes, r.event_bytes_per_exit)?;
    for (kind, bytes) in &r.bytes_by_kind {
        writeln!(out, "    {kind:12} {bytes:>12} bytes")?;
    }
    print_counts(out, "exits by reason", &r.exits_by_reason)?;
    print_counts(out, "events by kind", &r.events_by_kind)
}

/// Counts, the largest first.
fn print_counts(out: &mut impl Write, title: &str, counts: &BTreeMap<String, u64>) -> io::Result<()> {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    writeln!(out, "  {title}:")?;
    for (name, count) in sorted {
        writeln!(out, "    {name:28} {count:>12}")?;
    }
    Ok(())
}
