//! A machine that runs in stretches, its events at hand after each.

use crate::{
    Error,
    observer::{Log, Observation, Observer, PageFault},
};
use std::{cell::RefCell, io::Write, ops::ControlFlow, rc::Rc};
use vmtape_abi::Backend;
use vmtape_arch::{exit::ResumeKind, note::NoteKind};
use vmtape_machine::{Inputs, Limits, Machine, MachineSpec, Recorder, Snapshot, vmm::When};
use vmtape_traces::{Event, event::End};

/// Makes a VM of the backend that a specification names.
pub type Create<'a> = &'a dyn Fn(&MachineSpec) -> Result<Box<dyn Backend>, Error>;

/// What a piece of a run is at most, after which its events are given away.
pub(crate) const PIECE_EXITS: u64 = 4096;
pub(crate) const PIECE_INSTRUCTIONS: u64 = 1 << 20;

/// Limits that belong to a run: the user's, not the watchdog's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub instructions: u64,
    pub exits: u64,
    /// Where the recording was interrupted.
    pub interrupted: Option<u64>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { instructions: u64::MAX, exits: u64::MAX, interrupted: None }
    }
}

/// What a machine has told since it was last asked.
#[derive(Default)]
struct Heard {
    on: bool,
    log: Option<Log>,
    events: Vec<Event>,
    serial: Vec<u8>,
}

#[derive(Clone, Default)]
struct Listener(Rc<RefCell<Heard>>);

impl Recorder for Listener {
    fn wants(&self, _: NoteKind) -> bool {
        self.0.borrow().on
    }

    fn event(&mut self, event: Event) -> ControlFlow<()> {
        let mut heard = self.0.borrow_mut();
        if heard.on {
            if let Some(log) = &heard.log {
                log.push(Observation::Event(event.clone()));
            }
            heard.events.push(event);
        }
        ControlFlow::Continue(())
    }
}

impl Write for Listener {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().serial.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A machine on its way.
pub struct Player {
    pub machine: Machine,
    heard: Listener,
    budget: Budget,
    /// How it ended, once it has.
    pub end: Option<End>,
}

impl Player {
    /// Builds the machine. `listen`: events are kept from the start.
    pub fn new(
        spec: MachineSpec,
        inputs: Box<dyn Inputs>,
        budget: Budget,
        create: Create,
        listen: bool,
    ) -> Result<Self, Error> {
        let backend = create(&spec)?;
        Self::with(
            spec,
            backend,
            inputs,
            budget,
            Listener(Rc::new(RefCell::new(Heard { on: listen, ..Heard::default() }))),
        )
    }

    /// As [`Player::new`], with everything that crosses the boundary written to a log.
    pub fn observed(
        spec: MachineSpec,
        inputs: Box<dyn Inputs>,
        budget: Budget,
        create: Create,
        listen: bool,
    ) -> Result<Self, Error> {
        let log = Log::default();
        let backend = Box::new(Observer::new(create(&spec)?, log.clone()));
        let heard = Heard { log: Some(log), on: listen, ..Heard::default() };
        Self::with(spec, backend, inputs, budget, Listener(Rc::new(RefCell::new(heard))))
    }

    fn with(
        spec: MachineSpec,
        backend: Box<dyn Backend>,
        inputs: Box<dyn Inputs>,
        budget: Budget,
        heard: Listener,
    ) -> Result<Self, Error> {
        let mut machine = Machine::new(spec, backend, inputs, Some(Box::new(heard.clone())))?;
        machine.set_serial(Box::new(heard.clone()));
        Ok(Self { machine, heard, budget, end: None })
    }

    /// Keeps this moment: see [`Machine::snapshot`].
    pub fn snapshot(&mut self) -> Result<Snapshot, Error> {
        Ok(self.machine.snapshot()?)
    }

    /// Goes back to a moment of this machine, with inputs of which nothing was taken. What was heard and not taken is forgotten.
    pub fn rewind(&mut self, snapshot: &Snapshot, inputs: Box<dyn Inputs>) -> Result<(), Error> {
        self.machine.rewind(snapshot, inputs, Some(Box::new(self.heard.clone())))?;
        self.end = None;
        self.take_events();
        self.take_serial();
        self.take_observations();
        Ok(())
    }

