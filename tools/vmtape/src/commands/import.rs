use crate::output::{ExitCode, print_json, tell};
use anyhow::{Result, bail};
use clap::ValueHint;
use std::{
    io::{self, Write},
    path::PathBuf,
};
use vmtape_traces::{Options, import};

/// Make a tape of a recording of the real KVM (ftrace text, plain or gzipped)
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::IMPORT)]
pub struct Args {
    /// What tracefs or `trace-cmd report` printed
    #[arg(value_name = "TRACE", value_hint = ValueHint::FilePath)]
    trace: PathBuf,
    /// The tape
    #[arg(short, long, value_name = "TAPE", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let summary = import::to_tape(&args.trace, &args.output, Options::default())?;
    let decoded: u64 = summary.decoded.values().sum();
    if decoded == 0 {
        bail!(
            "{}: no event of KVM was understood, so there is nothing to compare; what it holds is on the tape as text",
            args.trace.display()
        );
    }
    if args.json {
        print_json(&summary)?;
        return Ok(ExitCode::SAME);
    }
    let kept: u64 = summary.kept.values().sum();
    writeln!(
        io::stdout(),
        "{} exits of {} vCPUs; {decoded} events decoded, {kept} kept as text, {} lines unreadable",
        summary.exits,
        summary.vcpus,
        summary.unreadable
    )?;
    if summary.lost_events > 0 {
        tell(format!("the trace says that {} events were lost", summary.lost_events));
    }
    Ok(ExitCode::SAME)
}
