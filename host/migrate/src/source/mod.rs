//! The side that the guest leaves: one step at a time, so that both sides can take turns in one process.

mod handing;
mod log;
mod memory;
mod rounds;
mod server;
mod state;

pub use log::{DirtyLog, LogMode, Page};
pub use server::Server;

use crate::{
    Error,
    guest::Guest,
    handover::State,
    link::{Incoming, Wire},
    plan::{Method, Plan},
    points::MovePoint,
    report::Sent,
    shared::{Live, Surroundings, Watch},
    stream::{Offer, Record},
};
use memory::Memory;
use vmtape_arch::PAGE_SIZE;
use vmtape_machine::Phase as MovePhase;

/// The version of the VMM's models and books that this program writes and reads.
pub(crate) const MODELS: u32 = 1;

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Worked,
    /// The peer has to do something first.
    Waits,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Offer,
    AwaitAccept,
    Round,
    Freeze,
    Flush,
    State,
    AwaitReady,
    Hand,
    AwaitDone,
    Over,
}

/// The source of a migration.
pub struct Source<'g> {
    guest: &'g mut dyn Guest,
    wire: Wire,
    plan: Plan,
    offer: Offer,
    phase: Phase,
    memory: Memory,
    log: Option<DirtyLog>,
    states: Vec<Record>,
    watch: Watch<'g>,
    pub around: Surroundings,
    pub sent: Sent,
    /// Why the guest stays.
    pub failure: Option<String>,
}

impl<'g> Source<'g> {
    pub fn new(
        guest: &'g mut dyn Guest,
        wire: Wire,
        plan: Plan,
        offer: Offer,
        around: Surroundings,
        watch: Watch<'g>,
    ) -> Self {
        Self {
            guest,
            wire,
            plan,
            offer,
            phase: Phase::Offer,
            memory: Memory::new(around.points.clone()),
            log: None,
            states: Vec::new(),
            watch,
            around,
            sent: Sent::default(),
            failure: None,
        }
    }

    /// Nothing goes over the link any more.
    pub fn hang_up(&mut self) {
        self.wire.close();
    }

    /// Does the next thing. What goes wrong before the guest was handed over leaves it here, running.
    pub fn step(&mut self) -> Step {
        let stepped = match self.phase {
            Phase::Offer => self.make_offer(),
            Phase::AwaitAccept => self.await_accept(),
            Phase::Round => self.round(),
            Phase::Freeze => self.freeze(),
            Phase::Flush => self.flush(),
            Phase::State => self.send_state(),
            Phase::AwaitReady => self.await_ready(),
            Phase::Hand => self.hand(),
            Phase::AwaitDone => self.await_done(),
            Phase::Over => Ok(Step::Over),
        };
        stepped.unwrap_or_else(|error| {
            self.stay(&error);
            Step::Over
        })
    }

    fn make_offer(&mut self) -> Result<Step, Error> {
        let icount = self.guest.machine().icount();
        self.around.points.at(icount, MovePhase::SETUP);
        self.wire.send(&Record::Note(self.offer.from.clone()))?;
        self.wire.send(&Record::Offer(self.offer.clone()))?;
        for vcpu in 0..self.offer.vcpus {
            let entries = self.guest.machine().cpuid(vcpu).to_vec();
            self.wire.send(&Record::Cpuid { vcpu, entries })?;
        }
        self.phase = Phase::AwaitAccept;
        Ok(Step::Worked)
    }

    fn await_accept(&mut self) -> Result<Step, Error> {
        match self.wire.receive()? {
            Incoming::Record(Record::Accept { epoch }) if epoch == self.plan.epoch => {}
            other => return self.other(other),
        }
        if matches!(self.plan.method, Method::Precopy | Method::Hybrid) {
            let points = self.around.points.clone();
            let log = DirtyLog::start(self.guest.machine(), self.plan.log, points)?;
            self.sent.log = Some(log.mode().to_string());
            self.log = Some(log);
        }
        let further = self.plan.attempt > 1;
        let asks = || self.around.points.ask(MovePoint::RETRY_DIRTY, self.plan.epoch, 0).is_some();
        if !(further && asks()) {
            self.memory.everything(self.guest.machine());
        }
        self.phase = if self.log.is_some() { Phase::Round } else { Phase::Freeze };
        Ok(Step::Worked)
    }

    /// The guest stands still; its state is read before memory for the last time, because reading it may write memory.
    fn freeze(&mut self) -> Result<Step, Error> {
        if !self.guest.rest()? {
            return Err(Error::NoRest);
        }
        self.around.becomes(State::Frozen)?;
        let machine = self.guest.machine();
        (self.sent.instructions, self.sent.exits) = (machine.icount(), machine.exits());
        self.around.points.at(machine.icount(), MovePhase::STOP);
        for vcpu in 0..self.offer.vcpus {
            self.states.extend(state::saved(machine, vcpu, &self.around.points)?);
        }
        if let Some(log) = &mut self.log {
            let dirty = log.take(machine)?;
            self.memory.add(dirty);
        }
        let devices = Record::Devices { version: MODELS, bytes: machine.devices()? };
        let books = Record::Books { version: MODELS, bytes: machine.books()? };
        self.states.splice(0..0, [devices, books]);
        self.phase = Phase::Flush;
        Ok(Step::Worked)
    }

