//! How a run ended: in words, as JSON, and as an exit code.

use crate::output::{ExitCode, print_json, tell};
use anyhow::{Result, bail};
use indicatif::HumanBytes;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    io::{self, Write},
    path::Path,
};
use vmtape_abi::TableRow;
use vmtape_arch::exit::ResumeKind;
use vmtape_backends::LoadedPlugin;
use vmtape_machine::Machine;
use vmtape_replay::text;
use vmtape_traces::event::{Control, End};

/// A run that has ended.
pub struct Run<'a> {
    pub machine: &'a Machine,
    pub end: &'a End,
    pub plugin: &'a LoadedPlugin,
    pub tape: Option<Written<'a>>,
    /// Nothing is said of a run that ended as the user, or its guest, wanted.
    pub quiet: bool,
}

/// The tape of a run.
#[derive(Clone, Copy, Serialize, JsonSchema)]
pub struct Written<'a> {
    pub file: &'a Path,
    pub bytes: u64,
}

#[derive(Serialize, JsonSchema)]
struct Report<'a> {
    end: &'static str,
    text: String,
    guest_status: Option<u32>,
    instructions: u64,
    exits: u64,
    tape: Option<Written<'a>>,
    ioctls: Vec<Ioctl>,
    /// What the VMM was to do later than the run lasted.
    never: Vec<String>,
    /// Why a guest made no progress, as far as the backend has a rule for it.
    because: Vec<String>,
}

/// What the VMM did, and after how many exits.
#[derive(Serialize, JsonSchema)]
struct Ioctl {
    exits: u64,
    name: String,
    result: String,
    text: String,
}

impl From<&(u64, Control)> for Ioctl {
    fn from((exits, control): &(u64, Control)) -> Self {
        let (name, result) = (control.name(), control.result().to_string());
        Self { exits: *exits, name, result, text: control.to_string() }
    }
}

/// Says how the run ended and gives the exit code. A backend that broke is an error that names its file.
pub fn report(run: &Run, json: bool, guest_status: bool) -> Result<ExitCode> {
    let Run { machine, end, plugin, .. } = *run;
    if let End::Fatal { resume, reason, .. } = end
        && resume.kind == ResumeKind::BACKEND_FAILED
    {
        let (path, exits) = (&plugin.origin, machine.exits());
        bail!("{path}: the backend broke after {exits} exits: {reason}");
    }
    let because = because(machine, end, &plugin.description.rules);
    let never: Vec<String> =
        machine.steps_left().map(|step| format!("{} at {}", step.action, step.at)).collect();
    if json {
        print_json(&Report {
            end: word(end),
            text: text::end_text(end),
            guest_status: status(end),
            instructions: machine.icount(),
            exits: machine.exits(),
            tape: run.tape,
            ioctls: machine.controls().iter().map(Ioctl::from).collect(),
            never: never.clone(),
            because: because.clone(),
        })?;
    } else {
        for (exits, control) in machine.controls() {
            writeln!(io::stdout(), "vmm: after {exits} exits: {control}")?;
        }
    }
    summary(run);
    because.iter().for_each(tell);
    let (instructions, exits) = (machine.icount(), machine.exits());
    for step in never {
        tell(format!(
            "never happened: {step}: the run ended after {exits} exits and {instructions} instructions"
        ));
    }
    Ok(code(end, guest_status))
}

/// One line: how it ended, and of a recording where it is and how large.
fn summary(run: &Run) {
    let (instructions, exits) = (run.machine.icount(), run.machine.exits());
    let line = format!("{} after {instructions} instructions and {exits} exits", text::end_text(run.end));
    let wanted = matches!(run.end, End::DebugExit { .. } | End::Limit { .. } | End::Interrupted);
    match run.tape {
        _ if wanted && run.quiet => {}
        Some(Written { file, bytes }) => tell(format!("{}: {line}; {}", file.display(), HumanBytes(bytes))),
        None if wanted => tracing::info!("{line}"),
        None => tell(line),
    }
}

/// The rules that decided while the guest stood still.
fn because(machine: &Machine, end: &End, rules: &[TableRow]) -> Vec<String> {
    let End::NoProgress { .. } = end else { return Vec::new() };
    let decided = rules.iter().filter(|rule| machine.rules_of_standstill().contains(&rule.id));
    decided.map(|rule| format!("{} (see: {})", rule.text, rule.source)).collect()
}

/// The end in one word, for scripts.
pub fn word(end: &End) -> &'static str {
    match end {
        End::DebugExit { .. } => "debug-exit",
        End::Shutdown { .. } => "shutdown",
        End::Idle { .. } => "idle",
        End::Fatal { .. } => "fatal",
        End::Limit { .. } => "limit",
        End::NoProgress { .. } => "no-progress",
        End::Cut => "cut",
        End::Interrupted => "interrupted",
    }
}

fn status(end: &End) -> Option<u32> {
    match end {
        End::DebugExit { status } => Some(*status),
        _ => None,
    }
}

/// The program's exit code for a run: the guest's own status where that is asked for.
fn code(end: &End, guest_status: bool) -> ExitCode {
    match end {
        End::Fatal { .. } | End::NoProgress { .. } => ExitCode::DIFFERENT,
        End::DebugExit { status } if guest_status => ExitCode(*status as u8),
        End::DebugExit { .. } | End::Limit { .. } | End::Cut | End::Interrupted => ExitCode::SAME,
        End::Shutdown { .. } | End::Idle { .. } => ExitCode(guest_status.into()),
    }
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[crate::output::schema::<Report<'static>>];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_status_passes_only_when_asked_for() {
        let end = End::DebugExit { status: 3 };
        assert_eq!((code(&end, false), code(&end, true)), (ExitCode::SAME, ExitCode(3)));
        let stuck = End::NoProgress { vcpu: 0, repeats: 9, reason: String::new() };
        assert_eq!(code(&stuck, false), ExitCode::DIFFERENT);
    }
}
