use crate::{commands::show, output::ExitCode};
use anyhow::{Context, Result, anyhow};
use clap::{ValueEnum, ValueHint};
use std::{fs::File, io::BufWriter, path::PathBuf};
use vmtape_traces::Tape;

/// Write a tape in another format
#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_hint = ValueHint::FilePath)]
    tape: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    #[arg(long, value_enum, default_value = "ftrace")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Text as the kernel's ftrace prints it; `vmtape import` reads it back
    Ftrace,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let tape = Tape::open(&args.tape)?;
    if let Some(damage) = tape.damage() {
        return Err(anyhow!("{damage}"));
    }
    let name = || args.output.display().to_string();
    let Format::Ftrace = args.format;
    let file = File::create(&args.output).with_context(name)?;
    show::print(&tape, 0, None, BufWriter::new(file)).with_context(name)?;
    Ok(ExitCode::SAME)
}
