//! What a guest's way is: moves, one after the other, or one that another process has made.

use super::Landed;
use crate::{Error, player::Player};
use std::cell::{Cell, RefCell};
use vmtape_machine::{MachineSpec, vmm::When};
use vmtape_migrate::{
    Conversation, Outcome, Plan, Watch,
    destination::Terms,
    handover::Witness,
    points::Points,
    policy::{Ground, Policy},
    stream::Offer,
};

/// One move.
#[derive(Clone, Debug)]
pub struct Hop {
    /// When it begins, counted as on the tape.
    pub at: When,
    pub to: MachineSpec,
}

/// All moves, and how they are made.
pub struct Journey<'a> {
    /// The last one leads to the machine that is compared.
    pub hops: Vec<Hop>,
    pub plan: Plan,
    pub policy: Policy,
    /// Whether the witness decides who may run.
    pub witness: bool,
    /// What goes wrong on purpose. The same each time that the journey is made.
    pub points: &'a dyn Fn() -> Points,
    /// Who is told how far a move is.
    pub watch: Watch<'a>,
    /// The twin loses its TLB where the guest goes on elsewhere.
    pub flush_twin: Cell<bool>,
    /// Those points of the last time that it was made.
    pub asked: RefCell<Points>,
}

/// How the guest of a comparison has come to the machine that is compared with its twin.
#[derive(Clone, Copy)]
pub enum Way<'a> {
    /// By moves that can be made again.
    Journey(&'a Journey<'a>),
    /// From another process, once.
    Landed(&'a Landed),
}

impl<'a> Way<'a> {
    pub(crate) fn journey(self) -> Option<&'a Journey<'a>> {
        match self {
            Self::Journey(journey) => Some(journey),
            Self::Landed(_) => None,
        }
    }

    /// Whether memory comes after its guest.
    pub(crate) fn follows(self) -> bool {
        match self {
            Self::Journey(journey) => journey.plan.method.is_postcopy(),
            Self::Landed(landed) => landed.follows(),
        }
    }
}

/// Where a guest has come.
pub struct Travelled {
    /// Whoever runs it; `None`: nobody.
    pub player: Option<Player>,
    /// Of each move that was begun.
    pub outcomes: Vec<Outcome>,
    /// What it has printed on its way.
    pub printed: Vec<u8>,
}

impl Journey<'_> {
    /// Moves a guest from one machine to another, or does not: the `n`-th time on its way that this is tried, and which attempt to make
    /// this move.
    pub(super) fn hop(
        &self,
        player: &mut Player,
        next: &mut Player,
        points: Points,
        n: u64,
        attempt: u32,
    ) -> Result<Outcome, Error> {
        // What follows it from its last move must have come.
        let lost = player.machine.pull();
        if lost > 0 {
            return Err(Error::Other(format!(
                "{lost} pages of the guest's last move have not come: it cannot move on"
            )));
        }
        let plan = Plan { epoch: self.plan.epoch + n, attempt, ..self.plan };
        let conversation = Conversation {
            plan,
            offer: Offer::of(&mut player.machine, plan.epoch)?,
            terms: Terms {
                policy: self.policy,
                ground: Ground::of(&next.machine),
                identity: next.machine.spec().identity()?,
                rules: plan.handover.rules(),
            },
            points,
            witness: if self.witness { Witness::deciding() } else { Witness::new() },
        };
        Ok(conversation.run(player, &mut next.machine, self.watch))
    }
}
