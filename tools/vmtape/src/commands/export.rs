use crate::{
    commands::{
        replay::{self, Elsewhere},
        show,
    },
    files,
    machine_args::PluginArgs,
    output::{ExitCode, tell, usage},
};
use anyhow::{Context, Result, anyhow};
use clap::{ValueEnum, ValueHint};
use std::path::{Path, PathBuf};
use vmtape_replay::{reproducer, spec};
use vmtape_traces::{
    Tape,
    export::{self, redact},
};

/// Write a tape in another format, without what is in its memory, or its first divergence as a test
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::EXPORT)]
pub struct Args {
    /// The tape to write elsewhere
    #[arg(value_hint = ValueHint::FilePath)]
    tape: PathBuf,
    /// The file to write; -: standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    /// In which format (default: ftrace; a tape with --redact)
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// Permute guest frame numbers and drop contents of memory and strings. One KEY permutes alike: give it for tapes that
    /// are to be compared, and keep it, since whoever has it can undo it (default: one that only this tape gives)
    #[arg(long, value_name = "KEY", num_args = 0..=1, require_equals = true, conflicts_with = "reproducer")]
    redact: Option<Option<String>>,

    /// Write the first divergence from the machine that -b, --host and --kvm name as a test of kvm-unit-tests, in C
    #[arg(long, conflicts_with = "format")]
    reproducer: bool,

    #[command(flatten)]
    elsewhere: Elsewhere,

    #[command(flatten)]
    plugins: PluginArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Text as the kernel's ftrace prints it; `vmtape import` reads it back
    Ftrace,
    /// One JSON object for the tape, then one per event (schema: traces/schema/events.json)
    Jsonl,
    /// Chrome's trace events, which Perfetto opens: a track per vCPU, each exit a slice
    Chrome,
    /// One line per exit: exit,vcpu,time_us,rip,isa,reason,reason_code,info1,info2,gpa,intr_info,error_code
    Csv,
    /// The same columns as a Parquet file (in builds with the feature `parquet`)
    Parquet,
    /// A tape (with --redact)
    Tape,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if args.reproducer {
        return write_reproducer(args);
    }
    if args.elsewhere.is_given() || args.elsewhere.force {
        return Err(usage(
            "-b, --host, --kvm and --force are for --reproducer, which compares with another machine",
        ));
    }
    let tape = Tape::open(&args.tape)?;
    if let Some(damage) = tape.damage() {
        return Err(anyhow!("{damage}"));
    }
    tape.verify()?;
    match &args.redact {
        None => write(&tape, args.format.unwrap_or(Format::Ftrace), &args.output)?,
        Some(key) => write_redacted(&tape, key.as_deref(), args)?,
    }
    Ok(ExitCode::SAME)
}

fn write(tape: &Tape, format: Format, output: &Path) -> Result<()> {
    match format {
        Format::Tape => return Err(usage("--format tape is for --redact: a tape is one already")),
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => {
            return Err(usage(
                "this build has no Parquet: build it with `cargo build --features parquet`, or take --format csv",
            ));
        }
        _ => {}
    }
    files::write(output, |out| {
        match format {
            Format::Ftrace => {
                // The text is that of the tape which `import` makes of it.
                let mut names = tape.metadata().clone();
                names.forget_rules();
                show::print(tape, &names, out)?;
            }
            Format::Jsonl => export::json_lines(tape, out)?,
            Format::Chrome => export::chrome::write(tape, out)?,
            Format::Csv => export::csv::write(tape, out)?,
            #[cfg(feature = "parquet")]
            Format::Parquet => export::parquet::write(tape, out)?,
            _ => {}
        }
        Ok(())
    })
}

fn write_redacted(tape: &Tape, key: Option<&str>, args: &Args) -> Result<()> {
    if key.is_some_and(str::is_empty) {
        return Err(usage("--redact= is an empty key"));
    }
    let own = key.is_none().then(|| redact::own_key(tape)).transpose()?;
    let key = key.or(own.as_deref()).unwrap_or_default();
    match args.format {
        None | Some(Format::Tape) => _ = redact::redact(tape, key, files::tape(&args.output)?)?,
        Some(format) => {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("redacted.tape");
            redact::redact(tape, key, &path)?;
            write(&Tape::open(&path)?, format, &args.output)?;
        }
    }
    if let Some(key) = own {
        tell(format!("redacted with --redact={key}: keep it, to redact tapes alike that are to be compared"));
    }
    Ok(())
}

fn write_reproducer(args: &Args) -> Result<ExitCode> {
    if !args.elsewhere.is_given() {
        return Err(usage("--reproducer needs a machine to compare with: -b, --host or --kvm"));
    }
    let (tape, report) = replay::first_divergence(args.tape.clone(), &args.elsewhere, &args.plugins)?;
    let divergence =
        report.divergence.context("nothing differs there: there is no divergence to write as a test")?;
    let table = spec::machine(&tape)?.cpuid;
    let test = reproducer::write(&tape, &table, &divergence)?;
    files::write(&args.output, |out| Ok(out.write_all(test.as_bytes())?))?;
    tell(format!("{}: {}", args.output.display(), divergence.summary));
    Ok(ExitCode::SAME)
}
