//! A device that both sides share, as a disk is: it sees who runs the guest, and who has its newest generation.

use super::Side;
use serde::Serialize;
use std::fmt;

/// What the device has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A side runs the guest.
    Starts {
        side: Side,
        epoch: u64,
    },
    Stops {
        side: Side,
        epoch: u64,
    },
    /// It runs on both.
    TwoRunning {
        epoch: u64,
    },
    /// The source has taken the generation back, so that a destination that wakes late is kept out.
    Fenced {
        epoch: u64,
    },
    /// A side wanted to run with a generation that is not the newest.
    KeptOut {
        side: Side,
        epoch: u64,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starts { side, epoch } => write!(f, "the {side} runs the guest, generation {epoch}"),
            Self::Stops { side, epoch } => write!(f, "the {side} no longer does, generation {epoch}"),
            Self::TwoRunning { epoch } => write!(f, "TWO run the guest, generation {epoch}"),
            Self::Fenced { epoch } => write!(f, "the source has taken generation {epoch} back"),
            Self::KeptOut { side, epoch } => write!(f, "the {side} is kept out: generation {epoch} is old"),
        }
    }
}

/// The device.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    running: [bool; 2],
    /// It decides, and not only looks.
    decides: bool,
    /// The newest generation that a destination has taken, and the newest that a source has taken back.
    claimed: Option<u64>,
    fenced: Option<u64>,
    events: Vec<Event>,
}

impl Witness {
    /// A device that only looks on.
    pub fn new() -> Self {
        Self { running: [true, false], ..Self::default() }
    }

    /// One whose generation decides who may run.
    pub fn deciding() -> Self {
        Self { decides: true, ..Self::new() }
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }

    pub fn runs(&self, side: Side) -> bool {
        self.running[side as usize]
    }

    /// How many run the guest.
    pub fn runners(&self) -> usize {
        self.running.iter().filter(|runs| **runs).count()
    }

    /// Whether both have run it at once.
    pub fn two_running(&self) -> bool {
        self.events.iter().any(|event| matches!(event, Event::TwoRunning { .. }))
    }

    /// A destination wants to run the guest. `false`: it may not.
    pub fn claim(&mut self, epoch: u64) -> bool {
        if self.decides && self.fenced >= Some(epoch) {
            self.events.push(Event::KeptOut { side: Side::Destination, epoch });
            return false;
        }
        self.claimed = self.claimed.max(Some(epoch));
        true
    }

    /// A source that has heard nothing wants its guest back. `false`: the destination has it, or nobody can tell.
    pub fn fence(&mut self, epoch: u64) -> bool {
        let free = self.decides && self.claimed < Some(epoch);
        if free {
            self.fenced = self.fenced.max(Some(epoch));
            self.events.push(Event::Fenced { epoch });
        }
        free
    }

    pub fn starts(&mut self, side: Side, epoch: u64) {
        if !std::mem::replace(&mut self.running[side as usize], true) {
            self.events.push(Event::Starts { side, epoch });
        }
        if self.runners() == 2 {
            self.events.push(Event::TwoRunning { epoch });
        }
    }

    pub fn stops(&mut self, side: Side, epoch: u64) {
        if std::mem::replace(&mut self.running[side as usize], false) {
            self.events.push(Event::Stops { side, epoch });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_run_are_seen_and_a_generation_keeps_one_of_them_out() {
        let mut witness = Witness::new();
        witness.stops(Side::Source, 1);
        witness.starts(Side::Destination, 1);
        assert!(!witness.two_running());
        assert!(!witness.fence(1), "it only looks on");
        witness.starts(Side::Source, 1);
        assert!(witness.two_running());

        let mut witness = Witness::deciding();
        assert!(witness.fence(1) && !witness.claim(1) && witness.claim(2));
        assert!(!witness.fence(2));
    }
}
