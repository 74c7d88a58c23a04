//! A guest that moves by a real migration ([`vmtape_migrate`]), and its twin that never does.
//!
//! The twin is the tape's own machine, which must repeat the tape. From the instruction at which the guest goes on elsewhere both
//! run side by side, compared as two backends are ([`crate::across`]): registers, memory, devices, what the guest prints. What is
//! exempt stands in [`crate::exempt::MIGRATION`].

mod fate;
mod guest;
mod heat;
mod journey;
mod landed;
mod policies;
mod remote;
mod way;

pub use fate::{Fate, Moved};
pub use heat::{Cell, Heat, Map, OfClass};
pub use landed::Landed;
pub use policies::Judged;
pub use remote::Peer;
pub use way::{Hop, Journey, Travelled, Way};

/// The fault points that a plan for a migration may name.
pub fn points() -> Vec<Point> {
    let point = |(point, name, text, words): (MovePoint, &str, &str, String)| Point {
        number: point.0,
        name: name.to_owned(),
        text: text.to_owned(),
        words,
        unreached: String::new(),
    };
    MovePoint::table().into_iter().map(point).collect()
}

use crate::{
    Error, Report,
    across::COMPARED,
    exempt::{self, Exemption},
    player::Player,
    sides::Sides,
};
use vmtape_faults::Point;
use vmtape_migrate::points::MovePoint;
use vmtape_traces::event::End;

impl Sides<'_> {
    /// Moves the guest as its journey says, and holds it against its twin. What does not run anywhere afterwards is compared with
    /// nothing.
    pub fn migrate(&self, progress: &mut dyn FnMut(u64)) -> Result<Moved, Error> {
        let journey = self
            .way
            .and_then(Way::journey)
            .ok_or_else(|| Error::Other("nobody moves: there is no journey".to_owned()))?;
        let Travelled { player, mut outcomes, .. } = self.travel(journey, &self.actual, false)?;
        if player.is_none() || outcomes.iter().any(|outcome| outcome.two_running) {
            return Ok(Moved { fate: Fate::of(&outcomes, None), report: None, outcomes });
        }
        drop(player);
        let mut report = self.beside_twin(progress)?;
        if report.divergence.as_ref().is_some_and(|found| is_of_tlb(found.signature.what())) {
            // A twin that has lost its TLB at the same instruction: does the difference come of anything else?
            journey.flush_twin.set(true);
            let flushed = self.beside_twin(progress);
            journey.flush_twin.set(false);
            let flushed = flushed?;
            if flushed.divergence.is_none() {
                report = flushed;
                *report.exempted.entry(exempt::TLB_CONTENTS.name).or_default() += 1;
            }
        }
        // Memory that follows its guest asks later.
        if let Some(last) = outcomes.last_mut() {
            last.faults = journey.asked.borrow().fired();
            last.loaded.waited = journey.asked.borrow().waited();
        }
        let mut fate = Fate::of(&outcomes, Some(&report));
        if fate == Fate::CORRUPT && self.is_lost(journey)? {
            fate = Fate::LOST;
        }
        Ok(Moved { fate, report: Some(report), outcomes })
    }

    /// Whether the guest that moved cannot run on to an end of its own, as its twin does.
    fn is_lost(&self, journey: &Journey) -> Result<bool, Error> {
        let Some(mut player) = self.travel(journey, &self.actual, false)?.player else { return Ok(true) };
        player.advance(u64::MAX, u64::MAX)?;
        let mut twin = self.traveller(&self.expected, false)?;
        twin.advance(u64::MAX, u64::MAX)?;
        Ok(loses(&player, &twin))
    }

    fn beside_twin(&self, progress: &mut dyn FnMut(u64)) -> Result<Report, Error> {
        let [expected, actual] = self.names();
        let method = format!("the guest moves, its twin does not; from there both run, and {COMPARED}");
        let mut report = Report::new(method, format!("{expected}, the twin"), actual);
        self.compare(&mut report, progress)?;
        Ok(report)
    }
}

/// Whether a guest has come to an end that is none of its own, and its twin has not.
fn loses(player: &Player, twin: &Player) -> bool {
    let cannot = |player: &Player| {
        matches!(
            player.end,
            Some(End::Fatal { .. } | End::NoProgress { .. } | End::Shutdown { .. } | End::Idle { .. })
        )
    };
    cannot(player) && !cannot(twin)
}

/// Whether a difference may come of what a TLB holds ([`exempt::TLB_CONTENTS`]): the accessed or dirty bit of a guest's entry.
fn is_of_tlb(signature: &str) -> bool {
    signature.starts_with("entry:")
}

/// What is exempt between a guest that moved and its twin.
pub fn exemptions() -> &'static [Exemption] {
    &exempt::MIGRATION
}
