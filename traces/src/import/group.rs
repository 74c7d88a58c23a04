//! Events into exits: what a vCPU's thread did from one exit to the entry that follows it belongs together.

use super::{
    Error,
    line::{Body, Lost, Record},
    note,
    survey::{Survey, VM_SHIFT},
};
use crate::{
    event::{Event, ExitEvent, NO_VCPU},
    text::{OWN, STIMULUS, lost_text, merge_stimulus, parse_own},
};
use std::collections::{BTreeMap, BTreeSet};
use vmtape_arch::{
    exit::{Isa, Resume},
    level::{Level, Place},
    note::Note,
};

type Sink<'a> = &'a mut dyn FnMut(Event) -> Result<(), Error>;

/// Events that are held back at once. No kernel does so much between an exit and its entry; a trace that was made up, or has no
/// entries, may.
const MOST_HELD: usize = 1 << 17;

/// The exits that are open, by vCPU.
pub struct Groups {
    open: BTreeMap<u32, Group>,
    /// Events in all of them.
    held: usize,
    /// The vCPU that each task runs.
    tasks: BTreeMap<u32, u32>,
    /// vCPUs that run their guest's guest.
    nested: BTreeSet<u32>,
    /// The architecture of the last exit.
    isa: Isa,
    exits: u64,
    /// The text is a printed tape: events keep the order of lines, and an end of handling that is not printed is one.
    in_order: bool,
    /// The time of the last event given out that has one.
    shown: u64,
}

#[derive(Default)]
struct Group {
    /// Events that are held back, the exit first if one is open.
    events: Vec<Event>,
    exit: bool,
    resumed: bool,
    /// The CPU of its last event.
    cpu: Option<u32>,
}

impl Groups {
    pub fn new(survey: &Survey) -> Self {
        Self {
            open: BTreeMap::new(),
            held: 0,
            tasks: survey.tasks.clone(),
            nested: BTreeSet::new(),
            isa: survey.isa,
            exits: 0,
            in_order: survey.in_order,
            shown: 0,
        }
    }

    /// The vCPU of an event: the one that it names, else the one that its task runs.
    fn vcpu(&mut self, record: &Record<'_>) -> u32 {
        let Some(runs) = self.tasks.get_mut(&record.pid) else { return NO_VCPU };
        if let Some(named) = record.named_vcpu() {
            *runs = *runs >> VM_SHIFT << VM_SHIFT | named;
        }
        *runs
    }

    /// Takes an event. Says whether it was decoded.
    pub fn record(&mut self, record: &Record<'_>, sink: Sink<'_>) -> Result<bool, Error> {
        let vcpu = self.vcpu(record);
        let icount = record.time.count();
        if record.event == "kvm_exit"
            && let Some((rip, exit)) = record.exit(self.isa)
        {
            self.isa = exit.isa;
            self.exits += 1;
            self.close(vcpu, !self.in_order, sink)?;
            self.nested.remove(&vcpu);
            let exit = Event::Exit(Box::new(ExitEvent { vcpu, icount, rip, exit }));
            self.open.insert(vcpu, Group { events: vec![exit], exit: true, resumed: false, cpu: record.cpu });
            self.hold(sink)?;
            return Ok(true);
        }
        let group = self.open.entry(vcpu).or_default();
        group.cpu = record.cpu;
        if let (Body::Text(text), true) = (record.body, record.event.starts_with(OWN)) {
            if record.event == STIMULUS {
                if let [exit] = &mut group.events[..]
                    && merge_stimulus(exit, text).is_some()
                {
                    return Ok(true);
                }
            } else if let Some(event) = parse_own(text) {
                group.resumed |= matches!(event, Event::Resume { .. });
                self.push(vcpu, event, sink)?;
                return Ok(true);
            }
        }
        self.outside(vcpu, icount, record, sink)?;
        let level = if self.in_order { Level::L1 } else { self.level(vcpu, record.event) };
        if let Some((place, note)) = record.note() {
            let place = if self.in_order { place } else { Place { level, ..place } };
            self.note(vcpu, place, note, sink)?;
            return Ok(true);
        }
        let text = format!("{}: {}", record.event, record.text());
        self.push(vcpu, Event::Line { vcpu, text }, sink)?;
        if record.event == "kvm_entry" {
            // Before 5.10 it does not tell the rip, so it stays a line, but it ends the exit.
            self.resume(vcpu, sink)?;
            self.close(vcpu, false, sink)?;
        }
        Ok(false)
    }

    /// Outside an exit an event's own time and rip are given before it, where they are not those that were given last.
    fn outside(&mut self, vcpu: u32, icount: u64, record: &Record<'_>, sink: Sink<'_>) -> Result<(), Error> {
        if self.open.get(&vcpu).is_some_and(|group| group.exit) {
            return Ok(());
        }
        let rip = (record.event == "kvm_page_fault").then(|| record.rip()).flatten();
        if icount != self.shown || (rip.is_some() && !self.in_order) {
            self.give(Event::Moment { vcpu, icount, rip }, sink)?;
        }
        Ok(())
    }

