//! What a side has at hand beside its machine: journal, witness, fault points.

use crate::{
    Error,
    handover::{Entry, Journal, Moment, Side, State, Witness},
    points::{MovePoint, Points},
};
use std::{cell::RefCell, rc::Rc};

/// How far a migration is, while it is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// From one on; of pre-copy, or the one in which the guest stands still.
    pub round: usize,
    pub stopped: bool,
    /// Pages of this round: sent, and still to be sent.
    pub pages: u64,
    pub left: u64,
    /// Sent in all.
    pub bytes: u64,
    /// Virtual time that sending what is left takes, at the bandwidth.
    pub left_ns: u64,
    /// Of the last round: how many pages the guest wrote, and in which virtual time.
    pub dirty: u64,
    pub dirty_ns: u64,
    /// Virtual time that the guest has stood still so far.
    pub downtime_ns: u64,
}

/// Who is told how far it is.
pub type Watch<'a> = &'a dyn Fn(&Live);

/// A side of a migration, as what surrounds it sees it.
pub struct Surroundings {
    pub side: Side,
    pub epoch: u64,
    pub state: State,
    pub points: Points,
    pub witness: Rc<RefCell<Witness>>,
    pub journal: Rc<RefCell<dyn Journal>>,
    /// The last moment that the process came to.
    pub moment: Moment,
}

impl Surroundings {
    /// Writes down what the side becomes; only then it is.
    pub(crate) fn becomes(&mut self, state: State) -> Result<(), Error> {
        let entry = Entry { side: self.side, epoch: self.epoch, state };
        self.journal.borrow_mut().write(&entry)?;
        self.state = state;
        match state {
            State::Running => self.witness.borrow_mut().starts(self.side, self.epoch),
            _ => self.witness.borrow_mut().stops(self.side, self.epoch),
        }
        Ok(())
    }

    /// Whether the process dies at this moment. A dead process writes nothing down.
    pub(crate) fn dies(&mut self, moment: Moment) -> bool {
        if std::mem::replace(&mut self.moment, moment) == moment {
            return false;
        }
        let point = match self.side {
            Side::Source => MovePoint::KILL_SOURCE,
            Side::Destination => MovePoint::KILL_DESTINATION,
        };
        let dies = self.points.ask(point, moment.0, 0).is_some();
        if dies {
            self.die();
        }
        dies
    }

    pub(crate) fn die(&mut self) {
        self.state = State::Dead;
        self.witness.borrow_mut().stops(self.side, self.epoch);
    }
}
