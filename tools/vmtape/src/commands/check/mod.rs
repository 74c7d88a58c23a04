//! `vmtape check`: to which hosts may a guest move?

mod fleet;
pub mod hosts;
mod html;
mod pins;
mod source;
mod text;

use crate::files;
use crate::{
    commands::replay::Plugins,
    machine_args::PluginArgs,
    output::{ExitCode, Printable, print_json, printable, usage},
    progress::{end_progress, progress_of},
};
use anyhow::{Context, Result};
use clap::ValueHint;
use fleet::{Matrix, Outcome, Question};
use hosts::KnownHost;
use schemars::JsonSchema;
use serde::Serialize;
use source::Template;
use std::{io::Write, path::PathBuf};
use vmtape_arch::host::Silicon;
use vmtape_machine::{Passport, hosts::passport, vmm::When};
use vmtape_replay::{
    check::{Assessment, Guest, Verdict, footprint::Footprint, traced},
    spec,
};
use vmtape_traces::Tape;

/// Say to which hosts a guest may move: safe, conditional, unsafe, or refused, with the address, entry or CPUID leaf that breaks
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = crate::help::CHECK,
    // By itself clap puts the tape last, where `--to` takes it for one more host.
    override_usage = "vmtape check <TAPE> --to <HOST>... [OPTIONS]\n       vmtape check [TAPE] --fleet <HOST>... [OPTIONS]"
)]
pub struct Args {
    /// The tape of the guest
    #[arg(value_hint = ValueHint::FilePath, required_unless_present = "fleet")]
    tape: Option<PathBuf>,

    /// Hosts to move to: HOST[,BACKEND][,KVM OPTION...]; HOST is a name, VENDOR-BITS, or a passport (a TOML file)
    #[arg(long, value_name = "HOST", num_args = 1.., required_unless_present = "fleet")]
    to: Vec<String>,

    /// Every one of these hosts against every other: the guest (the tape's, or --guest) is started on each
    #[arg(long, value_name = "HOST", num_args = 1.., conflicts_with = "to", value_hint = ValueHint::FilePath)]
    fleet: Vec<String>,

    /// A guest to start on a fleet instead of a tape's; may be repeated
    #[arg(long, value_name = "GUEST", requires = "fleet", conflicts_with_all = ["tape", "to"],
          default_values = ["builtin:illegal", "builtin:bar", "builtin:cpuid"])]
    guest: Vec<String>,

    /// Its CPU model (default: max, as wide as the host that it starts on)
    #[arg(long, value_name = "MODEL", requires = "fleet", conflicts_with = "to", allow_hyphen_values = true)]
    cpu: Option<String>,

    /// When the guest moves: start, exit=N, or insn=N, and on to where it comes to rest. By default it is started there, so
    /// that everything on its tape is tried there; moved later, what it has done before and no longer holds does not count
    #[arg(long, value_name = "MOMENT", default_value = "start", conflicts_with = "fleet")]
    at: When,

    /// The guest has an assigned device (VFIO): its memory and BARs are mapped in the IOMMU
    #[arg(long)]
    vfio: bool,

    /// Print the settings with which the guest may move everywhere, in QEMU's and libvirt's words, and try them on a guest
    /// that is started with them
    #[arg(long)]
    pin: bool,

    /// Write the matrix as one HTML page
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    html: Option<PathBuf>,

    #[command(flatten)]
    plugins: PluginArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What progress counts: what guests run on the hosts, the exits of a trace, and guests on the hosts where they start.
const INSTRUCTIONS: &str = "instructions";
const EXITS: &str = "exits";
const STARTS: &str = "guests on hosts";

/// The whole answer.
#[derive(Serialize, JsonSchema)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<text::GuestText>,
    /// One per host, for a tape.
    #[serde(skip_serializing_if = "Vec::is_empty", rename = "assessments")]
    hosts: Vec<Assessment>,
    /// Hosts that could not be tried.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Failure>,
    /// For a fleet, and for a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    matrix: Option<Matrix>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pin: Option<pins::Pinned>,
}