    fn note(&mut self, vcpu: u32, place: Place, note: Note, sink: Sink<'_>) -> Result<(), Error> {
        let group = self.open.entry(vcpu).or_default();
        if let Some(Event::Exit(event)) = group.events.first_mut()
            && let Some(gpa) = note::gpa_of(&event.exit, &note)
        {
            event.exit.gpa = gpa;
        }
        let entry = matches!(note, Note::Entry { .. });
        if entry {
            self.resume(vcpu, sink)?;
        }
        self.push(vcpu, Event::Note { vcpu, place, note }, sink)?;
        if entry { self.close(vcpu, false, sink) } else { Ok(()) }
    }

    /// The level at an event, and after it. The kernel says with an exit of L2 at once that it is one, and names entries to
    /// L2 and what it gives to L1. See: KVM svm.c svm_handle_exit(), nested.c enter_svm_guest_mode(), nested_svm_vmexit()
    fn level(&mut self, vcpu: u32, event: &str) -> Level {
        if event == "kvm_nested_vmexit" {
            self.nested.insert(vcpu);
            let exit = self.open.get_mut(&vcpu).and_then(|group| group.events.first_mut());
            if let Some(Event::Exit(event)) = exit {
                event.exit.level = Level::L2;
            }
        }
        let level = if self.nested.contains(&vcpu) { Level::L2 } else { Level::L1 };
        match event {
            "kvm_nested_vmenter" | "kvm_nested_vmrun" => _ = self.nested.insert(vcpu),
            "kvm_nested_vmexit_inject" => _ = self.nested.remove(&vcpu),
            _ => {}
        }
        level
    }

    /// An entry: the handling of an open exit has ended.
    fn resume(&mut self, vcpu: u32, sink: Sink<'_>) -> Result<(), Error> {
        let group = self.open.entry(vcpu).or_default();
        if group.exit && !group.resumed {
            group.resumed = true;
            self.push(vcpu, Event::Resume { vcpu, resume: Resume::GUEST }, sink)?;
        }
        Ok(())
    }

    /// Holds an event back while its exit is open. In order, only an exit waits, for what follows it at once.
    fn push(&mut self, vcpu: u32, event: Event, sink: Sink<'_>) -> Result<(), Error> {
        let group = self.open.entry(vcpu).or_default();
        if group.exit && !self.in_order {
            group.events.push(event);
            return self.hold(sink);
        }
        for held in std::mem::take(&mut group.events) {
            self.held -= 1;
            self.give(held, sink)?;
        }
        self.give(event, sink)
    }

    /// Counts an event that is held back; too many are all given out, and what follows them is outside their exits.
    fn hold(&mut self, sink: Sink<'_>) -> Result<(), Error> {
        self.held += 1;
        if self.held < MOST_HELD { Ok(()) } else { self.close_all(sink) }
    }

    fn give(&mut self, event: Event, sink: Sink<'_>) -> Result<(), Error> {
        match &event {
            Event::Exit(exit) => self.shown = exit.icount,
            Event::Entry(entry) => self.shown = entry.icount,
            Event::Moment { icount, .. }
            | Event::Input { icount, .. }
            | Event::Control { icount, .. }
            | Event::StateHash { icount, .. }
            | Event::End { icount, .. } => self.shown = *icount,
            Event::Milestone(milestone) => self.shown = milestone.icount,
            _ => {}
        }
        sink(event)
    }

    /// Gives a group out. A vCPU that exits again had resumed, even if the trace has no entries.
    fn close(&mut self, vcpu: u32, exits_again: bool, sink: Sink<'_>) -> Result<(), Error> {
        let Some(group) = self.open.remove(&vcpu) else { return Ok(()) };
        self.held -= group.events.len();
        let resumed = group.exit && exits_again && !group.resumed;
        for event in group.events {
            self.give(event, sink)?;
        }
        if resumed {
            sink(Event::Resume { vcpu, resume: Resume::GUEST })?;
        }
        Ok(())
    }

    /// Events are missing: what was open on that CPU may have ended among them, and what follows is not its own.
    pub fn lost(&mut self, lost: Lost, sink: Sink<'_>) -> Result<(), Error> {
        let of_it = |group: &Group| lost.cpu.is_none() || group.cpu.is_none() || group.cpu == lost.cpu;
        let vcpus: Vec<_> =
            self.open.iter().filter(|(_, group)| of_it(group)).map(|(vcpu, _)| *vcpu).collect();
        for vcpu in vcpus {
            self.close(vcpu, false, sink)?;
        }
        self.give(Event::Line { vcpu: NO_VCPU, text: lost_text(lost.cpu, lost.events) }, sink)
    }

    fn close_all(&mut self, sink: Sink<'_>) -> Result<(), Error> {
        let vcpus: Vec<_> = self.open.keys().copied().collect();
        vcpus.into_iter().try_for_each(|vcpu| self.close(vcpu, false, sink))
    }

    /// Gives out what is left. Returns the number of exits.
    pub fn finish(mut self, sink: Sink<'_>) -> Result<u64, Error> {
        self.close_all(sink)?;
        Ok(self.exits)
    }
}
