//! A guest on its machine, run once without faults: what plans are tried on.

use super::{Judgement, Runs, record};
use crate::{
    Error,
    player::{Budget, Create},
};
use std::path::Path;
use vmtape_abi::{Description, TableRow};
use vmtape_faults::{Candidate, Engine, Firing, Plan, Point, Shrunk, Signature, Source, Verdict};
use vmtape_machine::{Live, MachineSpec};
use vmtape_traces::{Tape, event::Fault};

/// A machine whose guest has run without faults.
pub struct Bed<'a> {
    pub machine: MachineSpec,
    pub create: Create<'a>,
    pub plugin: &'a Description,
    pub points: Vec<Point>,
    /// Of runs with faults: some go on for ever.
    budget: Budget,
    twin: Tape,
}

/// A run with faults.
pub struct Run {
    /// `None`: there was no VM to begin with.
    pub tape: Option<Tape>,
    pub firings: Vec<Firing>,
    pub judgement: Judgement,
}

/// The points that plans for a backend may name.
pub fn points(table: &[TableRow]) -> Vec<Point> {
    let point = |row: &TableRow| Point {
        number: row.id,
        name: row.name.clone(),
        text: row.text.clone(),
        words: row.value.clone(),
        unreached: row.undone_by.clone(),
    };
    table.iter().map(point).chain(Point::of_host()).collect()
}

/// Why there was no VM, if faults happened while one was made.
pub(super) fn refused<T>(made: &Result<T, Error>, firings: &[Firing]) -> Option<String> {
    match made {
        Err(Error::Machine(error @ vmtape_machine::Error::Backend { .. })) if !firings.is_empty() => {
            Some(error.to_string())
        }
        _ => None,
    }
}

/// A firing as a tape has it.
fn fault(firing: &Firing) -> Fault {
    let Firing { asked, decision } = firing;
    Fault {
        icount: asked.icount,
        vcpu: asked.vcpu,
        point: asked.point,
        occurrence: asked.occurrence,
        a: asked.a,
        b: asked.b,
        answer: decision.answer,
        rule: decision.rule,
        skipped: decision.skipped,
        ..Fault::default()
    }
}

impl<'a> Bed<'a> {
    /// Runs the guest without faults.
    pub fn new(
        machine: MachineSpec,
        budget: Budget,
        create: Create<'a>,
        plugin: &'a Description,
    ) -> Result<Self, Error> {
        /// Instructions and exits that a run may need more than the twin's, beside as many again.
        const MORE_INSTRUCTIONS: u64 = 1 << 20;
        const MORE_EXITS: u64 = 1 << 16;
        let points = points(&plugin.fault_points);
        let names = points.iter().map(|point| (point.number, point.name.clone())).collect();
        let machine = MachineSpec { fault_points: names, ..machine };
        let twin = record(&machine, Box::new(Live::new(machine.seed)), &budget, create, None)?;
        let totals = twin.totals()?;
        let budget = Budget {
            instructions: budget.instructions.min(totals.icount.saturating_mul(2) + MORE_INSTRUCTIONS),
            exits: budget.exits.min(totals.exits.saturating_mul(2) + MORE_EXITS),
            ..budget
        };
        Ok(Self { machine, create, plugin, points, budget, twin })
    }

    /// Records the run without faults again, to be kept.
    pub fn record_twin(&self, path: &Path) -> Result<Tape, Error> {
        let inputs = Box::new(Live::new(self.machine.seed));
        record(&self.machine, inputs, &Budget::default(), self.create, Some(path))
    }

    pub fn twin(&self) -> &Tape {
        &self.twin
    }

