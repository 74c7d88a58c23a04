//! A move between two processes, each of which has the tape: one has its guest leave, the other takes it, and holds it against its
//! twin.

use super::{Journey, Moved, Verdict, Way};
use crate::{Error, player::Player, sides::Sides};
use std::{cell::RefCell, rc::Rc};
use vmtape_machine::{MachineSpec, vmm::When};
use vmtape_migrate::{
    Outcome, Surroundings,
    destination::{Destination, Terms},
    handover::{Journal, Moment, Side, State, Witness},
    link::{Link, Wire},
    policy::Ground,
    source::{Source, Step},
    stream::Offer,
};

/// The other process, and where transitions are written down.
pub struct Peer {
    pub link: Box<dyn Link>,
    pub journal: Rc<RefCell<dyn Journal>>,
}

impl Sides<'_> {
    /// Has the guest leave at a moment.
    pub fn send(&self, journey: &Journey, at: When, peer: Peer) -> Result<Outcome, Error> {
        let mut player = self.traveller(&self.expected, false)?;
        if !player.come_to_rest(at)? {
            return Err(Error::NobodyMoves { tape: self.tape.name().to_owned(), at });
        }
        let offer = Offer::of(&mut player.machine, journey.plan.epoch)?;
        let around = around(journey, Side::Source, State::Running, peer.journal);
        let wire = Wire::new(peer.link, around.points.clone());
        let mut source = Source::new(&mut player, wire, journey.plan, offer, around);
        while source.step() != Step::Over {}
        let mut outcome = outcome(journey, &source.around, source.failure.take());
        (outcome.source, outcome.sent) = (source.around.state, source.sent.clone());
        if outcome.source == State::Gone && journey.plan.method.is_postcopy() {
            let mut server = source.into_server();
            // Until the destination has everything, and leaves.
            while let Ok(true) = server.step() {}
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
        let mut player = self.traveller(&self.actual, false)?;
        let terms = Terms {
            policy: journey.policy,
            ground: Ground::of(&player.machine),
            identity: player.machine.spec().identity()?,
            rules: journey.plan.handover.rules(),
        };
        let around = around(journey, Side::Destination, State::Empty, peer.journal);
        let wire = Wire::new(peer.link, around.points.clone());
        let mut destination = Destination::new(&mut player.machine, wire, terms, around);
        while destination.step() != Step::Over {}
        let mut outcome = outcome(journey, &destination.around, destination.failure.take());
        (outcome.destination, outcome.loaded) = (destination.around.state, destination.loaded.clone());
        outcome.epoch = destination.around.epoch;
        if outcome.destination != State::Running {
            return Ok(Moved { verdict: Verdict::of_move(&outcome), report: None, outcomes: vec![outcome] });
        }
        if destination.is_followed() {
            let follower = destination.into_follower();
            player.machine.set_pager(Box::new(follower));
            player.machine.pull();
        }
        let report = self.landed(player, &self.actual, progress)?;
        let outcomes = vec![outcome];
        Ok(Moved { verdict: Verdict::of(&outcomes, Some(&report)), report: Some(report), outcomes })
    }

    fn landed(
        &self,
        player: Player,
        machine: &MachineSpec,
        progress: &mut dyn FnMut(u64),
    ) -> Result<crate::Report, Error> {
        let landed = RefCell::new(player);
        let sides = Sides {
            tape: self.tape,
            expected: self.expected.clone(),
            actual: machine.clone(),
            create: self.create,
            expected_plugin: self.expected_plugin,
            plugin: self.plugin,
            context: self.context,
            at: self.at,
            way: Some(Way::Landed(&landed)),
            explain: self.explain,
            reproduce: self.reproduce.clone(),
            inputs: None,
        };
        sides.beside_twin(progress)
    }
}

fn around(journey: &Journey, side: Side, state: State, journal: Rc<RefCell<dyn Journal>>) -> Surroundings {
    let mut witness = Witness::new();
    if side == Side::Destination {
        // Nobody in this process runs the guest.
        witness.stops(Side::Source, journey.plan.epoch);
    }
    Surroundings {
        side,
        epoch: journey.plan.epoch,
        state,
        points: (journey.points)(),
        witness: Rc::new(RefCell::new(witness)),
        journal,
        moment: Moment::default(),
    }
}

/// What this side knows of the outcome; of the other one it knows what it has been told.
fn outcome(journey: &Journey, around: &Surroundings, failure: Option<String>) -> Outcome {
    let witness = around.witness.borrow();
    let told = |gone| if around.state == gone { State::Running } else { State::Empty };
    Outcome {
        handover: journey.plan.handover.name(),
        epoch: around.epoch,
        source: State::Gone,
        destination: told(State::Gone),
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
