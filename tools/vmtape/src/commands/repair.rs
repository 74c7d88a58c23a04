use crate::{
    files,
    output::{ExitCode, tell, usage},
};
use anyhow::Result;
use clap::ValueHint;
use indicatif::HumanBytes;
use std::path::PathBuf;
use vmtape_traces::{Event, Options, Tape, Writer, event::End};

/// Make a whole tape of what there is of a recording that was killed
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::REPAIR)]
pub struct Args {
    /// What was left of the recording: NAME.tape.partial, or a tape that was cut or damaged
    #[arg(value_hint = ValueHint::FilePath)]
    tape: PathBuf,
    /// The tape
    #[arg(short, long, value_name = "TAPE", value_hint = ValueHint::FilePath)]
    output: PathBuf,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let tape = Tape::open(&args.tape)?;
    let damage = match (tape.damage(), tape.verify()) {
        (Some(damage), _) => damage.to_string(),
        (None, Err(damage)) => damage.to_string(),
        (None, Ok(())) => {
            return Err(usage(format!(
                "{}: the tape is whole: there is nothing to repair",
                args.tape.display()
            )));
        }
    };
    let images = tape.images()?;
    let images: Vec<_> = images.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    let mut writer =
        Writer::create(files::tape(&args.output)?, tape.metadata(), &images, Options::default())?;
    let (reached, why) = copy(&tape, &mut writer);
    if !reached.ended {
        let Reached { icount, exits, .. } = reached;
        writer.push(Event::End { icount, exits, end: End::Cut });
    }
    let summary = writer.finish()?;
    let (name, bytes) = (args.output.display(), HumanBytes(summary.bytes));
    tell(format!("{name}: {} exits, {} instructions; {bytes}", summary.exits, reached.icount));
    let after = if reached.ended { "nothing that happened" } else { "what came after them" };
    tell(format!("lost: {after} ({})", why.unwrap_or(damage)));
    Ok(ExitCode::SAME)
}

/// How far a recording is good.
#[derive(Default)]
struct Reached {
    icount: u64,
    exits: u64,
    /// Its own end is there.
    ended: bool,
}

/// Copies checkpoints and events in their order, up to the first that is damaged; with what is wrong with that.
fn copy(tape: &Tape, writer: &mut Writer) -> (Reached, Option<String>) {
    let mut reached = Reached::default();
    for chunk in 0..tape.chunks().len() {
        if let Some(checkpoint) = tape.checkpoints().find(|checkpoint| checkpoint.chunk == chunk) {
            match tape.checkpoint(checkpoint) {
                Ok((name, data)) => writer.checkpoint(&name, data),
                Err(error) => return (reached, Some(error.to_string())),
            }
        }
        for event in tape.events_of(chunk) {
            match event {
                Ok(event) => {
                    reached.pass(&event);
                    writer.push(event);
                }
                Err(error) => return (reached, Some(error.to_string())),
            }
        }
    }
    (reached, None)
}

impl Reached {
    fn pass(&mut self, event: &Event) {
        // The instruction that exits retires later, and the entry after it is told too.
        let after = |icount: u64| icount.saturating_add(2);
        match event {
            Event::Exit(exit) => {
                self.exits += 1;
                self.icount = after(exit.icount);
            }
            Event::Entry(entry) => self.icount = self.icount.max(after(entry.icount)),
            Event::Milestone(milestone) => self.icount = self.icount.max(milestone.icount),
            Event::Input { icount, .. } | Event::Control { icount, .. } | Event::Devices { icount, .. } => {
                self.icount = self.icount.max(after(*icount));
            }
            Event::End { icount, .. } => (self.icount, self.ended) = (*icount, true),
            _ => {}
        }
    }
}
