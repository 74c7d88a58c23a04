//! A recorder that keeps everything.

use std::{cell::RefCell, ops::ControlFlow, rc::Rc};
use vmtape_machine::Recorder;
use vmtape_traces::event::Event;

#[derive(Default)]
pub struct Kept {
    pub events: Vec<Event>,
    /// By the count of exits.
    pub checkpoints: Vec<(u64, Vec<u8>)>,
}

pub struct Keep(pub Rc<RefCell<Kept>>);

impl Recorder for Keep {
    fn event(&mut self, event: Event) -> ControlFlow<()> {
        self.0.borrow_mut().events.push(event);
        ControlFlow::Continue(())
    }

    fn wants_checkpoints(&self) -> bool {
        true
    }

    fn checkpoint(&mut self, _icount: u64, exits: u64, bytes: Vec<u8>) {
        self.0.borrow_mut().checkpoints.push((exits, bytes));
    }
}