/// A host that could not be tried, and why.
#[derive(Serialize, JsonSchema)]
struct Failure {
    host: String,
    error: String,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let plugins = Plugins::new(&args.plugins);
    let folder = tempfile::tempdir()?;
    let report = if args.fleet.is_empty() {
        one_tape(args, &plugins, folder.path())?
    } else {
        whole_fleet(args, &plugins, folder.path())?
    };
    if let (Some(path), Some(matrix)) = (&args.html, &report.matrix) {
        let page = html::page(matrix, report.guest.as_ref(), report.pin.as_ref(), &html::Made::here());
        files::write(path, |out| Ok(Printable(out).write_all(page.as_bytes())?))?;
    }
    if args.json {
        print_json(&report)?;
    } else {
        text::print(&mut printable(), &report)?;
    }
    Ok(code(&report))
}

/// The verdict of all verdicts. That something could not be tried is worse than that it is unsafe.
fn code(report: &Report) -> ExitCode {
    let moves: Vec<_> = report.matrix.iter().flat_map(Matrix::moves).collect();
    let unknown = report.hosts.iter().any(|host| host.verdict == Verdict::Unknown);
    if !report.errors.is_empty() || unknown || moves.iter().any(|cell| cell.outcome == Outcome::Unknown) {
        ExitCode::COULD_NOT_TEST
    } else if report.hosts.iter().any(|host| host.verdict != Verdict::Safe)
        || moves.iter().any(|cell| cell.outcome != Outcome::Safe)
    {
        ExitCode::DIFFERENT
    } else {
        ExitCode::SAME
    }
}

fn parse(hosts: &[String]) -> Result<Vec<KnownHost>> {
    let mut parsed: Vec<KnownHost> =
        hosts.iter().map(|text| KnownHost::parse(text)).collect::<Result<_>>()?;
    // Two forms of one host are told apart by what was asked for.
    let names: Vec<_> = parsed.iter().map(|host| host.passport.name.clone()).collect();
    for ((host, name), text) in parsed.iter_mut().zip(&names).zip(hosts) {
        if names.iter().filter(|other| *other == name).count() > 1 {
            host.passport.name.clone_from(text);
        }
    }
    let double = |host: &KnownHost| {
        parsed.iter().filter(|other| other.passport.name == host.passport.name).count() > 1
    };
    match parsed.iter().find(|host| double(host)) {
        Some(host) => Err(usage(format!("the host {} is named twice", host.passport.name))),
        None => Ok(parsed),
    }
}

fn one_tape(args: &Args, plugins: &Plugins, folder: &std::path::Path) -> Result<Report> {
    let path = args.tape.as_ref().context("a tape is needed")?;
    let tape = Tape::open_whole(path)?;
    let known = parse(&args.to)?;
    if spec::is_recording(&tape) {
        return one_trace(args, &tape, &known, plugins);
    }
    let machine = plugins.machine_of(&tape)?;
    let source = recorded_on(&machine);
    let loaded = source.load(plugins, Some(&machine))?;
    let create = |machine: &_| plugins.create(machine);
    let each = tape.totals()?.icount;
    let bar = progress_of("check", each.saturating_mul(known.len() as u64), INSTRUCTIONS);
    bar.set_message("what the tape shows");
    let guest = Guest {
        footprint: Footprint::of(&tape, &machine, args.at, &create)?,
        supported: loaded.supported.clone(),
        plugin: &loaded.plugin.description,
        at: args.at,
        assigned_device: args.vfio,
        tape: &tape,
        machine,
    };
    let mut answers = Vec::new();
    for (n, (host, text)) in known.iter().zip(&args.to).enumerate() {
        bar.set_message(text.clone());
        let mut tick = |instructions: u64| bar.set_position(each * n as u64 + instructions.min(each));
        let reproduce = pins::replay_command(path, &guest.machine, host, text);
        match fleet::assess(&guest, host, plugins, &reproduce, &mut tick) {
            Err(error) if ExitCode::of_error(&error) == ExitCode::USAGE => return Err(error),
            answer => answers.push((host, answer)),
        }
    }
    bar.set_position(each.saturating_mul(known.len() as u64));
    end_progress(&bar, INSTRUCTIONS);
    let template = Template::of(path, &guest.machine, spec::generous_budget(&tape));
    let pin = args.pin.then(|| {
        let assessments = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
        let findings: Vec<_> = assessments.flat_map(|assessment| &assessment.findings).collect();
        let question = Question { plugins, templates: &[template], assigned_device: args.vfio, folder };
        pins::pin(&findings, false, &question, std::slice::from_ref(&source), &known)
    });
    let pin = pin.transpose()?;
    let guest_text = text::GuestText::of(path, &guest);
    let (mut hosts, mut errors) = (Vec::new(), Vec::new());
    for (host, answer) in &answers {
        match answer {
            Ok(assessment) => hosts.push(assessment.clone()),
            Err(error) => {
                errors.push(Failure { host: host.passport.name.clone(), error: format!("{error:#}") });
            }
        }
    }
    let matrix = args.html.is_some().then(|| Matrix::of_tape(&source, &guest, answers, plugins));
    Ok(Report { guest: Some(guest_text), hosts, errors, matrix, pin })
}