    /// The limits of a run with faults.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// Runs the guest with a plan and judges what came of it. The tape goes to `path`, or to a temporary file.
    pub fn run(&self, source: &Source, path: Option<&Path>) -> Result<Run, Error> {
        let engine = Engine::new(source, &self.points).map_err(|wrong| Error::Other(wrong.to_string()))?;
        let log = engine.log();
        let machine = MachineSpec { retries: source.plan.retries, ..self.machine.clone() };
        let inputs = Live::new(machine.seed).with_faults(Box::new(engine));
        let tape = record(&machine, Box::new(inputs), &self.budget, self.create, path);
        let firings = log.fired();
        if let Some(why) = refused(&tape, &firings) {
            let judgement = self.judge_refusal(why, &firings)?;
            return Ok(Run { tape: None, firings, judgement });
        }
        let tape = tape?;
        let judgement = self.judge(&tape)?;
        Ok(Run { tape: Some(tape), firings, judgement })
    }

    fn judge_refusal(&self, why: String, firings: &[Firing]) -> Result<Judgement, Error> {
        let points = firings.iter().map(|firing| self.name(firing));
        let signature = Signature::new(Verdict::Refused, "", points, &self.machine.backend);
        let fired = firings.iter().map(fault).collect();
        let end = self.twin.end()?.map_or(String::new(), |(_, end)| crate::text::end_text(&end));
        Ok(Judgement {
            verdict: Verdict::Refused,
            signature,
            told: vec![why.clone()],
            why,
            fired,
            skipped: Vec::new(),
            ends: [end, "there is no VM".to_owned()],
            divergence: None,
        })
    }

    /// The name of a firing's point.
    pub fn name(&self, firing: &Firing) -> String {
        let point = self.points.iter().find(|point| point.number == firing.asked.point);
        point.map_or_else(String::new, |point| point.name.clone())
    }

    fn judge(&self, faulty: &Tape) -> Result<Judgement, Error> {
        Runs { twin: &self.twin, faulty, create: self.create, plugin: self.plugin }.judge()
    }

    /// The smallest plan that shows the same as a run did. `machines`: simpler ones to try, the simplest first.
    pub fn shrink(
        &self,
        source: &Source,
        run: &Run,
        machines: &[MachineSpec],
        most: usize,
        progress: &dyn Fn(&Candidate),
    ) -> Result<Shrunk, Error> {
        let wanted = &run.judgement.signature;
        let differs_at = run.judgement.divergence.as_ref().map(|divergence| divergence.icount);
        let start = Candidate { plan: source.plan.clone(), limit: None, machine: machines.len() };
        let mut shows = |candidate: &Candidate| -> Result<bool, Error> {
            progress(candidate);
            let shown = self.show(candidate, machines);
            // A candidate that cannot be run shows nothing.
            Ok(shown.is_ok_and(|judged| judged.signature.shows_same(wanted)))
        };
        vmtape_faults::shrink(start, &run.firings, &self.points, differs_at, most, &mut shows)
    }

    fn show(&self, candidate: &Candidate, machines: &[MachineSpec]) -> Result<Judgement, Error> {
        Ok(self.on(candidate, machines, &candidate.plan, None)?.judgement)
    }

    /// Runs a plan as a candidate of a search was run, and keeps the tape.
    pub fn run_as(
        &self,
        candidate: &Candidate,
        machines: &[MachineSpec],
        plan: &Plan,
        path: &Path,
    ) -> Result<Run, Error> {
        self.on(candidate, machines, plan, Some(path))
    }

    fn on(
        &self,
        candidate: &Candidate,
        machines: &[MachineSpec],
        plan: &Plan,
        path: Option<&Path>,
    ) -> Result<Run, Error> {
        let source = Source::from(plan.clone());
        let machine = machines.get(candidate.machine);
        if machine.is_none() && candidate.limit.is_none() {
            return self.run(&source, path);
        }
        let instructions = candidate.limit.unwrap_or(u64::MAX);
        let budget = Budget { instructions, ..Budget::default() };
        let machine = machine.unwrap_or(&self.machine).clone();
        Bed::new(machine, budget, self.create, self.plugin)?.run(&source, path)
    }
}
