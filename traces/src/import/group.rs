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
use std::collections::BTreeMap;
use vmtape_arch::{
    exit::{Isa, Resume},
    level::{Level, Place},
    note::Note,
};

type Sink<'a> = &'a mut dyn FnMut(Event) -> Result<(), Error>;

/// Events that are held back at once. No kernel does so much between an exit and its entry; a trace that was made up, or has no
/// entries, may.
const MOST_HELD: usize = 1 << 17;

/// The exits that are open.
pub struct Groups {
    /// By vCPU.
    groups: Vec<Group>,
    /// Events that all of them hold back.
    held: usize,
    /// The vCPU that each task runs.
    tasks: BTreeMap<u32, u32>,
    /// The architecture of the last exit.
    isa: Isa,
    exits: u64,
    /// The text is a printed tape: events keep the order of lines, and an end of handling that is not printed is one.
    in_order: bool,
    /// The time of the last event given out that has one.
    shown: u64,
    /// Events that are older than the one before them of their vCPU.
    backwards: u64,
}

/// What a vCPU does.
#[derive(Default)]
struct Group {
    vcpu: u32,
    /// Events that are held back, the exit first if one is open.
    events: Vec<Event>,
    exit: bool,
    resumed: bool,
    /// The CPU of its last event.
    cpu: Option<u32>,
    /// It runs its guest's guest.
    nested: bool,
    /// The time of its last event.
    time: u64,
}

impl Groups {
    pub fn new(survey: &Survey) -> Self {
        Self {
            groups: Vec::new(),
            held: 0,
            tasks: survey.tasks.clone(),
            isa: survey.isa,
            exits: 0,
            in_order: survey.in_order,
            shown: 0,
            backwards: 0,
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

    /// Where a vCPU's group is.
    fn place(&mut self, vcpu: u32) -> usize {
        self.groups.binary_search_by_key(&vcpu, |group| group.vcpu).unwrap_or_else(|place| {
            self.groups.insert(place, Group { vcpu, ..Group::default() });
            place
        })
    }

    /// Takes an event. Says whether it was decoded.
    pub fn record(&mut self, record: &Record<'_>, sink: Sink<'_>) -> Result<bool, Error> {
        let vcpu = self.vcpu(record);
        let at = self.place(vcpu);
        let icount = record.time.count();
        let last = std::mem::replace(&mut self.groups[at].time, icount);
        self.backwards += u64::from(icount < last && vcpu != NO_VCPU && !self.in_order);
        if record.event == "kvm_exit"
            && let Some((rip, exit)) = record.exit(self.isa)
        {
            self.isa = exit.isa;
            self.exits += 1;
            self.close(at, !self.in_order, sink)?;
            let group = &mut self.groups[at];
            (group.exit, group.cpu, group.nested) = (true, record.cpu, false);
            group.events.push(Event::Exit(Box::new(ExitEvent { vcpu, icount, rip, exit })));
            self.hold(sink)?;
            return Ok(true);
        }
        let group = &mut self.groups[at];
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
                self.push(at, event, sink)?;
                return Ok(true);
            }
        }
        self.outside(at, icount, record, sink)?;
        let level = if self.in_order { Level::L1 } else { self.level(at, record.event) };
        let text = match record.note() {
            Ok((place, note)) => {
                let place = if self.in_order { place } else { Place { level, ..place } };
                self.note(at, place, note, sink)?;
                return Ok(true);
            }
            Err(text) => [record.event, ": ", &text].concat(),
        };
        self.push(at, Event::Line { vcpu, text }, sink)?;
        if record.event == "kvm_entry" {
            // Before 5.10 it does not tell the rip, so it stays a line, but it ends the exit.
            self.resume(at, sink)?;
            self.close(at, false, sink)?;
        }
        Ok(false)
    }

    /// Outside an exit an event's own time and rip are given before it, where they are not those that were given last.
    fn outside(&mut self, at: usize, icount: u64, record: &Record<'_>, sink: Sink<'_>) -> Result<(), Error> {
        let group = &self.groups[at];
        if group.exit {
            return Ok(());
        }
        let vcpu = group.vcpu;
        let rip = (record.event == "kvm_page_fault").then(|| record.rip()).flatten();
        if icount != self.shown || (rip.is_some() && !self.in_order) {
            self.give(Event::Moment { vcpu, icount, rip }, sink)?;
        }
        Ok(())
    }

