//! The side that the guest comes to: a machine that was just built, and takes what arrives.

mod follower;
mod load;

use crate::{
    Error,
    handover::{Moment, Rules, State},
    link::{Incoming, Wire},
    policy::{Ground, Policy},
    report::Loaded,
    shared::Surroundings,
    source::Step,
    stream::{Offer, Record},
};
pub use follower::Follower;
use load::Load;
use vmtape_arch::cpuid::CpuidEntry;
use vmtape_machine::Machine;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Offer,
    Loading,
    Armed,
    Over,
}

/// Whom a destination takes, and how it is told to run it.
pub struct Terms {
    pub policy: Policy,
    pub ground: Ground,
    /// The guest that it was built for.
    pub identity: u64,
    pub rules: Rules,
}

/// The destination of a migration.
pub struct Destination<'m> {
    machine: &'m mut Machine,
    wire: Wire,
    terms: Terms,
    phase: Phase,
    offer: Option<Offer>,
    cpuid: Vec<Vec<CpuidEntry>>,
    load: Load,
    pub around: Surroundings,
    pub loaded: Loaded,
    pub failure: Option<String>,
}

impl<'m> Destination<'m> {
    pub fn new(machine: &'m mut Machine, wire: Wire, terms: Terms, around: Surroundings) -> Self {
        Self {
            machine,
            wire,
            terms,
            phase: Phase::Offer,
            offer: None,
            cpuid: Vec::new(),
            load: Load::default(),
            around,
            loaded: Loaded::default(),
            failure: None,
        }
    }

    /// Whether memory is still at the source.
    pub fn is_followed(&self) -> bool {
        self.load.follows
    }

    /// What fetches the memory that follows, once the guest runs here.
    pub fn into_follower(self) -> Follower {
        Follower::new(self.wire, self.around.points)
    }

    /// Nothing goes over the link any more.
    pub fn hang_up(&mut self) {
        self.wire.close();
    }

    /// Does the next thing. What goes wrong before the guest runs here ends in nothing: the copy is destroyed, and the source is
    /// told where it can be.
    pub fn step(&mut self) -> Step {
        if self.phase == Phase::Over {
            return Step::Over;
        }
        let stepped = match self.wire.receive() {
            Ok(Incoming::Nothing) => return Step::Waits,
            Ok(Incoming::Closed) if self.phase == Phase::Armed && self.around.dies(Moment::WITHIN_GO) => {
                self.dead();
                return Step::Over;
            }
            Ok(Incoming::Closed) => Err(Error::Guest("the source has left".to_owned())),
            Ok(Incoming::Record(record)) => self.take(record),
            Err(error) => Err(error),
        };
        match stepped {
            Ok(()) if self.phase == Phase::Over => Step::Over,
            Ok(()) => Step::Worked,
            Err(error) => {
                self.refuse(&error);
                Step::Over
            }
        }
    }

    fn take(&mut self, record: Record) -> Result<(), Error> {
        match (self.phase, record) {
            (_, Record::Dropped { kind, number }) => {
                self.loaded.dropped.push(format!("section {number} of kind {kind}, which is optional"));
                Ok(())
            }
            (_, Record::Note(_)) => Ok(()),
            (_, Record::Refused { why, .. }) => Err(Error::Refused(why)),
            (Phase::Offer, Record::Offer(offer)) if self.offer.is_none() => {
                self.offer = Some(offer);
                Ok(())
            }
            (Phase::Offer, Record::Cpuid { vcpu, entries })
                if self.offer.is_some() && vcpu as usize == self.cpuid.len() =>
            {
                self.cpuid.push(entries);
                self.judge()
            }
            (Phase::Loading, Record::End { pages }) => self.end(pages),
            (
                Phase::Loading,
                record
                @ (Record::Pages(_) | Record::Discard { .. } | Record::Slots(_) | Record::State { .. }),
            )
            | (Phase::Loading, record @ (Record::Devices { .. } | Record::Books { .. })) => {
                self.load.take(self.machine, record, &mut self.loaded)
            }
            (Phase::Armed, Record::Go { epoch }) => self.go(epoch),
            (_, record) => Err(Error::Unexpected {
                kind: record.kind().to_string(),
                side: "destination",
                state: self.around.state.to_string(),
            }),
        }
    }

