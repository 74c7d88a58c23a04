//! A machine that begins again where its guest does, so that a short run costs what it touches.

use super::Bed;
use crate::{Error, player::Player};
use std::{cell::RefCell, rc::Rc};
use vmtape_faults::Engine;
use vmtape_machine::{Asked, Decision, Faults, Inputs, Live, Snapshot};

/// A machine, and where its guest begins.
pub(super) struct Runner {
    player: Player,
    start: Snapshot,
}

/// What fault points are asked while a machine is built, in order.
#[derive(Debug, Default)]
pub(super) struct Early(Vec<Asked>);

/// Lets nothing go wrong, and hears what is asked.
struct Listener(Rc<RefCell<Vec<Asked>>>);

impl Faults for Listener {
    fn decide(&mut self, asked: &Asked) -> Option<Decision> {
        self.0.borrow_mut().push(*asked);
        None
    }
}

impl Runner {
    /// And what is asked on the way.
    pub(super) fn new(bed: &Bed<'_>) -> Result<(Self, Early), Error> {
        let asked = Rc::<RefCell<Vec<Asked>>>::default();
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
    /// Asks a plan what its machine would have been asked before there is a guest. `false`: one of its faults happens there, and it needs
    /// a machine of its own, and must begin anew.
    pub(super) fn passes(&self, engine: &mut Engine) -> bool {
        self.0.iter().all(|asked| engine.decide(asked).is_none())
    }
}