/// An imported recording: each host is held against what its exits tell.
fn one_trace(args: &Args, tape: &Tape, known: &[KnownHost], plugins: &Plugins) -> Result<Report> {
    let started = [(args.pin, "--pin"), (args.html.is_some(), "--html"), (args.at != When::Start, "--at")];
    if let Some((_, option)) = started.iter().find(|(given, _)| *given) {
        let name = tape.name();
        return Err(usage(format!(
            "{option} needs a guest that can be started, and {name} is an imported recording"
        )));
    }
    let each = tape.totals()?.exits;
    let bar = progress_of("check", each.saturating_mul(known.len() as u64), EXITS);
    let (mut hosts, mut errors) = (Vec::new(), Vec::new());
    for (n, host) in known.iter().enumerate() {
        bar.set_message(host.passport.name.clone());
        let mut tick = |exits| bar.set_position(each * n as u64 + exits);
        let answer =
            host.target(plugins, args.vfio).and_then(|target| Ok(traced::check(tape, &target, &mut tick)?));
        match answer {
            Ok(assessment) => hosts.push(assessment),
            Err(error) => {
                errors.push(Failure { host: host.passport.name.clone(), error: format!("{error:#}") });
            }
        }
    }
    bar.set_position(each.saturating_mul(known.len() as u64));
    end_progress(&bar, EXITS);
    Ok(Report { guest: None, hosts, errors, matrix: None, pin: None })
}

/// The host that a tape was recorded on, as far as it says.
fn recorded_on(machine: &vmtape_machine::MachineSpec) -> KnownHost {
    let backing_shift = machine.silicon.backing_shift;
    let passport = match passport(&machine.host) {
        // A file may be another one by now: the tape has the silicon.
        Ok(passport) if Silicon { backing_shift, ..passport.silicon } == machine.silicon => passport,
        _ => Passport::new(machine.host.clone(), machine.silicon),
    };
    KnownHost {
        text: machine.host.clone(),
        passport,
        backend: machine.backend.clone(),
        options: Some(machine.options.clone()),
    }
}

fn whole_fleet(args: &Args, plugins: &Plugins, folder: &std::path::Path) -> Result<Report> {
    let known = parse(&args.fleet)?;
    let templates = match &args.tape {
        Some(path) => {
            let tape = Tape::open_whole(path)?;
            let template = Template::of(path, &plugins.machine_of(&tape)?, spec::generous_budget(&tape));
            vec![args.cpu.clone().map_or(template.clone(), |cpu| template.with_cpu(cpu))]
        }
        None => {
            let cpu = args.cpu.as_deref().unwrap_or("max");
            args.guest.iter().map(|name| Template::named(name, cpu, &known[0])).collect::<Result<_>>()?
        }
    };
    let question = Question { plugins, templates: &templates, assigned_device: args.vfio, folder };
    let bar = progress_of("check", (known.len() * templates.len()) as u64, STARTS);
    let mut started = 0;
    let matrix = question.ask(&known, &known, &mut |text| {
        bar.set_position(started);
        bar.set_message(text);
        started += 1;
    })?;
    bar.set_position(started);
    end_progress(&bar, STARTS);
    let pin = args.pin.then(|| {
        let assessments = matrix.cells.iter().filter_map(|cell| cell.assessment.as_ref());
        let findings: Vec<_> = assessments.flat_map(|assessment| &assessment.findings).collect();
        let too_wide = matrix.cells.iter().any(|cell| cell.outcome == Outcome::NotStarted);
        pins::pin(&findings, too_wide, &question, &known, &known)
    });
    let pin = pin.transpose()?;
    Ok(Report { guest: None, hosts: Vec::new(), errors: Vec::new(), matrix: Some(matrix), pin })
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[crate::output::schema::<Report>];