    /// Sends what is left of memory.
    fn flush(&mut self) -> Result<Step, Error> {
        if !self.wire.has_room() {
            return Ok(Step::Waits);
        }
        if self.plan.method.is_postcopy() {
            return self.leave_behind();
        }
        let Some(runs) = self.memory.chunk(self.guest.machine(), &mut self.sent.stopped) else {
            self.phase = Phase::State;
            return Ok(Step::Worked);
        };
        self.send_pages(runs, true)?;
        Ok(Step::Worked)
    }

    /// What is left of memory stays here until it is asked for; only that it is zero is sent.
    fn leave_behind(&mut self) -> Result<Step, Error> {
        let (zero, discard) = self.memory.leave_behind(self.guest.machine(), &mut self.sent.stopped);
        self.wire.send(&Record::Pages(zero))?;
        for (slot, runs) in discard {
            self.wire.send(&Record::Discard { slot, runs })?;
        }
        self.phase = Phase::State;
        Ok(Step::Worked)
    }

    /// What serves the pages that stayed, once the guest runs elsewhere.
    pub fn into_server(self) -> Server {
        Server::new(self.wire, self.memory.into_left())
    }

    fn send_state(&mut self) -> Result<Step, Error> {
        self.around.points.at(self.sent.instructions, MovePhase::STATE);
        if let Some(late) = self.memory.late(self.guest.machine()) {
            self.wire.send(&Record::Pages(late))?;
        }
        // The slots as the guest's own VMM has them now, which may have changed since the offer.
        let machine = self.guest.machine();
        let slots = self.log.as_ref().map_or_else(|| machine.slots(), |log| log.original(machine));
        self.wire.send(&Record::Slots(slots))?;
        for record in std::mem::take(&mut self.states) {
            self.wire.send(&record)?;
        }
        self.around.points.at(self.sent.instructions, MovePhase::HAND_OVER);
        let rules = self.plan.handover.rules();
        self.sent.bytes = self.wire.sent;
        // Without GO the last byte of the stream is what hands the guest over.
        if !rules.go {
            self.around.becomes(State::Handed)?;
        }
        self.wire.send(&Record::End { pages: self.memory.sent() })?;
        self.phase = match (rules.ready, rules.done) {
            (true, _) => Phase::AwaitReady,
            (false, true) => Phase::AwaitDone,
            (false, false) => {
                self.around.becomes(State::Gone)?;
                Phase::Over
            }
        };
        Ok(Step::Worked)
    }

    /// Tells how far it is.
    fn tell(&self, stopped: bool) {
        let rounds = &self.sent.rounds;
        let now = if stopped { &self.sent.stopped } else { &self.memory.round };
        let last = rounds.last().copied().unwrap_or_default();
        let left = self.memory.pending();
        (self.watch)(&Live {
            round: rounds.len() + 1,
            stopped,
            pages: now.pages,
            left,
            bytes: self.wire.sent,
            left_ns: self.plan.time(left * PAGE_SIZE),
            dirty: last.dirty,
            dirty_ns: last.ns,
            downtime_ns: self.sent.stopped.ns,
        });
    }

    /// Takes what was not expected: a refusal, nothing, a peer that left, or something that has no place here.
    fn other(&mut self, incoming: Incoming) -> Result<Step, Error> {
        match incoming {
            Incoming::Nothing => Ok(Step::Waits),
            Incoming::Record(Record::Dropped { .. } | Record::Note(_)) => Ok(Step::Worked),
            Incoming::Record(Record::Refused { why, .. }) => Err(Error::Refused(why)),
            Incoming::Closed => {
                let why = "the destination has left".to_owned();
                Err(crate::link::Broken { written: 0, why }.into())
            }
            Incoming::Record(record) => Err(Error::Unexpected {
                kind: record.kind().to_string(),
                side: "source",
                state: self.around.state.to_string(),
            }),
        }
    }

    /// The guest goes on here: nothing was handed over.
    fn stay(&mut self, error: &Error) {
        self.failure = Some(error.to_string());
        self.phase = Phase::Over;
        if self.around.state != State::Dead {
            let ended = matches!(error, Error::Ended);
            let state = if ended { State::Ended } else { State::Running };
            if let Err(error) = self.goes_on(state) {
                self.failure = Some(error.to_string());
            }
            // A destination that is not there any more need not be told.
            let why = error.to_string();
            let _ = self.wire.send(&Record::Refused { epoch: self.plan.epoch, why });
        }
        self.wire.close();
    }

    fn goes_on(&mut self, state: State) -> Result<(), Error> {
        if let Some(log) = self.log.take() {
            log.stop(self.guest.machine())?;
        }
        if self.around.state != state { self.around.becomes(state) } else { Ok(()) }
    }
}
