//! Lines into exits: what a vCPU's thread printed from one exit to the entry that follows it belongs together.

use super::{Error, line::Record, note};
use crate::{
    event::{Event, ExitEvent},
    text::{OWN, STIMULUS, merge_stimulus, parse_own, split_place},
};
use std::collections::BTreeMap;
use vmtape_arch::{
    exit::{Isa, Resume},
    level::Place,
    note::Note,
};

type Sink<'a> = &'a mut dyn FnMut(Event) -> Result<(), Error>;

/// The exits that are open, by vCPU.
#[derive(Default)]
pub struct Groups {
    open: BTreeMap<u32, Group>,
    /// The architecture of the last exit.
    isa: Isa,
    exits: u64,
    /// The text is a printed tape: events keep the order of lines, and an end of handling that is not printed is one.
    pub in_order: bool,
}

#[derive(Default)]
struct Group {
    /// Events that are held back, the exit first if one is open.
    events: Vec<Event>,
    exit: bool,
    resumed: bool,
}

impl Groups {
    /// Takes a line. Says whether it was decoded.
    pub fn record(
        &mut self,
        vcpu: u32,
        clock: u64,
        record: &Record<'_>,
        sink: Sink<'_>,
    ) -> Result<bool, Error> {
        if record.event == "kvm_exit"
            && let Some((rip, exit)) = note::exit(record.text, self.isa)
        {
            self.isa = exit.isa;
            self.exits += 1;
            self.close(vcpu, !self.in_order, sink)?;
            let exit = Event::Exit(Box::new(ExitEvent { vcpu, icount: clock, rip, exit }));
            self.open.insert(vcpu, Group { events: vec![exit], exit: true, resumed: false });
            return Ok(true);
        }
        let group = self.open.entry(vcpu).or_default();
        if record.event == STIMULUS {
            if let [exit] = &mut group.events[..]
                && merge_stimulus(exit, record.text).is_some()
            {
                return Ok(true);
            }
        } else if record.event.starts_with(OWN)
            && let Some(event) = parse_own(record.text)
        {
            group.resumed |= matches!(event, Event::Resume { .. });
            self.push(vcpu, event, sink)?;
            return Ok(true);
        } else {
            let (text, place) = split_place(record.text);
            if let Some(note) = note::note(record.event, text) {
                self.note(vcpu, place, note, sink)?;
                return Ok(true);
            }
        }
        let text = format!("{}: {}", record.event, record.text);
        self.push(vcpu, Event::Line { vcpu, text }, sink)?;
        Ok(false)
    }

    fn note(&mut self, vcpu: u32, place: Place, note: Note, sink: Sink<'_>) -> Result<(), Error> {
        let group = self.open.entry(vcpu).or_default();
        if let Some(Event::Exit(event)) = group.events.first_mut()
            && let Some(gpa) = note::gpa_of(&event.exit, &note)
        {
            event.exit.gpa = gpa;
        }
        let entry = matches!(note, Note::Entry { .. });
        if entry && group.exit && !group.resumed {
            group.resumed = true;
            self.push(vcpu, Event::Resume { vcpu, resume: Resume::GUEST }, sink)?;
        }
        self.push(vcpu, Event::Note { vcpu, place, note }, sink)?;
        if entry { self.close(vcpu, false, sink) } else { Ok(()) }
    }

    /// Holds an event back while its exit is open. In order, only an exit waits, for what follows it at once.
    fn push(&mut self, vcpu: u32, event: Event, sink: Sink<'_>) -> Result<(), Error> {
        let group = self.open.entry(vcpu).or_default();
        if group.exit && !self.in_order {
            group.events.push(event);
            return Ok(());
        }
        for held in group.events.drain(..) {
            sink(held)?;
        }
        sink(event)
    }

    /// Gives a group out. A vCPU that exits again had resumed, even if the trace has no entries.
    fn close(&mut self, vcpu: u32, exits_again: bool, sink: Sink<'_>) -> Result<(), Error> {
        let Some(group) = self.open.remove(&vcpu) else { return Ok(()) };
        let resumed = group.exit && exits_again && !group.resumed;
        for event in group.events {
            sink(event)?;
        }
        if resumed {
            sink(Event::Resume { vcpu, resume: Resume::GUEST })?;
        }
        Ok(())
    }

    /// Gives out what is left. Returns the number of exits.
    pub fn finish(mut self, sink: Sink<'_>) -> Result<u64, Error> {
        let vcpus: Vec<_> = self.open.keys().copied().collect();
        for vcpu in vcpus {
            self.close(vcpu, false, sink)?;
        }
        Ok(self.exits)
    }
}
