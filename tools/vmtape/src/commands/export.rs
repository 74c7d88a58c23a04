use crate::{commands::show, files, output::ExitCode};
use anyhow::{Result, anyhow};
use clap::{ValueEnum, ValueHint};
use std::path::PathBuf;
use vmtape_traces::{Tape, export};

/// Write a tape in another format
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::EXPORT)]
pub struct Args {
    /// The tape to write elsewhere
    #[arg(value_hint = ValueHint::FilePath)]
    tape: PathBuf,
    /// The file to write; -: standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    /// In which format
    #[arg(long, value_enum, default_value = "ftrace")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Text as the kernel's ftrace prints it; `vmtape import` reads it back
    Ftrace,
    /// One JSON object for the tape, then one per event
    Jsonl,
    /// Chrome's trace events, which Perfetto opens: a track per vCPU, each exit a slice
    Chrome,
    /// One line per exit: exit,vcpu,time_us,rip,isa,reason,reason_code,info1,info2,gpa,intr_info,error_code
    Csv,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let tape = Tape::open(&args.tape)?;
    if let Some(damage) = tape.damage() {
        return Err(anyhow!("{damage}"));
    }
    tape.verify()?;
    files::write(&args.output, |out| {
        match args.format {
            Format::Ftrace => {
                // The text is that of the tape which `import` makes of it.
                let mut names = tape.metadata().clone();
                names.forget_rules();
                show::print(&tape, &names, out)?;
            }
            Format::Jsonl => export::json_lines(&tape, out)?,
            Format::Chrome => export::chrome::write(&tape, out)?,
            Format::Csv => export::csv::write(&tape, out)?,
        }
        Ok(())
    })?;
    Ok(ExitCode::SAME)
}
