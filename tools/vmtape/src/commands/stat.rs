use super::{
    replay::Plugins,
    show::{damage, level},
};
use crate::{
    machine_args::PluginArgs,
    output::{ExitCode, is_verbose, print_json, printable},
};
use anyhow::Result;
use clap::ValueHint;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
};
use vmtape_arch::level::Level;
use vmtape_machine::MachineSpec;
use vmtape_replay::{spec, text};
use vmtape_traces::{
    Tape,
    event::End,
    stat::{Accesses, Stat, stat},
};

/// Count what is on a tape: exits by reason, events by kind, bytes per exit
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::STAT)]
pub struct Args {
    /// The tape to count
    #[arg(value_hint = ValueHint::FilePath)]
    tape: PathBuf,
    /// Count only what belongs to a level: L2 is a guest's guest
    #[arg(long, value_name = "L1|L2", value_parser = level)]
    level: Option<Level>,
    #[command(flatten)]
    plugins: PluginArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, JsonSchema)]
struct Report {
    tape: String,
    format_version: u16,
    origin: String,
    backend: String,
    /// Which build of it recorded.
    backend_build: Option<String>,
    options: Vec<(String, String)>,
    guest: String,
    command_line: String,
    memory: u64,
    vcpus: u32,
    end: Option<String>,
    #[serde(flatten)]
    stat: Stat,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let tape = Tape::open(&args.tape)?;
    let report = count(&tape, args.level)?;
    if args.json {
        print_json(&report)?;
    } else {
        let options = match is_verbose() {
            true => text_of(&report.options),
            false => options(&tape, &args.plugins),
        };
        print(&mut printable(), &report, &options)?;
    }
    Ok(if report.stat.damage.is_some() { ExitCode::COULD_NOT_TEST } else { ExitCode::SAME })
}

fn count(tape: &Tape, level: Option<Level>) -> Result<Report> {
    let meta = tape.metadata();
    let mut stat = stat(tape, level)?;
    stat.damage = damage(tape);
    Ok(Report {
        tape: tape.name().to_owned(),
        format_version: tape.version(),
        origin: meta.origin.clone(),
        backend: meta.backend.clone(),
        backend_build: meta.build().map(str::to_owned),
        options: meta.options.clone(),
        guest: meta.guest.clone(),
        command_line: meta.command_line.clone(),
        memory: meta.memory,
        vcpus: meta.vcpus,
        end: stat.end.as_ref().filter(|end| **end != End::Cut).map(text::end_text),
        stat,
    })
}

fn text_of(options: &[(String, String)]) -> String {
    options.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// The release, and what was chosen beside it, as far as the backend is here to say what the release implies.
fn options(tape: &Tape, plugins: &PluginArgs) -> String {
    let plugins = Plugins::new(plugins);
    let chosen = spec::machine(tape)
        .and_then(|machine| spec::chosen(&machine, &|machine: &MachineSpec| plugins.create(machine)));
    let (mut shown, others): (Vec<_>, Vec<_>) =
        tape.metadata().options.iter().cloned().partition(|(name, _)| name == spec::PROFILE);
    let rest = match chosen {
        Ok(chosen) => {
            shown.extend(chosen);
            "-v: all".to_owned()
        }
        Err(_) => format!("and {} others, -v: all", others.len()),
    };
    format!("{}; {rest}", text_of(&shown))
}

fn print(out: &mut impl Write, r: &Report, options: &str) -> io::Result<()> {
    writeln!(out, "{}: format {}, made by {}", r.tape, r.format_version, r.origin)?;
    if !r.backend.is_empty() {
        let build = r.backend_build.as_ref().map_or(String::new(), |build| format!(", made by {build}"));
        writeln!(out, "  backend {}{build} ({options})", r.backend)?;
        let words = [r.guest.as_str(), r.command_line.as_str()].join(" ");
        writeln!(out, "  guest {}, {} MiB, vCPUs: {}", words.trim_end(), r.memory >> 20, r.vcpus)?;
    }
    let stat = &r.stat;
    match r.origin == vmtape_traces::import::ORIGIN {
        // Its clock is the trace's.
        true => writeln!(out, "  {} exits, {} events", stat.exits, stat.events)?,
        false => writeln!(
            out,
            "  {} instructions, {} exits, {} events",
            stat.instructions, stat.exits, stat.events
        )?,
    }
    if let Some(rate) = stat.exits_per_million_instructions {
        writeln!(out, "  {rate:.1} exits per million instructions")?;
    }
    if let Some(end) = &r.end {
        writeln!(out, "  {end}")?;
    }
    if let Some(damage) = &stat.damage {
        writeln!(out, "  NOT WHOLE: {damage}; counted as far as it is good")?;
    }
    writeln!(out, "  {} bytes, {:.2} bytes of events per exit", stat.bytes, stat.event_bytes_per_exit)?;
    for (kind, bytes) in &stat.bytes_by_kind {
        writeln!(out, "    {kind:16} {bytes:>12} bytes")?;
    }
    print_counts(out, "exits by reason", &stat.exits_by_reason)?;
    if !stat.exits_by_nested_level.is_empty() {
        print_counts(out, "exits of guests' guests", &stat.exits_by_nested_level)?;
    }
    print_counts(out, "events by kind", &stat.events_by_kind)?;
    if !stat.faults.is_empty() {
        print_counts(out, "injected faults", &stat.faults)?;
    }
    writeln!(out, "  most exits at:")?;
    for hot in &stat.hottest {
        writeln!(out, "    {:18} {:28} {:>12}", hot.rip, hot.reason, hot.exits)?;
    }
    print_accesses(out, "MSRs", &stat.msrs)?;
    print_accesses(out, "ports", &stat.ports)?;
    print_accesses(out, "MMIO registers", &stat.mmio)
}

/// Reads and writes by register, the most used first.
fn print_accesses(out: &mut impl Write, title: &str, by: &BTreeMap<String, Accesses>) -> io::Result<()> {
    let mut sorted: Vec<_> = by.iter().collect();
    sorted.sort_by_key(|(_, a)| std::cmp::Reverse(a.reads + a.writes));
    if !sorted.is_empty() {
        writeln!(out, "  {title}:")?;
    }
    for (name, accesses) in sorted {
        let counts =
            [(accesses.faults, "#GP"), (accesses.passed, "passed"), (accesses.by_host, "by the host")];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let rest: String = counts.map(|(count, what)| format!(", {count} {what}")).collect();
        writeln!(out, "    {name:18} {} reads, {} writes{rest}", accesses.reads, accesses.writes)?;
    }
    Ok(())
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

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[crate::output::schema::<Report>];
