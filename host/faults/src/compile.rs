//! A plan against the fault points that there are: names become numbers, and what cannot be is told.

use crate::{
    plan::{EXIT, FIRST_STATE, Numbers, PlanError, Rule, Source, When},
    points::{Point, Word},
};
use vmtape_arch::{
    exit::{Isa, SvmExitCode, VmxReason},
    level::Level,
};
use vmtape_machine::{HostPoint, Phase};

/// A rule in numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Armed {
    /// `None`: every exit.
    pub point: Option<u32>,
    pub n: Option<Numbers>,
    pub insn: Option<Numbers>,
    /// Kinds of exits; `None`: any.
    pub exit: Option<Vec<(Isa, u32)>>,
    pub exit_n: Option<Numbers>,
    pub a: Vec<Numbers>,
    pub b: Vec<Numbers>,
    pub vcpu: Option<u32>,
    pub level: Option<Level>,
    pub phase: Option<Phase>,
    pub state: Option<u32>,
    pub skip: u64,
    pub times: u64,
    pub probability: f64,
    pub active: f64,
    /// `None`: only the state changes.
    pub answer: Option<u64>,
    pub goto: Option<u32>,
}

/// Checks a plan and turns its names into numbers.
pub(crate) fn arm(source: &Source, points: &[Point]) -> Result<Vec<Armed>, PlanError> {
    if let Some(rule) = source.plan.each() {
        let nth = "with `each` a plan is one run per occurrence: its members are what can be run";
        return Err(source.error(rule, "each", nth));
    }
    let rules = source.plan.rules.iter().enumerate();
    rules.map(|(at, rule)| Arming { source, at, when: &rule.when }.arm(rule, points)).collect()
}

/// Checks all of an exhaustive plan but that it is one.
pub(crate) fn check(source: &Source, points: &[Point]) -> Result<(), PlanError> {
    let rules = || source.plan.rules.iter().enumerate();
    if let Some((second, _)) = rules().filter(|(_, rule)| rule.when.each).nth(1) {
        return Err(source.error(second, "each", "only one rule may have `each`"));
    }
    for (at, rule) in rules() {
        if rule.when.each && rule.when.n.is_some() {
            return Err(source.error(at, "n", "`each` stands for every n: take one of them away"));
        }
        Arming { source, at, when: &rule.when }.arm(rule, points)?;
    }
    if source.plan.rules.is_empty() {
        let what = "a plan needs a [[rule]]: nothing would go wrong".to_owned();
        return Err(PlanError { line: None, what });
    }
    Ok(())
}

struct Arming<'a> {
    source: &'a Source,
    at: usize,
    when: &'a When,
}

