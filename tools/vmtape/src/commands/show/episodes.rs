//! Some exits of a tape, each with what led to it and what was done about it.

use super::{Args, choice::Looked};
use anyhow::Result;
use std::io::Write;
use vmtape_arch::{level::Level, note::Note};
use vmtape_traces::{Event, Metadata, Tape, event::ExitEvent, exits::last_walk, text::Printer};

/// An exit with everything around it.
#[derive(Default)]
struct Episode {
    /// Since the entry of its vCPU before it.
    before: Vec<Event>,
    /// The exit itself, and what came of it up to the next one.
    after: Vec<Event>,
}

/// Prints the exits that are asked for.
pub fn print(tape: &Tape, names: &Metadata, args: &Args, out: &mut impl Write) -> Result<Looked> {
    let mut printer = Printer::of_tape(Vec::new(), names)?;
    out.write_all(&std::mem::take(printer.out()))?;
    let most = args.count.unwrap_or(u64::MAX);
    let mut looked = Looked::default();
    let mut show = |episode: Episode| -> Result<bool> {
        looked.at += 1;
        let nested = args.choice.level.is_some_and(|level| episode.leaves(level));
        let wanted = episode.exit().is_some_and(|exit| args.choice.takes(exit)) || nested;
        if !wanted {
            return Ok(looked.shown < most);
        }
        episode.print(&mut printer)?;
        let text = String::from_utf8(std::mem::take(printer.out()))?;
        if looked.shown < most && args.choice.takes_text(&text) {
            looked.shown += 1;
            out.write_all(text.as_bytes())?;
        }
        Ok(looked.shown < most)
    };
    // What led to the first exit stands behind the one before it.
    let first = args.from.saturating_sub(1);
    let mut skip = args.from > 0;
    let mut episode = Episode::default();
    for event in tape.events_from_exit(first)? {
        let event = event?;
        if matches!(event, Event::Exit(_)) {
            let before = episode.split();
            let ended = std::mem::replace(&mut episode, Episode { before, after: Vec::new() });
            if ended.exit().is_some() && !std::mem::take(&mut skip) && !show(ended)? {
                return Ok(looked);
            }
        }
        episode.after.push(event);
    }
    if episode.exit().is_some() && !skip {
        show(episode)?;
    }
    Ok(looked)
}

impl Episode {
    fn exit(&self) -> Option<&ExitEvent> {
        match self.after.first() {
            Some(Event::Exit(exit)) => Some(exit),
            _ => None,
        }
    }

    /// Whether an interrupt that is L1's takes a level out at an entry, which no exit of that level came before.
    fn leaves(&self, level: Level) -> bool {
        let leaves = |event: &Event| match event {
            Event::Note { place, note: Note::NestedIntrVmexit { .. }, .. } => place.level == level,
            _ => false,
        };
        self.before.iter().chain(&self.after).any(leaves)
    }

    /// Takes off what came after the entry that ends the handling: it leads to the next exit.
    fn split(&mut self) -> Vec<Event> {
        let Some(vcpu) = self.exit().map(|exit| exit.vcpu) else { return std::mem::take(&mut self.after) };
        let ends = |event: &Event| matches!(event, Event::Note { vcpu: of, note: Note::Entry { .. }, .. } if *of == vcpu);
        match self.after.iter().position(ends) {
            Some(entry) => self.after.split_off(entry + 1),
            None => Vec::new(),
        }
    }

    fn print(&self, printer: &mut Printer<Vec<u8>>) -> Result<()> {
        let Some(exit) = self.exit() else { return Ok(()) };
        // The time and place of what led to it are the exit's.
        printer.event(&Event::Moment { vcpu: exit.vcpu, icount: exit.icount, rip: None })?;
        let own: Vec<_> = self.before.iter().filter(|event| of_vcpu(event, exit.vcpu)).collect();
        let notes: Vec<Note> = own.iter().filter_map(|event| note(event)).copied().collect();
        // Walks before the last one went on natively.
        let mut skip = last_walk(&notes, exit.exit.level);
        for event in own {
            let is_before = skip > 0 && note(event).is_some();
            skip -= usize::from(is_before);
            if !(is_before && note(event).is_some_and(is_of_a_walk)) {
                printer.event(event)?;
            }
        }
        for event in &self.after {
            printer.event(event)?;
        }
        Ok(printer.settle()?)
    }
}

fn note(event: &Event) -> Option<&Note> {
    match event {
        Event::Note { note, .. } => Some(note),
        _ => None,
    }
}

fn is_of_a_walk(note: &Note) -> bool {
    matches!(note, Note::SiliconStep { .. } | Note::Rule { .. })
}

/// Whether an event outside exits may belong to a vCPU.
fn of_vcpu(event: &Event, vcpu: u32) -> bool {
    match event {
        Event::Note { vcpu: of, .. } | Event::Resume { vcpu: of, .. } => *of == vcpu,
        Event::Entry(entry) => entry.vcpu == vcpu,
        _ => true,
    }
}