    /// Everything about the guest is known but its memory and state: it is taken or not.
    fn judge(&mut self) -> Result<(), Error> {
        let Some(offer) = &self.offer else { return Ok(()) };
        if self.cpuid.len() < offer.vcpus as usize {
            return Ok(());
        }
        if !self.machine.is_fresh() {
            return Err(Error::Used);
        }
        let own = self.machine.spec();
        if offer.identity != self.terms.identity {
            return Err(Error::Refused(format!("it was built for another guest than {}", offer.guest)));
        }
        if offer.vcpus != own.vcpus {
            let text = format!("the guest has {} vCPUs, the machine {}", offer.vcpus, own.vcpus);
            return Err(Error::Refused(text));
        }
        if offer.blocks != self.machine.blocks() {
            return Err(Error::Refused("the guest's memory is laid out otherwise".to_owned()));
        }
        self.around.epoch = offer.epoch;
        let first = self.cpuid.first().map_or(&[][..], Vec::as_slice);
        self.loaded.findings = self.terms.policy.judge(offer, first, &self.terms.ground);
        if let Some(finding) = self.loaded.findings.iter().find(|finding| finding.refuses) {
            return Err(Error::Refused(format!("policy {}: {}", self.terms.policy, finding.text)));
        }
        let capabilities = offer.capabilities.clone();
        self.machine.take_capabilities(&capabilities)?;
        self.phase = Phase::Loading;
        self.wire.send(&Record::Accept { epoch: self.around.epoch })?;
        Ok(())
    }

    fn end(&mut self, pages: u64) -> Result<(), Error> {
        self.load.finish(self.machine, &self.cpuid, &self.around.points, &mut self.loaded)?;
        if pages != self.loaded.pages {
            let text = format!("{} pages have arrived of {pages}", self.loaded.pages);
            return Err(Error::Guest(text));
        }
        self.around.becomes(State::Loaded)?;
        if self.around.dies(Moment::BEFORE_READY) {
            self.dead();
            return Ok(());
        }
        if !self.terms.rules.go {
            if self.terms.rules.ready {
                self.wire.send(&Record::Ready { epoch: self.around.epoch })?;
            }
            return self.run();
        }
        self.around.becomes(State::Armed)?;
        self.wire.send(&Record::Ready { epoch: self.around.epoch })?;
        self.phase = Phase::Armed;
        if self.around.dies(Moment::BEFORE_GO) {
            self.dead();
        }
        Ok(())
    }

    /// A GO of another attempt is out of date, and does nothing.
    fn go(&mut self, epoch: u64) -> Result<(), Error> {
        if epoch != self.around.epoch {
            self.loaded.dropped.push(format!("GO of epoch {epoch}, where {} is this one", self.around.epoch));
            return Ok(());
        }
        if self.around.dies(Moment::AFTER_GO) {
            self.dead();
            return Ok(());
        }
        self.run()
    }

    fn run(&mut self) -> Result<(), Error> {
        if !self.around.witness.borrow_mut().claim(self.around.epoch) {
            return Err(Error::Refused("the source has taken its guest back".to_owned()));
        }
        self.around.becomes(State::Running)?;
        self.phase = Phase::Over;
        if self.around.dies(Moment::AFTER_DONE) {
            self.dead();
            return Ok(());
        }
        if self.terms.rules.done
            && let Err(broken) = self.wire.send(&Record::Done { epoch: self.around.epoch })
        {
            // It runs here all the same.
            self.failure = Some(broken.to_string());
        }
        Ok(())
    }

    fn refuse(&mut self, error: &Error) {
        self.failure = Some(error.to_string());
        self.phase = Phase::Over;
        if self.around.state == State::Dead {
            return;
        }
        if let Err(error) = self.around.becomes(State::Destroyed) {
            self.failure = Some(error.to_string());
        }
        let why = match error {
            Error::Refused(why) => why.clone(),
            error => error.to_string(),
        };
        // A source that is not there any more need not be told.
        let _ = self.wire.send(&Record::Refused { epoch: self.around.epoch, why });
        self.wire.close();
    }

    fn dead(&mut self) {
        self.failure = Some(Error::Killed("destination").to_string());
        self.phase = Phase::Over;
        self.wire.close();
    }
}
