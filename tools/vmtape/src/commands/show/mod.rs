//! `vmtape show`: a tape in words, or the exits of it that are asked for.

mod choice;
mod episodes;
pub mod json;

use crate::{
    commands::replay::Plugins,
    machine_args::PluginArgs,
    output::{ExitCode, printable, tell, usage},
};
use anyhow::Result;
pub use choice::level;
use choice::{Choice, Looked};
use clap::ValueHint;
use std::{
    io::{BufWriter, Write},
    path::PathBuf,
};
use vmtape_traces::{Event, Metadata, Tape, flat::tag, text::Printer};

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
    #[command(flatten)]
    choice: Choice,
    /// Only what the VMM did beside running the guest
    #[arg(long, conflicts_with_all = ["from", "count", "json", "choice"])]
    ioctls: bool,
    #[command(flatten)]
    plugins: PluginArgs,
    /// Print JSON: each exit with its walk, its rules and its notes
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let tape = Tape::open(&args.tape)?;
    if args.from > 0 {
        let exits = tape.totals()?.exits;
        if args.from >= exits {
            return Err(usage(format!("--from {}: {} has {exits} exits", args.from, args.tape.display())));
        }
    }
    let names = names(&tape, &Plugins::new(&args.plugins));
    let mut out = BufWriter::new(printable());
    let looked = if args.json {
        Some(json::print(&tape, &names, args)?)
    } else if args.ioctls {
        print_ioctls(&tape, &mut out)?;
        None
    } else if args.choice.is_everything() && args.from == 0 && args.count.is_none() {
        print(&tape, &names, &mut out)?;
        None
    } else {
        Some(episodes::print(&tape, &names, args, &mut out)?)
    };
    out.flush()?;
    if let Some(Looked { at, shown: 0 }) = looked.filter(|_| args.count != Some(0)) {
        let what = if args.choice.is_everything() { "there are no exits" } else { "nothing fits" };
        tell(format!("{}: {what}: {at} exits were looked at", args.tape.display()));
    }
    Ok(match damage(&tape) {
        None => ExitCode::SAME,
        Some(damage) => {
            tell(format!("{damage}; shown as far as the tape is good"));
            ExitCode::COULD_NOT_TEST
        }
    })
}

/// The tape's names for numbers; of rules, where it has none, those of the backend that is here.
fn names(tape: &Tape, plugins: &Plugins) -> Metadata {
    let mut names = tape.metadata().clone();
    if !names.names_rules()
        && !names.backend.is_empty()
        && let Ok(plugin) = plugins.get(&names.backend)
    {
        let rules = plugin.description.rules.iter().map(|rule| Metadata::rule_note(rule.id, &rule.name));
        names.notes.extend(rules);
    }
    names
}

/// What is wrong with a tape, also with what nobody has read of it.
pub fn damage(tape: &Tape) -> Option<String> {
    match tape.damage() {
        Some(damage) => Some(damage.to_string()),
        None => tape.verify().err().map(|damage| damage.to_string()),
    }
}

/// Prints a whole tape.
pub fn print(tape: &Tape, names: &Metadata, out: impl Write) -> Result<()> {
    let mut printer = Printer::of_tape(out, names)?;
    for event in tape.events() {
        printer.event(&event?)?;
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
