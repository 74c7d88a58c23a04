//! A move between two processes, each of which has the tape: one has its guest leave, the other takes it, and holds it against its
//! twin.

use super::{Fate, Journey, Landed, Moved, Way};
use crate::{Error, sides::Sides};
use std::{cell::RefCell, rc::Rc};
use vmtape_machine::vmm::When;
use vmtape_migrate::{
    Outcome, Surroundings,
    destination::{Destination, Terms},
    handover::{Journal, Moment, Side, State, Witness},
    link::{Link, Wire},
    policy::Ground,
    source::{Source, Step},
    stream::Offer,
};

/// The other process, and what both or this one have at hand.
pub struct Peer {
    pub link: Box<dyn Link>,
    /// Makes another link where that one breaks while memory follows the guest.
    pub renew: Box<dyn FnMut() -> Option<Box<dyn Link>>>,
    /// Where transitions are written down.
    pub journal: Rc<RefCell<dyn Journal>>,
    /// The device that both have; `None`: they have none.
    pub witness: Option<Witness>,
}

impl Sides<'_> {
    /// Has the guest leave at a moment.
    pub fn send(&self, journey: &Journey, at: When, peer: Peer) -> Result<Outcome, Error> {
        let Peer { link, mut renew, journal, witness } = peer;
        let mut player = self.traveller(&self.expected, false)?;
        if !player.come_to_rest(at)? {
            return Err(Error::NobodyMoves { tape: self.tape.name().to_owned(), at });
        }
        let offer = Offer::of(&mut player.machine, journey.plan.epoch)?;
        let around = around(journey, Side::Source, State::Running, journal, witness);
        let points = around.points.clone();
        let wire = Wire::new(link, points.clone());
        let mut source = Source::new(&mut player, wire, journey.plan, offer, around, journey.watch);
        while source.step() != Step::Over {}
        let mut outcome = outcome(journey, &source.around, source.failure.take());
        (outcome.source, outcome.sent) = (source.around.state, source.sent.clone());
        if outcome.source == State::Gone && journey.plan.method.is_postcopy() {
            let left = source.into_server().serve(&mut *renew);
            outcome.faults = points.fired();
            if left > 0 {
                outcome.failure = Some(format!("the destination has left without {left} pages of its guest"));
            }
        }
        Ok(outcome)
    }

    /// Takes a guest, and runs it beside its twin.
    pub fn receive(
        &self,
        journey: &Journey,
        peer: Peer,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Moved, Error> {
        let Peer { link, renew, journal, witness } = peer;
        let mut player = self.traveller(&self.actual, false)?;
        let terms = Terms {
            policy: journey.policy,
            ground: Ground::of(&player.machine),
            identity: player.machine.spec().identity()?,
            rules: journey.plan.handover.rules(),
        };
        let around = around(journey, Side::Destination, State::Empty, journal, witness);
        let points = around.points.clone();
        let wire = Wire::new(link, points.clone());
        let mut destination = Destination::new(&mut player.machine, wire, terms, around);
        while destination.step() != Step::Over {}
        let mut outcome = outcome(journey, &destination.around, destination.failure.take());
        (outcome.destination, outcome.loaded) = (destination.around.state, destination.loaded.clone());
        outcome.epoch = destination.around.epoch;
        if outcome.destination != State::Running {
            return Ok(Moved { fate: Fate::of_move(&outcome), report: None, outcomes: vec![outcome] });
        }
        let follower = destination.is_followed().then(|| destination.into_follower().renewed_by(renew));
        let landed = Landed::new(player, follower);
        let report = self.landed(&landed, progress)?;
        // What its guest has not needed comes all the same, before the source may go.
        outcome.loaded.waited = points.waited();
        let lost = landed.pull();
        outcome.faults = points.fired();
        let mut outcomes = vec![outcome];
        let mut fate = Fate::of(&outcomes, Some(&report));
        if lost > 0 {
            outcomes[0].failure = Some(format!("{lost} pages of the guest do not come"));
            fate = Fate::LOST;
        }
        Ok(Moved { fate, report: Some(report), outcomes })
    }

    fn landed(&self, landed: &Landed, progress: &mut dyn FnMut(u64)) -> Result<crate::Report, Error> {
        let sides = Sides {
            tape: self.tape,
            expected: self.expected.clone(),
            actual: self.actual.clone(),
            create: self.create,
            expected_plugin: self.expected_plugin,
            plugin: self.plugin,
            context: self.context,
            at: self.at,
            way: Some(Way::Landed(landed)),
            explain: self.explain,
            reproduce: self.reproduce.clone(),
            inputs: None,
        };
        sides.beside_twin(progress)
    }
}

fn around(
    journey: &Journey,
    side: Side,
    state: State,
    journal: Rc<RefCell<dyn Journal>>,
    shared: Option<Witness>,
) -> Surroundings {
    let alone = || {
        let mut witness = Witness::new();
        if side == Side::Destination {
            // Nobody in this process runs the guest.
            witness.stops(Side::Source, journey.plan.epoch);
        }
        witness
    };
    Surroundings {
        side,
        epoch: journey.plan.epoch,
        state,
        points: (journey.points)(),
        witness: Rc::new(RefCell::new(shared.unwrap_or_else(alone))),
        journal,
        moment: Moment::default(),
    }
}

/// What this side knows of the outcome; of the other one it knows what it has been told.
fn outcome(journey: &Journey, around: &Surroundings, failure: Option<String>) -> Outcome {
    let witness = around.witness.borrow();
    let told = |own, other| if around.state == own { other } else { State::Unheard };
    Outcome {
        handover: journey.plan.handover.name(),
        epoch: around.epoch,
        source: told(State::Running, State::Gone),
        destination: told(State::Gone, State::Running),
        runners: witness.runners(),
        two_running: witness.two_running(),
        failure,
        sent: Default::default(),
        loaded: Default::default(),
        journal: Vec::new(),
        witness: witness.events().to_vec(),
        faults: around.points.fired(),
    }
}
