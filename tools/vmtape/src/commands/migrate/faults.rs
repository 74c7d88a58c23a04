//! A fault plan for a migration, and what is expected of it.

use crate::plan_args;
use anyhow::{Context, Result};
use std::path::Path;
use vmtape_faults::{Engine, Expected, Verdict};
use vmtape_machine::Phase;
use vmtape_migrate::points::Points;
use vmtape_replay::migration::{self, Moved};

/// A plan against the points of a migration.
pub struct Planned {
    engine: Engine,
    expect: Expected,
}

impl Planned {
    pub fn read(path: &Path) -> Result<Self> {
        let points = migration::points();
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
        let log = self.engine.log();
        let phase = log.all().last().map_or(Phase::NONE, |firing| firing.asked.phase);
        let verdict = moved.fate.of_faults(log.fired().len(), phase);
        (verdict, (!self.expect.is_open()).then(|| self.expect.allows(verdict)))
    }
}