    /// Keeps events from here on, or stops keeping them.
    pub fn listen(&self, on: bool) {
        let mut heard = self.heard.0.borrow_mut();
        heard.on = on;
        if let Some(log) = &heard.log {
            log.switch(on);
        }
    }

    /// Runs until so many instructions have retired in all, or so many exits were taken, or the end.
    pub fn advance(&mut self, instructions: u64, exits: u64) -> Result<(), Error> {
        if self.end.is_some() {
            return Ok(());
        }
        let limits = Limits {
            instructions: instructions.min(self.budget.instructions),
            exits: exits.min(self.budget.exits),
            interrupted: self.budget.interrupted,
            ..Limits::default()
        };
        let end = self.machine.advance(&limits);
        if let End::Fatal { resume, reason, .. } = &end
            && resume.kind == ResumeKind::BACKEND_FAILED
        {
            let backend = self.machine.spec().backend.clone();
            return Err(Error::Failed { backend, exits: self.machine.exits(), reason: reason.clone() });
        }
        let paused = matches!(end, End::Limit { .. })
            && self.machine.icount() < self.budget.instructions
            // Where both limits are reached at once, the next call says which one ends the run.
            && (self.machine.exits() < self.budget.exits || self.machine.icount() >= instructions);
        if !paused {
            self.machine.finish(&end);
            self.end = Some(end);
        }
        Ok(())
    }

    /// Runs until so many instructions have retired in all, or the end. The events are given away piece by piece, so that
    /// they are few however long the run is.
    pub fn advance_telling(
        &mut self,
        instructions: u64,
        tell: &mut dyn FnMut(Vec<Event>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        loop {
            let piece = self.machine.icount().saturating_add(PIECE_INSTRUCTIONS);
            self.advance(instructions.min(piece), self.machine.exits() + PIECE_EXITS)?;
            tell(self.take_events())?;
            if self.end.is_some() || self.machine.icount() >= instructions {
                return Ok(());
            }
        }
    }

    /// Runs to a moment, and on to where the guest can move to another machine. `false`: it has ended, or does not come to
    /// rest.
    pub fn come_to_rest(&mut self, at: When) -> Result<bool, Error> {
        match at {
            When::Create | When::Start => {}
            When::Exit(exits) => self.advance(u64::MAX, exits)?,
            When::Insn(instructions) => self.advance(instructions, u64::MAX)?,
        }
        self.rest()
    }

    /// Runs on to where the guest can move to another machine, as in [`Player::come_to_rest`].
    pub fn rest(&mut self) -> Result<bool, Error> {
        /// Instructions in a row that may leave the guest before it is considered not to come to rest.
        const PATIENCE: u32 = 256;
        for _ in 0..PATIENCE {
            if self.end.is_some() || self.machine.can_move() {
                break;
            }
            self.advance(self.machine.icount() + 1, u64::MAX)?;
        }
        Ok(self.end.is_none() && self.machine.can_move())
    }

    /// The events since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.heard.0.borrow_mut().events)
    }

    /// The events since the last call of [`Player::take_events`], which keeps them.
    pub fn peek_events(&self) -> Vec<Event> {
        self.heard.0.borrow().events.clone()
    }

    /// What crossed the boundary since the last call, for a [`Player::observed`] one.
    pub fn take_observations(&self) -> Vec<Observation> {
        self.heard.0.borrow().log.as_ref().map(Log::take).unwrap_or_default()
    }

    /// The guest's page faults since the last call, for a [`Player::observed`] one.
    pub fn take_page_faults(&self) -> Vec<PageFault> {
        self.heard.0.borrow().log.as_ref().map(Log::take_page_faults).unwrap_or_default()
    }

    /// What the guest printed since the last call.
    pub fn take_serial(&self) -> Vec<u8> {
        std::mem::take(&mut self.heard.0.borrow_mut().serial)
    }
}
