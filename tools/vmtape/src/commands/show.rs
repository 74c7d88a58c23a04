use crate::output::{ExitCode, Printable, tell, usage};
use anyhow::Result;
use clap::ValueHint;
use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
};
use vmtape_arch::{level::Level, note::Note};
use vmtape_traces::{Event, Tape, flat::tag, text::Printer};

/// Print a tape, every exit in the words of the kernel's tracepoints
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::SHOW)]
pub struct Args {
    /// The tape to print
    #[arg(value_hint = ValueHint::FilePath)]
    tape: PathBuf,
    /// Begin with this exit (the first is 0)
    #[arg(long, value_name = "EXIT", default_value_t = 0)]
    from: u64,
    /// Stop after so many exits
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Only exits of a level, and what was done about them: L2 is a guest's guest
    #[arg(long, value_name = "L1|L2", value_parser = level, conflicts_with = "ioctls")]
    level: Option<Level>,
    /// Only what the VMM did beside running the guest
    #[arg(long, conflicts_with_all = ["from", "count"])]
    ioctls: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let tape = Tape::open(&args.tape)?;
    if args.from > 0 {
        let exits = tape.totals()?.exits;
        if args.from >= exits {
            return Err(usage(format!("--from {}: {} has {exits} exits", args.from, args.tape.display())));
        }
    }
    let mut out = BufWriter::new(Printable(io::stdout().lock()));
    if args.ioctls {
        print_ioctls(&tape, &mut out)?;
    } else {
        print_of(&tape, args.level, args.from, args.count, &mut out)?;
    }
    out.flush()?;
    Ok(match damage(&tape) {
        None => ExitCode::SAME,
        Some(damage) => {
            tell(format!("{damage}; shown as far as the tape is good"));
            ExitCode::COULD_NOT_TEST
        }
    })
}

/// Reads the name of a level.
pub fn level(text: &str) -> Result<Level, String> {
    Level::from_name(text).ok_or_else(|| format!("`{text}` is neither L1 nor L2"))
}

/// What is wrong with a tape, also with what nobody has read of it.
pub fn damage(tape: &Tape) -> Option<String> {
    match tape.damage() {
        Some(damage) => Some(damage.to_string()),
        None => tape.verify().err().map(|damage| damage.to_string()),
    }
}

/// Prints exits of a tape with everything around them.
pub fn print(tape: &Tape, from: u64, count: Option<u64>, out: impl Write) -> Result<()> {
    print_of(tape, None, from, count, out)
}

/// Prints exits of one level, or all.
fn print_of(tape: &Tape, only: Option<Level>, from: u64, count: Option<u64>, out: impl Write) -> Result<()> {
    let mut shown = only.is_none();
    let mut printer = Printer::of_tape(out, tape.metadata())?;
    let mut left = count.unwrap_or(u64::MAX);
    let events = if from == 0 { tape.events() } else { tape.events_from_exit(from)? };
    for event in events {
        let event = event?;
        match &event {
            Event::Exit(exit) => {
                shown = only.is_none_or(|only| only == exit.exit.level);
                if shown && left == 0 {
                    break;
                }
                left -= u64::from(shown);
            }
            // An interrupt that is L1's takes L2 out at an entry, which no exit of L2's came before.
            Event::Note { place, note: Note::NestedIntrVmexit { .. }, .. } => {
                shown |= only == Some(place.level);
            }
            _ => {}
        }
        if shown {
            printer.event(&event)?;
        }
    }
    printer.finish()?;
    Ok(())
}

/// Prints the ioctls of a tape; only chunks that hold some are read.
fn print_ioctls(tape: &Tape, out: &mut impl Write) -> Result<()> {
    for event in tape.events_with(tag::CONTROL) {
        if let Event::Control { icount, control } = event? {
            writeln!(out, "after {icount} instructions: {control}")?;
        }
    }
    Ok(())
}
