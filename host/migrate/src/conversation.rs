//! Both sides in one process, which take turns: what happens depends on nothing else.

use crate::{
    destination::{Destination, Terms},
    guest::Guest,
    handover::{Entry, Journal, Moment, Side, State, Witness},
    link::{self, Wire},
    plan::Plan,
    points::Points,
    report::Outcome,
    shared::{Surroundings, Watch},
    source::{Source, Step},
    stream::Offer,
};
use std::{cell::RefCell, rc::Rc};
use vmtape_machine::Machine;

/// Bytes that may be on their way: some sections of pages.
const CAPACITY: usize = 1 << 20;

/// A migration within one process.
pub struct Conversation {
    pub plan: Plan,
    pub offer: Offer,
    pub terms: Terms,
    pub points: Points,
    pub witness: Witness,
}

#[derive(Default)]
struct Kept(Vec<Entry>);

impl Journal for Kept {
    fn write(&mut self, entry: &Entry) -> Result<(), crate::Error> {
        self.0.push(*entry);
        Ok(())
    }
}

impl Conversation {
    /// Moves a guest, or does not. Only what the outcome says runs the guest afterwards.
    pub fn run(self, guest: &mut dyn Guest, machine: &mut Machine, watch: Watch) -> Outcome {
        let Self { plan, offer, terms, points, witness } = self;
        let witness = Rc::new(RefCell::new(witness));
        let journal = Rc::new(RefCell::new(Kept::default()));
        let around = |side, state| Surroundings {
            side,
            epoch: plan.epoch,
            state,
            points: points.clone(),
            witness: witness.clone(),
            journal: journal.clone(),
            moment: Moment::default(),
        };
        let [here, there] = link::pair(CAPACITY).map(|end| Wire::new(Box::new(end), points.clone()));
        let mut source = Source::new(guest, here, plan, offer, around(Side::Source, State::Running), watch);
        let mut destination =
            Destination::new(machine, there, terms, around(Side::Destination, State::Empty));
        // The destination does what is due before the source goes on, so that what is on its way stays little.
        loop {
            let (theirs, ours) = (destination.step(), source.step());
            if (ours, theirs) == (Step::Over, Step::Over) {
                break;
            }
            let stuck = ours != Step::Worked && theirs != Step::Worked;
            // One is over, and the other waits for something that never comes: it hears that the link is closed.
            if stuck && ours == Step::Over {
                source.hang_up();
            } else if stuck && theirs == Step::Over {
                destination.hang_up();
            } else if stuck {
                source.hang_up();
                destination.hang_up();
            }
        }
        let failure = source.failure.take().or(destination.failure.take());
        let (ours, theirs) = (source.around.state, destination.around.state);
        let (sent, loaded) = (source.sent.clone(), destination.loaded.clone());
        let follows = (theirs, destination.is_followed()) == (State::Running, true);
        let follower = follows.then(|| destination.into_follower().beside(source.into_server()));
        if let Some(follower) = follower {
            machine.set_pager(Box::new(follower));
        }
        let witness = witness.borrow();
        Outcome {
            handover: plan.handover.name(),
            epoch: plan.epoch,
            source: ours,
            destination: theirs,
            runners: witness.runners(),
            two_running: witness.two_running(),
            failure,
            sent,
            loaded,
            journal: journal.borrow().0.clone(),
            witness: witness.events().to_vec(),
            faults: points.fired(),
        }
    }
}