impl Arming<'_> {
    fn error(&self, word: &str, what: impl Into<String>) -> PlanError {
        self.source.error(self.at, word, what)
    }

    fn arm(&self, rule: &Rule, points: &[Point]) -> Result<Armed, PlanError> {
        let when = self.when;
        let point = self.point(points)?;
        let (mut a, mut b) = (Vec::from_iter(when.a.clone()), Vec::from_iter(when.b.clone()));
        for (word, numbers) in self.words(point)? {
            match word {
                Word::A => a.push(numbers),
                Word::B => b.push(numbers),
            }
        }
        let is_nmi = point.is_some_and(|point| point.number == HostPoint::NMI.0);
        let bounded = when.n.is_none() && when.probability.is_none() && !is_nmi;
        let times = when.times.map(|times| times.0).unwrap_or(if bounded { 1 } else { u64::MAX });
        let answer = match (rule.what.answer, rule.what.goto, point) {
            (Some(_), _, None) => return Err(self.error("answer", "an exit has no answer, only `goto`")),
            (None, None, None) => return Err(self.error("point", "at an exit only `goto` can happen")),
            (Some(answer), ..) => Some(answer.0),
            (None, Some(_), _) => None,
            (None, None, _) => Some(1),
        };
        if is_nmi {
            self.check_nmi()?;
        }
        Ok(Armed {
            point: point.map(|point| point.number),
            n: when.n.clone(),
            insn: when.insn.clone(),
            exit: self.exit()?,
            exit_n: when.exit_n.clone(),
            a,
            b,
            vcpu: when.vcpu,
            level: self.level()?,
            phase: self.phase()?,
            state: self.state()?,
            skip: when.skip.unwrap_or_default().0,
            times,
            probability: self.chance("probability", when.probability)?,
            active: self.chance("active", when.active)?,
            answer,
            goto: rule.what.goto,
        })
    }

    fn point<'p>(&self, points: &'p [Point]) -> Result<Option<&'p Point>, PlanError> {
        if self.when.point == EXIT {
            return Ok(None);
        }
        let found = points.iter().find(|point| point.name == self.when.point);
        found.map(Some).ok_or_else(|| {
            let likeness = |point: &&Point| likeness(&point.name, &self.when.point);
            let most = points.iter().map(|point| likeness(&point)).max().filter(|most| *most > 0);
            let like = points.iter().filter(|point| Some(likeness(point)) == most);
            let like: Vec<_> = like.take(3).map(|point| format!("`{}`", point.name)).collect();
            let hint =
                if like.is_empty() { String::new() } else { format!("; there is {}", like.join(" and ")) };
            self.error(
                "point",
                format!(
                    "the backend has no fault point `{}`{hint} (`vmtape inject points`)",
                    self.when.point
                ),
            )
        })
    }

    /// `address`, `msr` and `list` are words of the point, whichever its table says.
    fn words(&self, point: Option<&Point>) -> Result<Vec<(Word, Numbers)>, PlanError> {
        let mut words = Vec::new();
        let tells_no = |word: &str| {
            let point = &self.when.point;
            self.error(word, format!("`{point}` tells no {word}: see `vmtape inject points`"))
        };
        if let Some(addresses) = &self.when.address {
            let (word, shift) = point.and_then(Point::address).ok_or_else(|| tells_no("address"))?;
            let shifted = addresses.runs().iter().map(|run| run.start() >> shift..=run.end() >> shift);
            words.push((word, shifted.collect()));
        }
        if let Some(msrs) = &self.when.msr {
            words.push((point.and_then(Point::msr).ok_or_else(|| tells_no("msr"))?, msrs.clone()));
        }
        match (&self.when.list, &self.when.stores) {
            (None, None) => {}
            (None, Some(_)) => return Err(self.error("stores", "`stores` are those of a `list` operation")),
            (Some(list), stores) => {
                /// Operations have fewer stores than this.
                const STORES: u64 = 0x100;
                let (word, first) =
                    point.and_then(|point| point.list(list)).ok_or_else(|| tells_no("list"))?;
                let any = [0..=STORES - 1];
                let runs = stores.as_ref().map_or(&any[..], Numbers::runs);
                let moved = |end: &u64| first.saturating_add(*end);
                words.push((word, runs.iter().map(|run| moved(run.start())..=moved(run.end())).collect()));
            }
        }
        Ok(words)
    }

    fn exit(&self) -> Result<Option<Vec<(Isa, u32)>>, PlanError> {
        let Some(name) = &self.when.exit else { return Ok(None) };
        let vmx = VmxReason::NAMED.iter().filter(|(_, known)| known.eq_ignore_ascii_case(name));
        let svm = SvmExitCode::NAMED.iter().filter(|(_, known)| known.eq_ignore_ascii_case(name));
        let kinds: Vec<_> =
            vmx.map(|(kind, _)| (Isa::VMX, kind.0)).chain(svm.map(|(kind, _)| (Isa::SVM, kind.0))).collect();
        if kinds.is_empty() {
            let what = format!(
                "there is no exit `{name}`: `vmtape stat TAPE` shows the names of those that a guest takes"
            );
            return Err(self.error("exit", what));
        }
        Ok(Some(kinds))
    }

    fn level(&self) -> Result<Option<Level>, PlanError> {
        let Some(name) = &self.when.level else { return Ok(None) };
        let level = Level::from_name(name);
        level.map(Some).ok_or_else(|| self.error("level", format!("`{name}` is neither L1 nor L2")))
    }

    fn phase(&self) -> Result<Option<Phase>, PlanError> {
        let Some(name) = &self.when.phase else { return Ok(None) };
        let names = || Phase::NAMED.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
        let phase = Phase::from_name(name);
        phase.map(Some).ok_or_else(|| {
            self.error("phase", format!("`{name}` is no phase of a migration: there are {}", names()))
        })
    }

    /// A state that no rule goes to is misspelt.
    fn state(&self) -> Result<Option<u32>, PlanError> {
        let Some(state) = self.when.state else { return Ok(None) };
        let reached =
            state == FIRST_STATE || self.source.plan.rules.iter().any(|rule| rule.what.goto == Some(state));
        if !reached {
            let what = format!("no rule goes to state {state}, and the first one is {FIRST_STATE}");
            return Err(self.error("state", what));
        }
        Ok(Some(state))
    }

    fn chance(&self, word: &str, chance: Option<f64>) -> Result<f64, PlanError> {
        let chance = chance.unwrap_or(1.0);
        if (0.0..=1.0).contains(&chance) {
            return Ok(chance);
        }
        Err(self.error(word, format!("{chance} is no probability: they go from 0 to 1")))
    }

    /// An NMI is asked for at moments that are known before the run.
    fn check_nmi(&self) -> Result<(), PlanError> {
        let when = self.when;
        let listed = when.insn.as_ref().and_then(Numbers::listed);
        if listed.is_none() {
            let what = format!("`{}` needs `insn`: instruction counts, one by one", when.point);
            return Err(self.error("insn", what));
        }
        let others = [
            ("n", when.n.is_some()),
            ("each", when.each),
            ("exit", when.exit.is_some()),
            ("exit-n", when.exit_n.is_some()),
            ("a", when.a.is_some()),
            ("b", when.b.is_some()),
            ("vcpu", when.vcpu.is_some()),
            ("level", when.level.is_some()),
            ("state", when.state.is_some()),
            ("skip", when.skip.is_some()),
        ];
        match others.iter().find(|(_, given)| *given) {
            Some((word, _)) => {
                let what =
                    format!("`{}` comes at instruction counts: `{word}` has no part in it", when.point);
                Err(self.error(word, what))
            }
            None => Ok(()),
        }
    }
}

/// How much of one name is in the other, in letters of whole words.
fn likeness(name: &str, wanted: &str) -> usize {
    let words = wanted.split(['-', '_', ' ']).filter(|word| name.split('-').any(|part| part == *word));
    words.map(str::len).sum()
}
