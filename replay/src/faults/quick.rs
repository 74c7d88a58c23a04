//! Many plans on one bed: each run goes back to one start and resets only what was written, and one that leaves everything as its twin
//! does needs no closer look.

use super::{
    Bed, Judgement,
    bed::refused,
    runner::{Early, Runner},
};
use crate::{Error, player::Player, state};
use std::collections::BTreeMap;
use vmtape_faults::{Engine, Firing, Log, Signature, Source, Verdict};
use vmtape_machine::{Digest, Live, MachineSpec};
use vmtape_traces::event::Skip;

/// A bed, and what is known of it.
pub struct Quick<'a> {
    pub bed: Bed<'a>,
    twin: Player,
    /// `None`: the last run failed, and nobody goes on with its machine.
    runner: Option<Runner>,
    early: Early,
    /// Each run builds its machine.
    afresh: bool,
    /// Where the twin left the guest.
    left: Vec<u64>,
    printed: Vec<u8>,
    /// The twin's digest, where it is looked at also where another run left the guest.
    digests: BTreeMap<Vec<u64>, Digest>,
    /// What followed from faults that were looked at closely.
    known: BTreeMap<Vec<Key>, Signature>,
    /// Runs that needed a closer look.
    pub looked_at: u64,
}

/// A fault that happened: vCPU, point, occurrence, moment, answer.
type Key = (u32, u32, u64, u64, u64);

/// What came of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub signature: Signature,
    pub faults: u64,
}

impl<'a> Quick<'a> {
    pub fn new(bed: Bed<'a>) -> Result<Self, Error> {
        let inputs = Box::new(Live::new(bed.machine.seed));
        let mut twin = Player::new(bed.machine.clone(), inputs, bed.budget(), bed.create, false)?;
        twin.machine.keep_digest();
        finish(&mut twin)?;
        let left = twin.machine.take_left();
        let printed = twin.take_serial();
        let (runner, early) = Runner::new(&bed)?;
        let (digests, known) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self {
            bed,
            twin,
            runner: Some(runner),
            early,
            afresh: false,
            left,
            printed,
            digests,
            known,
            looked_at: 0,
        })
    }

    /// Builds a machine for each run, instead of going back to where its guest begins: what comes of it is the same.
    pub fn afresh(self) -> Self {
        Self { afresh: true, ..self }
    }

    /// Runs a plan. An error is this program's failure, or the backend's.
    pub fn run(&mut self, source: &Source) -> Result<Outcome, Error> {
        let mut engine = self.engine(source)?;
        if self.afresh || !self.early.passes(&mut engine) {
            return self.run_afresh(source);
        }
        let log = engine.log();
        let inputs = Live::new(self.bed.machine.seed).with_faults(Box::new(engine));
        let mut runner = match self.runner.take() {
            Some(runner) => runner,
            None => Runner::new(&self.bed)?.0,
        };
        let player = runner.begin(Box::new(inputs), source.plan.retries)?;
        let outcome = self.judge(source, player, &log)?;
        self.runner = Some(runner);
        Ok(outcome)
    }

    fn engine(&self, source: &Source) -> Result<Engine, Error> {
        Engine::new(source, &self.bed.points).map_err(|wrong| Error::Other(wrong.to_string()))
    }

    fn run_afresh(&mut self, source: &Source) -> Result<Outcome, Error> {
        let engine = self.engine(source)?;
        let log = engine.log();
        let inputs = Live::new(self.bed.machine.seed).with_faults(Box::new(engine));
        let machine = MachineSpec { retries: source.plan.retries, ..self.bed.machine.clone() };
        let player = Player::new(machine, Box::new(inputs), self.bed.budget(), self.bed.create, false);
        if refused(&player, &log.fired()).is_some() {
            let fired = log.fired();
            let signature = self.signature(Verdict::Refused, &fired);
            return Ok(Outcome { signature, faults: fired.len() as u64 });
        }
        self.judge(source, &mut player?, &log)
    }

    /// Runs to the end and judges.
    fn judge(&mut self, source: &Source, player: &mut Player, log: &Log) -> Result<Outcome, Error> {
        player.machine.keep_digest();
        player.machine.sample_at(self.left.iter().copied());
        finish(player)?;
        let fired = log.fired();
        let faults = fired.len() as u64;
        let verdict = match () {
            () if fired.is_empty() => Some(Verdict::NotReached),
            () if !self.is_as_twin(player)? => None,
            () if player.machine.retried() > 0 => Some(Verdict::Detected),
            () => Some(Verdict::Masked),
        };
        let signature = match verdict {
            Some(verdict) => self.signature(verdict, &fired),
            None => self.look(source, &fired)?,
        };
        Ok(Outcome { signature, faults })
    }

    /// Whether a run, which is over, has left everything as the twin has, and no difference on its way has healed.
    fn is_as_twin(&mut self, player: &mut Player) -> Result<bool, Error> {
        let (expected, actual) = (&self.twin, &*player);
        let ended = expected.end == actual.end
            && expected.machine.icount() == actual.machine.icount()
            && self.printed == actual.take_serial();
        let results = |player: &Player| -> Vec<_> {
            player.machine.controls().iter().map(|(_, control)| control.clone()).collect()
        };
        if !ended
            || results(expected) != results(actual)
            || !state::compare(&expected.machine, &actual.machine).is_empty()
        {
            return Ok(false);
        }
        let left = player.machine.take_left();
        let (twin, actual) = (self.digest(left)?, player.machine.digest());
        Ok((twin.memory, twin.outcomes, twin.devices) == (actual.memory, actual.outcomes, actual.devices)
            && twin.memory_types == actual.memory_types)
    }

    /// The twin's digest, looked at where another run left the guest too.
    fn digest(&mut self, left: Vec<u64>) -> Result<Digest, Error> {
        /// Other runs that are remembered.
        const MOST: usize = 64;
        if let Some(digest) = self.digests.get(&left) {
            return Ok(*digest);
        }
        let bed = &self.bed;
        let inputs = Box::new(Live::new(bed.machine.seed));
        let mut twin = Player::new(bed.machine.clone(), inputs, bed.budget(), bed.create, false)?;
        twin.machine.keep_digest();
        twin.machine.sample_at(left.iter().copied());
        finish(&mut twin)?;
        let digest = twin.machine.digest();
        if self.digests.len() < MOST {
            self.digests.insert(left, digest);
        }
        Ok(digest)
    }

    /// Holds the run against its twin instruction by instruction, unless the same faults were looked at before.
    fn look(&mut self, source: &Source, fired: &[Firing]) -> Result<Signature, Error> {
        let mut key: Vec<Key> = fired.iter().map(key).collect();
        // How often KVM_RUN is called again is part of it.
        key.push((source.plan.retries, 0, 0, 0, 0));
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        self.looked_at += 1;
        let Judgement { signature, .. } = self.bed.run(source, None)?.judgement;
        self.known.insert(key, signature.clone());
        Ok(signature)
    }

    fn signature(&self, verdict: Verdict, fired: &[Firing]) -> Signature {
        let points = fired.iter().map(|firing| self.bed.name(firing));
        Signature::new(verdict, "", points, &self.bed.machine.backend)
    }
}

fn key(firing: &Firing) -> Key {
    debug_assert_eq!(firing.decision.skipped, Skip::NONE);
    let asked = &firing.asked;
    (asked.vcpu, asked.point, asked.occurrence, asked.icount, firing.decision.answer)
}

fn finish(player: &mut Player) -> Result<(), Error> {
    while player.end.is_none() {
        player.advance(u64::MAX, u64::MAX)?;
    }
    Ok(())
}
