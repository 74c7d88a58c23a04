//! The smallest plan that shows the same: what is tried is a run, and how often that may happen is bounded.

use crate::{
    engine::Firing,
    plan::{Number, Numbers, Plan, Rule, What, When},
    points::Point,
};
use std::collections::BTreeMap;
use vmtape_machine::{HostPoint, MAX_VCPUS};

/// Something to try: a plan, how long the guest runs, and on which of several machines.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub plan: Plan,
    /// Instructions; `None`: to its end.
    pub limit: Option<u64>,
    /// Of the machines that the caller knows, the simplest first.
    pub machine: usize,
}

/// What a search came to.
#[derive(Clone, Debug)]
pub struct Shrunk {
    pub smallest: Candidate,
    /// Runs that it took.
    pub tries: usize,
    /// There was more to try.
    pub stopped: bool,
}

/// Shrinks a plan that shows something. `shows`: whether a candidate shows the same. `firings`: what the plan did; `differs_at`: the
/// instruction after which the guest differs, where there is one.
pub fn shrink<E>(
    start: Candidate,
    firings: &[Firing],
    points: &[Point],
    differs_at: Option<u64>,
    most: usize,
    shows: &mut dyn FnMut(&Candidate) -> Result<bool, E>,
) -> Result<Shrunk, E> {
    let mut search =
        Search { best: start, known: BTreeMap::new(), left: most, tries: 0, stopped: false, shows };
    search.concrete(firings, points)?;
    search.fewer_rules()?;
    search.smaller_rules()?;
    search.shorter(differs_at)?;
    search.simpler_machine()?;
    // What is smaller now may need less.
    search.fewer_rules()?;
    Ok(Shrunk { smallest: search.best, tries: search.tries, stopped: search.stopped })
}

/// The rule that repeats a firing, and nothing else.
pub fn rule_of(firing: &Firing, points: &[Point]) -> Option<Rule> {
    let asked = &firing.asked;
    let point = points.iter().find(|point| point.number == asked.point)?;
    let nmi = asked.point == HostPoint::NMI.0;
    let when = When {
        point: point.name.clone(),
        n: (!nmi).then(|| Numbers::one(asked.occurrence)),
        insn: nmi.then(|| Numbers::one(asked.icount)),
        vcpu: Some(asked.vcpu).filter(|vcpu| !nmi && *vcpu < MAX_VCPUS),
        ..When::default()
    };
    let what = What { answer: Some(Number(firing.decision.answer)), goto: None };
    Some(Rule { name: String::new(), when, what })
}

struct Search<'a, E> {
    best: Candidate,
    known: BTreeMap<(u64, Option<u64>, usize), bool>,
    left: usize,
    tries: usize,
    stopped: bool,
    shows: &'a mut dyn FnMut(&Candidate) -> Result<bool, E>,
}

