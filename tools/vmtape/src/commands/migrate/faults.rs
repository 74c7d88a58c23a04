//! A fault plan for a migration, and what is expected of it.

use crate::plan_args;
use anyhow::{Context, Result};
use std::path::Path;
use vmtape_faults::{Engine, Expected, Point, Verdict};
use vmtape_machine::Phase;
use vmtape_migrate::points::{MovePoint, Points};
use vmtape_replay::migration::{self, Moved};

/// A plan against the points of a migration.
pub struct Planned {
    engine: Engine,
    expect: Expected,
}

impl Planned {
    pub fn read(path: &Path) -> Result<Self> {
        let points: Vec<Point> = MovePoint::table()
            .into_iter()
            .map(|(point, name, text, words)| Point {
                number: point.0,
                name: name.to_owned(),
                text: text.to_owned(),
                words,
            })
            .collect();
        let source = plan_args::read(path, &points)?;
        let engine = Engine::new(&source, &points).with_context(|| path.display().to_string())?;
        Ok(Self { engine, expect: source.plan.expect })
    }

    /// Each attempt begins with the plan's first state.
    pub fn points(&self) -> Points {
        self.engine.log().clear();
        Points::new(Box::new(self.engine.clone()))
    }

    /// The verdict in the words of plans, and whether it is the one that the plan expects; `None`: the plan says nothing.
    pub fn verdict(&self, moved: &Moved) -> (Verdict, Option<bool>) {
        let verdict = self.of(moved);
        (verdict, (!self.expect.is_open()).then(|| self.expect.allows(verdict)))
    }

    fn of(&self, moved: &Moved) -> Verdict {
        let log = self.engine.log();
        let phase = log.all().last().map_or(Phase::NONE, |firing| firing.asked.phase);
        match moved.verdict {
            migration::Verdict::TwoRunning => Verdict::TwoRunning,
            migration::Verdict::SilentCorruption => Verdict::SilentCorruption,
            migration::Verdict::Lost => Verdict::GuestLost(phase),
            migration::Verdict::Parked => Verdict::Parked,
            migration::Verdict::Detected => Verdict::Detected,
            migration::Verdict::Refused => Verdict::Refused,
            migration::Verdict::Unknown | migration::Verdict::Ended => Verdict::Unknown,
            migration::Verdict::Moved if log.fired().is_empty() => Verdict::NotReached,
            migration::Verdict::Moved => Verdict::Masked,
        }
    }
}
