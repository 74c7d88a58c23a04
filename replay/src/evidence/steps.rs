//! A trace one exit after the other, and the events between them: nothing here grows with a tape.

use std::collections::{BTreeMap, VecDeque};
use vmtape_arch::note::Note;
use vmtape_traces::{Event, ExitGroup, Result, event::ExitEvent};

/// An exit with what was done about it, or what happened outside of one.
pub enum Step {
    Exit(Box<ExitGroup>),
    Loose { note: Note },
    Line(String),
}

/// The steps of a trace. An exit is complete where its vCPU enters the guest or exits again.
pub struct Steps<E> {
    events: Option<E>,
    open: BTreeMap<u32, ExitGroup>,
    ready: VecDeque<Step>,
    exits: u64,
}

impl<E: Iterator<Item = Result<Event>>> Steps<E> {
    pub fn new(events: E) -> Self {
        Self { events: Some(events), open: BTreeMap::new(), ready: VecDeque::new(), exits: 0 }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Exit(exit) => self.exit(*exit),
            Event::Note { vcpu, note, .. } => match self.open.get_mut(&vcpu) {
                Some(group) => {
                    group.notes.push(note);
                    if matches!(note, Note::Entry { .. }) {
                        self.close(vcpu);
                    }
                }
                None => self.ready.push_back(Step::Loose { note }),
            },
            Event::Line { text, .. } => self.ready.push_back(Step::Line(text)),
            _ => {}
        }
    }

    fn exit(&mut self, exit: ExitEvent) {
        self.close(exit.vcpu);
        let (vcpu, number) = (exit.vcpu, self.exits);
        self.open.insert(vcpu, ExitGroup { number, exit, ..ExitGroup::default() });
        self.exits += 1;
    }

    fn close(&mut self, vcpu: u32) {
        self.ready.extend(self.open.remove(&vcpu).map(|group| Step::Exit(Box::new(group))));
    }
}

impl<E: Iterator<Item = Result<Event>>> Iterator for Steps<E> {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(step) = self.ready.pop_front() {
                return Some(Ok(step));
            }
            match self.events.as_mut()?.next() {
                Some(Ok(event)) => self.take(event),
                Some(Err(error)) => {
                    self.events = None;
                    return Some(Err(error));
                }
                None => {
                    self.events = None;
                    let mut rest: Vec<_> = std::mem::take(&mut self.open).into_values().collect();
                    rest.sort_by_key(|group| group.number);
                    self.ready.extend(rest.into_iter().map(|group| Step::Exit(Box::new(group))));
                    if self.ready.is_empty() {
                        return None;
                    }
                }
            }
        }
    }
}