impl<E> Search<'_, E> {
    /// Tries a candidate, which is the best one from then on if it shows the same.
    fn takes(&mut self, candidate: Candidate) -> Result<bool, E> {
        if candidate == self.best || candidate.plan.rules.is_empty() {
            return Ok(false);
        }
        let key = (candidate.plan.hash(), candidate.limit, candidate.machine);
        let shows = match self.known.get(&key) {
            Some(known) => *known,
            None if self.left == 0 => {
                self.stopped = true;
                return Ok(false);
            }
            None => {
                (self.left, self.tries) = (self.left - 1, self.tries + 1);
                (self.shows)(&candidate)?
            }
        };
        self.known.insert(key, shows);
        if shows {
            self.best = candidate;
        }
        Ok(shows)
    }

    fn with_rules(&self, rules: Vec<Rule>) -> Candidate {
        let plan = Plan { rules, ..self.best.plan.clone() };
        Candidate { plan, ..self.best.clone() }
    }

    /// Chances become the firings that happened, and states what they led to.
    fn concrete(&mut self, firings: &[Firing], points: &[Point]) -> Result<(), E> {
        let rules: Option<Vec<Rule>> = firings.iter().map(|firing| rule_of(firing, points)).collect();
        let Some(rules) = rules else { return Ok(()) };
        let mut candidate = self.with_rules(rules);
        (candidate.plan.seed, candidate.plan.heal_from) = (Number(0), None);
        self.takes(candidate)?;
        Ok(())
    }

    /// Delta debugging: without ever smaller parts of the rules.
    fn fewer_rules(&mut self) -> Result<(), E> {
        let mut part = self.best.plan.rules.len().div_ceil(2);
        while part > 0 {
            let mut at = 0;
            while at < self.best.plan.rules.len() {
                let mut rules = self.best.plan.rules.clone();
                rules.drain(at..(at + part).min(rules.len()));
                if !self.takes(self.with_rules(rules))? {
                    at += part;
                }
            }
            part = if part == 1 { 0 } else { part.div_ceil(2) };
        }
        Ok(())
    }

    fn smaller_rules(&mut self) -> Result<(), E> {
        for at in 0..self.best.plan.rules.len() {
            self.once(at)?;
            self.smaller_answer(at)?;
            self.sooner(at)?;
        }
        if self.best.plan.retries > 0 {
            let plan = Plan { retries: 0, ..self.best.plan.clone() };
            self.takes(Candidate { plan, ..self.best.clone() })?;
        }
        Ok(())
    }

    fn changed(&mut self, at: usize, change: impl FnOnce(&mut Rule)) -> Result<bool, E> {
        let mut rules = self.best.plan.rules.clone();
        change(&mut rules[at]);
        self.takes(self.with_rules(rules))
    }

    fn once(&mut self, at: usize) -> Result<(), E> {
        if self.best.plan.rules[at].when.times.is_some_and(|times| times.0 > 1) {
            self.changed(at, |rule| rule.when.times = Some(Number(1)))?;
        }
        Ok(())
    }

    /// An answer of one, or of one bit.
    fn smaller_answer(&mut self, at: usize) -> Result<(), E> {
        let Some(Number(answer)) = self.best.plan.rules[at].what.answer.filter(|answer| answer.0 > 1) else {
            return Ok(());
        };
        let bits = (0..u64::BITS).map(|bit| 1 << bit).filter(|bit| answer & bit != 0 && answer != *bit);
        for smaller in [1].into_iter().chain(bits) {
            if self.changed(at, |rule| rule.what.answer = Some(Number(smaller)))? {
                break;
            }
        }
        Ok(())
    }

    /// An earlier occurrence, or an earlier moment.
    fn sooner(&mut self, at: usize) -> Result<(), E> {
        let when = &self.best.plan.rules[at].when;
        let single = |numbers: &Option<Numbers>| numbers.as_ref().and_then(Numbers::single);
        let (n, insn) = (single(&when.n), single(&when.insn));
        if let Some(n) = n {
            self.earlier(at, n, |rule, n| rule.when.n = Some(Numbers::one(n)))?;
        }
        if let Some(insn) = insn {
            self.earlier(at, insn, |rule, insn| rule.when.insn = Some(Numbers::one(insn)))?;
        }
        Ok(())
    }

    /// The first one, else halfway to it, and so on while that shows the same.
    fn earlier(&mut self, at: usize, from: u64, set: impl Fn(&mut Rule, u64)) -> Result<(), E> {
        let (mut low, mut high) = (1, from);
        while low < high {
            let middle = if low == 1 && high == from { 1 } else { low + (high - low) / 2 };
            if self.changed(at, |rule| set(rule, middle))? { high = middle } else { low = middle + 1 }
        }
        Ok(())
    }

    /// The guest up to just behind its first difference.
    fn shorter(&mut self, differs_at: Option<u64>) -> Result<(), E> {
        let Some(differs_at) = differs_at else { return Ok(()) };
        for limit in [differs_at.saturating_add(1), differs_at.saturating_mul(2)] {
            if self.takes(Candidate { limit: Some(limit), ..self.best.clone() })? {
                break;
            }
        }
        Ok(())
    }

    fn simpler_machine(&mut self) -> Result<(), E> {
        for machine in 0..self.best.machine {
            if self.takes(Candidate { machine, ..self.best.clone() })? {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtape_machine::{Asked, Decision};

    fn points() -> Vec<Point> {
        vec![Point { number: 1, name: "flip".into(), ..Point::default() }]
    }

    fn firing(occurrence: u64, answer: u64) -> Firing {
        let asked = Asked { point: 1, occurrence, ..Asked::default() };
        Firing { asked, decision: Decision { rule: 1, answer, ..Decision::default() } }
    }

    fn firings_of(plan: &Plan) -> Vec<(u64, u64)> {
        let of = |rule: &Rule| Some((rule.when.n.as_ref()?.single()?, rule.what.answer?.0));
        plan.rules.iter().filter_map(of).collect()
    }

    fn start() -> Candidate {
        let when = When { point: "flip".into(), probability: Some(0.5), ..When::default() };
        let plan = Plan { seed: Number(9), rules: vec![Rule { when, ..Rule::default() }], ..Plan::default() };
        Candidate { plan, limit: None, machine: 3 }
    }

    #[test]
    fn what_does_not_matter_goes() {
        let firings: Vec<_> = (1..=40).map(|n| firing(n, 0x30)).collect();
        let mut runs = 0;
        // Occurrence 7 or later with bit 4, and 20 or later, on machine 1 or a harder one.
        let mut shows = |candidate: &Candidate| -> Result<bool, ()> {
            runs += 1;
            let fired = firings_of(&candidate.plan);
            let long = candidate.limit.is_none_or(|limit| limit > 500);
            Ok(candidate.machine >= 1
                && long
                && fired.iter().any(|(n, answer)| (7..20).contains(n) && answer & 0x10 != 0)
                && fired.iter().any(|(n, _)| *n >= 20))
        };
        let shrunk = shrink(start(), &firings, &points(), Some(500), 500, &mut shows).unwrap();
        assert_eq!(firings_of(&shrunk.smallest.plan), [(7, 0x10), (20, 1)]);
        let Candidate { limit, machine, plan } = shrunk.smallest;
        assert_eq!((limit, machine, plan.seed), (Some(501), 1, Number(0)));
        assert_eq!((shrunk.tries, shrunk.stopped), (runs, false));
        assert!(runs < 100, "{runs}");
    }

    #[test]
    fn a_search_is_bounded_and_never_loses_what_it_had() {
        let firings: Vec<_> = (1..=40).map(|n| firing(n, 1)).collect();
        let mut shows = |_: &Candidate| -> Result<bool, ()> { Ok(false) };
        let shrunk = shrink(start(), &firings, &points(), None, 3, &mut shows).unwrap();
        assert_eq!(shrunk.smallest, start());
        assert!(shrunk.tries <= 3);
    }
}