    fn note(&mut self, at: usize, place: Place, note: Note, sink: Sink<'_>) -> Result<(), Error> {
        let group = &mut self.groups[at];
        if let Some(Event::Exit(event)) = group.events.first_mut()
            && let Some(gpa) = note::gpa_of(&event.exit, &note)
        {
            event.exit.gpa = gpa;
        }
        let vcpu = group.vcpu;
        let entry = matches!(note, Note::Entry { .. });
        if entry {
            self.resume(at, sink)?;
        }
        self.push(at, Event::Note { vcpu, place, note }, sink)?;
        if entry { self.close(at, false, sink) } else { Ok(()) }
    }

    /// The level at an event, and after it. The kernel says with an exit of L2 at once that it is one, and names entries to
    /// L2 and what it gives to L1. See: KVM svm.c svm_handle_exit(), nested.c enter_svm_guest_mode(), nested_svm_vmexit()
    fn level(&mut self, at: usize, event: &str) -> Level {
        let group = &mut self.groups[at];
        if event == "kvm_nested_vmexit" {
            group.nested = true;
            if let Some(Event::Exit(event)) = group.events.first_mut() {
                event.exit.level = Level::L2;
            }
        }
        let level = if group.nested { Level::L2 } else { Level::L1 };
        match event {
            "kvm_nested_vmenter" | "kvm_nested_vmrun" => group.nested = true,
            "kvm_nested_vmexit_inject" => group.nested = false,
            _ => {}
        }
        level
    }

    /// An entry: the handling of an open exit has ended.
    fn resume(&mut self, at: usize, sink: Sink<'_>) -> Result<(), Error> {
        let group = &mut self.groups[at];
        if group.exit && !group.resumed {
            group.resumed = true;
            let vcpu = group.vcpu;
            self.push(at, Event::resume(vcpu, Resume::GUEST), sink)?;
        }
        Ok(())
    }

    /// Holds an event back while its exit is open. In order, only an exit waits, for what follows it at once.
    fn push(&mut self, at: usize, event: Event, sink: Sink<'_>) -> Result<(), Error> {
        let group = &mut self.groups[at];
        if group.exit && !self.in_order {
            group.events.push(event);
            return self.hold(sink);
        }
        self.give_held(at, sink)?;
        self.give(event, sink)
    }

    /// Counts an event that is held back; too many are all given out, and what follows them is outside their exits.
    fn hold(&mut self, sink: Sink<'_>) -> Result<(), Error> {
        self.held += 1;
        if self.held < MOST_HELD { Ok(()) } else { self.close_all(sink) }
    }

    fn give_held(&mut self, at: usize, sink: Sink<'_>) -> Result<(), Error> {
        let mut events = std::mem::take(&mut self.groups[at].events);
        self.held -= events.len();
        events.drain(..).try_for_each(|event| self.give(event, sink))?;
        // Its memory serves the next exit.
        self.groups[at].events = events;
        Ok(())
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
    fn close(&mut self, at: usize, exits_again: bool, sink: Sink<'_>) -> Result<(), Error> {
        self.give_held(at, sink)?;
        let group = &mut self.groups[at];
        let vcpu = group.vcpu;
        let (exit, resumed) = (std::mem::take(&mut group.exit), std::mem::take(&mut group.resumed));
        if exit && exits_again && !resumed {
            sink(Event::resume(vcpu, Resume::GUEST))?;
        }
        Ok(())
    }

    /// Events are missing: what was open on that CPU may have ended among them, and what follows is not its own.
    pub fn lost(&mut self, lost: Lost, sink: Sink<'_>) -> Result<(), Error> {
        for at in 0..self.groups.len() {
            let cpu = self.groups[at].cpu;
            if lost.cpu.is_none() || cpu.is_none() || cpu == lost.cpu {
                self.close(at, false, sink)?;
            }
        }
        self.give(Event::Line { vcpu: NO_VCPU, text: lost_text(lost.cpu, lost.events) }, sink)
    }

    fn close_all(&mut self, sink: Sink<'_>) -> Result<(), Error> {
        (0..self.groups.len()).try_for_each(|at| self.close(at, false, sink))
    }

    /// Events so far that are older than the one before them of their vCPU.
    pub fn backwards(&self) -> u64 {
        self.backwards
    }

    /// Gives out what is left. Returns the number of exits.
    pub fn finish(mut self, sink: Sink<'_>) -> Result<u64, Error> {
        self.close_all(sink)?;
        Ok(self.exits)
    }
}
