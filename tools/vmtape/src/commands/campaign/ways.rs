//! Jobs whose guest moves while their plan is at work.

use crate::{
    commands::{migrate::hops, replay::Plugins},
    machine_args::PluginArgs,
};
use anyhow::{Result, anyhow};
use std::cell::{Cell, RefCell};
use vmtape_faults::{
    Engine, Firing, Point, Signature, Source, Verdict,
    campaign::{Campaign, MoveChoice, Moving},
};
use vmtape_machine::{MachineSpec, Phase, vmm::When};
use vmtape_migrate::{Plan, points::Points};
use vmtape_replay::{
    Error,
    across::Sides,
    faults::{Bed, Outcome},
    migration::{self, Journey, Way},
    spec,
};

/// The ways of a campaign.
pub struct Ways<'a> {
    choices: &'a [MoveChoice],
    plugins: Plugins,
    points: Vec<Point>,
}

/// What came of a plan while a guest moved.
pub struct Moved {
    pub signature: Signature,
    pub fired: Vec<Firing>,
    /// Why it is that verdict, in a sentence.
    pub why: String,
}

impl Moved {
    pub fn outcome(self) -> Outcome {
        Outcome { signature: self.signature, faults: self.fired.len() as u64 }
    }
}

impl<'a> Ways<'a> {
    /// Says which words of a way are none.
    pub fn new(campaign: &'a Campaign, plugins: &PluginArgs) -> Result<Self> {
        for choice in &campaign.moves {
            plan(choice)?;
            word::<vmtape_migrate::policy::Policy>("policy", &choice.policy)?;
        }
        Ok(Self { choices: &campaign.moves, plugins: Plugins::new(plugins), points: migration::points() })
    }

    /// The options of `vmtape migrate` for a move.
    pub fn options(&self, moving: Moving) -> Vec<String> {
        let choice = &self.choices[moving.way];
        let mut words =
            vec!["--at".to_owned(), format!("insn={}", moving.insn), "--to".to_owned(), choice.to.clone()];
        let MoveChoice { method, log, handover, policy, .. } = choice;
        for (option, value) in
            [("--method", method), ("--log", log), ("--handover", handover), ("--policy", policy)]
        {
            words.extend(value.iter().flat_map(|value| [option.to_owned(), value.clone()]));
        }
        words
    }

    /// Moves the guest of a bed with a plan at work, and holds it against its twin.
    pub fn run(&self, bed: &Bed<'_>, moving: Moving, source: &Source) -> Result<Moved> {
        let choice = &self.choices[moving.way];
        let engine = Engine::new(source, &self.points)?;
        let log = engine.log();
        // Each attempt begins with the plan's first state.
        let points = || {
            log.clear();
            Points::new(Box::new(engine.clone()))
        };
        let (tape, expected) = (bed.twin(), spec::machine(bed.twin())?);
        let hops =
            hops(&[When::Insn(moving.insn)], std::slice::from_ref(&choice.to), &expected, &self.plugins)?;
        let actual = hops.last().map_or_else(|| expected.clone(), |hop| hop.to.clone());
        let journey = Journey {
            hops,
            plan: plan(choice)?,
            policy: word("policy", &choice.policy)?,
            witness: false,
            points: &points,
            watch: &|_| {},
            flush_twin: Cell::new(false),
            asked: RefCell::default(),
        };
        let create = |machine: &MachineSpec| self.plugins.create(machine);
        let plugin = self.plugins.get(&actual.backend)?;
        let backend = format!("{}>{}", expected.backend, actual.backend);
        let sides = Sides {
            way: Some(Way::Journey(&journey)),
            at: When::Start,
            tape,
            expected,
            actual,
            create: &create,
            expected_plugin: bed.plugin,
            plugin: &plugin.description,
            context: 1,
            explain: false,
            reproduce: String::new(),
            inputs: None,
        };
        let moved = match sides.migrate(&mut |_| {}) {
            // The guest has ended before.
            Err(Error::NobodyMoves { .. }) => {
                let signature = Signature::new(Verdict::NotReached, "", [], &backend);
                return Ok(Moved {
                    signature,
                    fired: Vec::new(),
                    why: Verdict::NotReached.meaning().to_owned(),
                });
            }
            moved => moved?,
        };
        let fired = log.fired();
        let phase = fired.last().map_or(Phase::NONE, |firing| firing.asked.phase);
        let verdict = moved.fate.of_faults(fired.len(), phase);
        let found = moved.report.as_ref().and_then(|report| report.divergence.as_ref());
        let failure = moved.outcomes.last().and_then(|outcome| outcome.failure.clone());
        let why = found.map(|found| found.summary.clone()).or(failure);
        let what = found.map_or("", |found| found.signature.what());
        let names = fired.iter().filter_map(|firing| {
            let point = self.points.iter().find(|point| point.number == firing.asked.point)?;
            Some(point.name.clone())
        });
        let signature = Signature::new(verdict, what, names, &backend);
        Ok(Moved { signature, fired, why: why.unwrap_or_else(|| verdict.meaning().to_owned()) })
    }
}

fn word<T: std::str::FromStr<Err = String> + Default>(name: &str, text: &Option<String>) -> Result<T> {
    let parsed = text.as_deref().map(str::parse).transpose();
    Ok(parsed.map_err(|wrong: String| anyhow!("[[move]] {name}: {wrong}"))?.unwrap_or_default())
}

fn plan(choice: &MoveChoice) -> Result<Plan> {
    Ok(Plan {
        method: word("method", &choice.method)?,
        log: word("log", &choice.log)?,
        handover: word("handover", &choice.handover)?,
        ..Plan::default()
    })
}
