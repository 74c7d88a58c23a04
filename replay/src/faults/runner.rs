//! A machine that begins again where its guest does, so that a short run costs what it touches.

use super::Bed;
use crate::{Error, player::Player};
use std::{cell::RefCell, collections::BTreeSet, rc::Rc};
use vmtape_faults::{Plan, Point};
use vmtape_machine::{Asked, Decision, Faults, Inputs, Live, Snapshot};

/// A machine, and where its guest begins.
pub(super) struct Runner {
    player: Player,
    start: Snapshot,
}

/// Fault points that are asked while a machine is built: a plan with one of them builds a machine of its own.
#[derive(Debug, Default)]
pub(super) struct Early(BTreeSet<u32>);

/// Lets nothing go wrong, and hears what is asked.
struct Listener(Rc<RefCell<BTreeSet<u32>>>);

impl Faults for Listener {
    fn decide(&mut self, asked: &Asked) -> Option<Decision> {
        self.0.borrow_mut().insert(asked.point);
        None
    }
}

impl Runner {
    /// And what is asked on the way.
    pub(super) fn new(bed: &Bed<'_>) -> Result<(Self, Early), Error> {
        let asked = Rc::<RefCell<BTreeSet<u32>>>::default();
        let inputs = Live::new(bed.machine.seed).with_faults(Box::new(Listener(asked.clone())));
        let mut player = Player::new(bed.machine.clone(), Box::new(inputs), bed.budget(), bed.create, false)?;
        let start = player.snapshot()?;
        Ok((Self { player, start }, Early(asked.take())))
    }

    /// The machine at the beginning.
    pub(super) fn begin(&mut self, inputs: Box<dyn Inputs>, retries: u32) -> Result<&mut Player, Error> {
        self.player.rewind(&self.start, inputs)?;
        self.player.machine.set_retries(retries);
        Ok(&mut self.player)
    }
}

impl Early {
    /// Whether a plan's faults may happen before there is a guest.
    pub(super) fn has(&self, plan: &Plan, points: &[Point]) -> bool {
        let number =
            |name: &String| points.iter().find(|point| point.name == *name).map(|point| point.number);
        plan.rules.iter().filter_map(|rule| number(&rule.when.point)).any(|point| self.0.contains(&point))
    }
}
