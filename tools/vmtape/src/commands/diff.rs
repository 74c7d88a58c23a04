use crate::{
    commands::report::{self, Detail},
    output::{ExitCode, usage},
};
use anyhow::Result;
use clap::ValueHint;
use std::path::PathBuf;
use vmtape_replay::{Report, recording, spec, tapes};
use vmtape_traces::Tape;

/// Compare two tapes; one of them may be an imported recording of the real KVM
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::DIFF)]
pub struct Args {
    /// The tape that is right, or the recording of the real KVM
    #[arg(value_name = "EXPECTED", value_hint = ValueHint::FilePath)]
    expected: PathBuf,
    /// The tape that is held against it
    #[arg(value_name = "ACTUAL", value_hint = ValueHint::FilePath)]
    actual: PathBuf,
    /// Tell everything of a difference: page walks, rules, the exits up to there
    #[arg(long, conflicts_with = "json")]
    explain: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let (expected, actual) = (Tape::open_whole(&args.expected)?, Tape::open_whole(&args.actual)?);
    let reproduce = format!("vmtape diff {} {}", args.expected.display(), args.actual.display());
    let mut report = Report::new("", expected.name(), actual.name());
    match (spec::is_recording(&expected), spec::is_recording(&actual)) {
        (false, false) => tapes::compare(&expected, &actual, &mut report, &reproduce)?,
        (false, true) => {
            return Err(usage("the recording of the real KVM is the expected side: give it first"));
        }
        (true, _) => {
            report.method = "a recording of the real KVM against a run, exit by exit".into();
            recording::compare(&expected, &actual, &mut report, &reproduce)?;
        }
    }
    report::print(&report, args.json, Detail::of(args.explain))
}
