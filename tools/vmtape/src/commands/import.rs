use crate::files;
use crate::output::{ExitCode, print_json, tell};
use crate::progress::{end_progress, progress_of};
use anyhow::Result;
use clap::ValueHint;
use std::{
    io::{self, Write},
    path::PathBuf,
};
use vmtape_traces::{
    Options,
    import::{self, Summary},
};

/// Make a tape of a recording of the real KVM (trace.dat, perf.data, or text of tracefs, trace-cmd or perf)
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::IMPORT)]
pub struct Args {
    /// A trace.dat, a perf.data, or what tracefs, `trace-cmd report` or `perf script` printed; `-` is standard input
    #[arg(value_name = "TRACE", value_hint = ValueHint::FilePath)]
    trace: PathBuf,
    /// The tape
    #[arg(short, long, value_name = "TAPE", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What progress counts.
const LINES: &str = "lines";

pub fn run(args: &Args) -> Result<ExitCode> {
    let bar = progress_of("import", 0, LINES);
    let summary =
        import::to_tape_watched(&args.trace, files::tape(&args.output)?, Options::default(), &mut |at| {
            bar.set_length(at.of);
            bar.set_position(at.lines);
        });
    end_progress(&bar, LINES);
    let summary = summary?;
    if args.json {
        print_json(&summary)?;
        return Ok(ExitCode::SAME);
    }
    print(&summary)?;
    warn(&summary);
    Ok(ExitCode::SAME)
}

fn print(summary: &Summary) -> Result<()> {
    let decoded: u64 = summary.decoded.values().sum();
    let kept: u64 = summary.kept.values().sum();
    let machines =
        if summary.vms > 1 { format!(" in {} virtual machines", summary.vms) } else { String::new() };
    writeln!(
        io::stdout(),
        "{} exits of {} vCPUs{machines}; {decoded} events decoded, {kept} kept as text, {} lines unreadable",
        summary.exits,
        summary.vcpus,
        summary.unreadable
    )?;
    Ok(())
}

/// Says what the trace does not tell.
fn warn(summary: &Summary) {
    let unknown = summary.kept.contains_key("kvm_exit");
    if summary.exits == 0 {
        let none = if unknown { "no exit of the trace is understood" } else { "the trace has no exits" };
        tell(format!("{none}: its events are kept, and there is no exit to replay or to compare"));
    }
    if let Some(count) = summary.kept.get("kvm_exit") {
        tell(format!(
            "{count} of its lines are a kvm_exit that is not understood: they are kept as text, and no exits"
        ));
    }
    if summary.lost_lines > 0 {
        let events = summary.lost_events;
        tell(format!(
            "the trace says that events were lost ({events} in {} gaps): what was open at a gap ends there",
            summary.lost_lines
        ));
    }
    if summary.terse && summary.exits > 0 {
        tell("its exits tell neither intr_info nor error_code: both are zero on the tape");
    }
    if summary.numbered > 0 {
        tell(format!(
            "{} tasks run vCPUs of which the trace does not tell the number: numbered in order of appearance",
            summary.numbered
        ));
    }
    if summary.machines_guessed {
        tell(format!(
            "several vCPUs have the same number: {} machines by the order in which their vCPUs appear; which are of one machine the \
             trace does not tell (tracefs does with record-tgid, perf script with -F +tid,+pid)",
            summary.vms
        ));
    }
    if summary.backwards > 0 {
        tell(format!(
            "{} events are older than the one before them of the same vCPU: the trace is not in the order of time, or is several \
             traces, and its exits may have notes of others",
            summary.backwards
        ));
    }
    if summary.ticks {
        tell("its clock counts in a unit of its own, not in microseconds");
    }
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] = &[crate::output::schema::<Summary>];
