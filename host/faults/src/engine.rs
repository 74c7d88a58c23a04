//! A plan at work: it decides what fault points answer.

use crate::{
    coin::Coin,
    compile::{self, Armed},
    plan::{FIRST_STATE, Number, PlanError, Source},
    points::Point,
};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};
use vmtape_arch::{exit::Isa, level::Level};
use vmtape_machine::{Asked, Decision, Exited, Faults, HostPoint};
use vmtape_traces::event::Skip;

/// A fault that happened, or that was due and was skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firing {
    pub asked: Asked,
    pub decision: Decision,
}

/// What a plan has done so far, for as long as somebody wants to know.
#[derive(Clone, Debug, Default)]
pub struct Log(Rc<RefCell<Vec<Firing>>>);

impl Log {
    /// Those that happened.
    pub fn fired(&self) -> Vec<Firing> {
        let log = self.0.borrow();
        log.iter().filter(|firing| firing.decision.skipped == Skip::NONE).copied().collect()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Firing> {
        self.0.borrow().clone()
    }

    pub fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}

/// A rule and how far it is.
#[derive(Clone, Debug)]
struct Rule {
    armed: Armed,
    coin: Coin,
    active: bool,
    /// How often all else held.
    matched: u64,
    /// How often it happened or was skipped.
    fired: u64,
}

/// The last exit of a vCPU, and how many of each kind it had.
#[derive(Clone, Debug, Default)]
struct Exits {
    last: Option<(Isa, u32, Level)>,
    /// Of the last one's kind.
    number: u64,
    counts: BTreeMap<(Isa, u32), u64>,
    all: u64,
}

/// A plan at work.
#[derive(Clone, Debug)]
pub struct Engine {
    rules: Vec<Rule>,
    /// The rules of a point, in their order.
    by_point: BTreeMap<u32, Vec<usize>>,
    at_exit: Vec<usize>,
    /// Moments of NMIs and whose they are, in order.
    nmis: Vec<(u64, usize)>,
    heal_from: u64,
    state: u32,
    /// Some rule looks at exits.
    counts_exits: bool,
    exits: BTreeMap<u32, Exits>,
    log: Log,
}

impl Engine {
    /// A plan against the points of a backend and of the host.
    pub fn new(source: &Source, points: &[Point]) -> Result<Self, PlanError> {
        let armed = compile::arm(source, points)?;
        let plan = &source.plan;
        let mut engine = Self {
            rules: Vec::new(),
            by_point: BTreeMap::new(),
            at_exit: Vec::new(),
            nmis: Vec::new(),
            heal_from: plan.heal_from.map_or(u64::MAX, |Number(insn)| insn),
            state: FIRST_STATE,
            counts_exits: armed.iter().any(|rule| {
                rule.point.is_none() || rule.exit.is_some() || rule.exit_n.is_some() || rule.level.is_some()
            }),
            exits: BTreeMap::new(),
            log: Log::default(),
        };
        for (at, armed) in armed.into_iter().enumerate() {
            // Rules of one point have coins of their own.
            let ordinal = armed.point.map_or(0, |point| engine.by_point.get(&point).map_or(0, Vec::len));
            let whose = format!("{} {ordinal}", plan.rules[at].when.point);
            let run = Coin::new(plan.seed.0, format!("run {whose}").as_bytes());
            let coin = Coin::new(plan.seed.0, whose.as_bytes());
            engine.index(at, &armed, &coin);
            let active = run.comes_up(0, armed.active);
            engine.rules.push(Rule { armed, coin, active, matched: 0, fired: 0 });
        }
        engine.nmis.sort_unstable();
        engine.nmis.dedup_by_key(|(moment, _)| *moment);
        Ok(engine)
    }

    /// Checks a plan, exhaustive or not.
    pub fn check(source: &Source, points: &[Point]) -> Result<(), PlanError> {
        compile::check(source, points)
    }

    /// What it does is told here.
    pub fn log(&self) -> Log {
        self.log.clone()
    }

    fn index(&mut self, at: usize, armed: &Armed, coin: &Coin) {
        let Some(point) = armed.point else { return self.at_exit.push(at) };
        self.by_point.entry(point).or_default().push(at);
        if point == HostPoint::NMI.0 {
            let moments = armed.insn.iter().filter_map(|insn| insn.listed()).flatten();
            let thrown = (1..).zip(moments).filter(|(n, _)| coin.comes_up(*n, armed.probability));
            self.nmis.extend(thrown.map(|(_, moment)| (moment, at)).take(armed.times as usize));
        }
    }

    /// Whether a rule's conditions hold. Counts that they do.
    fn is_due(&mut self, at: usize, asked: &Asked) -> bool {
        let rule = &mut self.rules[at];
        let armed = &rule.armed;
        let has = |numbers: &Option<crate::plan::Numbers>, number| {
            numbers.as_ref().is_none_or(|numbers| numbers.has(number))
        };
        let holds = rule.fired < armed.times
            && has(&armed.n, asked.occurrence)
            && has(&armed.insn, asked.icount)
            && armed.a.iter().all(|numbers| numbers.has(asked.a))
            && armed.b.iter().all(|numbers| numbers.has(asked.b))
            && armed.vcpu.is_none_or(|vcpu| vcpu == asked.vcpu)
            && armed.phase.is_none_or(|phase| phase == asked.phase)
            && armed.state.is_none_or(|state| state == self.state)
            && exit_holds(armed, self.exits.get(&asked.vcpu));
        if !holds {
            return false;
        }
        rule.matched += 1;
        /// vCPUs have throws of their own.
        const OF_VCPU: u32 = 48;
        let throw = asked.occurrence ^ u64::from(asked.vcpu) << OF_VCPU;
        rule.matched > armed.skip
            && (armed.probability >= 1.0 || rule.coin.comes_up(throw, armed.probability))
    }

    /// A rule is due: what comes of it.
    fn fire(&mut self, at: usize, asked: &Asked) -> Option<Decision> {
        let rule = &mut self.rules[at];
        rule.fired += 1;
        let skipped = match () {
            () if !rule.active => Skip::INACTIVE,
            () if asked.icount >= self.heal_from => Skip::HEALING,
            () => Skip::NONE,
        };
        if skipped == Skip::NONE {
            self.state = rule.armed.goto.unwrap_or(self.state);
        }
        let decision = Decision { rule: at as u32 + 1, skipped, answer: rule.armed.answer? };
        self.log.0.borrow_mut().push(Firing { asked: *asked, decision });
        Some(decision)
    }
}

/// Whether the vCPU's last exit is one that a rule waits for.
fn exit_holds(armed: &Armed, exits: Option<&Exits>) -> bool {
    if armed.exit.is_none() && armed.exit_n.is_none() && armed.level.is_none() {
        return true;
    }
    let Some(exits) = exits else { return false };
    let Some((isa, reason, level)) = exits.last else { return false };
    let number = if armed.exit.is_some() { exits.number } else { exits.all };
    armed.exit.as_ref().is_none_or(|kinds| kinds.contains(&(isa, reason)))
        && armed.exit_n.as_ref().is_none_or(|numbers| numbers.has(number))
        && armed.level.is_none_or(|wanted| wanted == level)
}

impl Faults for Engine {
    /// The first rule that is due decides; those after it are not due then.
    fn decide(&mut self, asked: &Asked) -> Option<Decision> {
        if asked.point == HostPoint::NMI.0 {
            let (_, at) = *self.nmis.get(asked.occurrence.checked_sub(1)? as usize)?;
            return self.fire(at, asked);
        }
        let rules = self.by_point.get(&asked.point)?.len();
        for n in 0..rules {
            let at = self.by_point[&asked.point][n];
            if self.is_due(at, asked) {
                // A rule that only changes the state leaves the point to the next.
                if let Some(decision) = self.fire(at, asked) {
                    return Some(decision);
                }
            }
        }
        None
    }

    fn exited(&mut self, exit: &Exited) {
        if !self.counts_exits {
            return;
        }
        /// Above it are flags: a failed entry, an exit from an enclave.
        const BASIC: u32 = 0xffff;
        let reason = if exit.isa == Isa::VMX { exit.reason & BASIC } else { exit.reason };
        let exits = self.exits.entry(exit.vcpu).or_default();
        let count = exits.counts.entry((exit.isa, reason)).or_default();
        *count += 1;
        exits.number = *count;
        exits.all += 1;
        exits.last = Some((exit.isa, reason, exit.level));
        let asked = Asked { icount: exit.icount, vcpu: exit.vcpu, occurrence: exits.all, ..Asked::default() };
        for n in 0..self.at_exit.len() {
            let at = self.at_exit[n];
            if self.is_due(at, &asked) {
                self.fire(at, &asked);
            }
        }
    }

    fn next_nmi(&self, occurrences: u64) -> Option<u64> {
        self.nmis.get(occurrences as usize).map(|(moment, _)| *moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points() -> Vec<Point> {
        let point = |number, name: &str, words: &str| Point {
            number,
            name: name.into(),
            words: words.into(),
            ..Point::default()
        };
        let mut points = Point::of_host();
        points.push(point(1, "lost-flush", "a: the scope; b: the address; answer: any"));
        points.push(point(2, "wrmsr", "a: the MSR; b: the value; answer: any"));
        points.push(point(3, "crash", "a: the CPU; b: 0x100 list_add, 0x200 list_del; answer: any"));
        points
    }

    fn engine(rules: &str) -> Engine {
        Engine::new(&rules.parse().unwrap(), &points()).unwrap()
    }

    fn ask(point: u32, occurrence: u64) -> Asked {
        Asked { point, occurrence, icount: occurrence * 100, ..Asked::default() }
    }

    /// Which of so many occurrences of a point are answered.
    fn answered(engine: &mut Engine, point: u32, count: u64) -> Vec<u64> {
        let happens = |decision: Decision| decision.skipped == Skip::NONE;
        (1..=count).filter(|n| engine.decide(&ask(point, *n)).is_some_and(happens)).collect()
    }

    fn exit(engine: &mut Engine, reason: u32, level: Level) {
        engine.exited(&Exited { icount: 0, vcpu: 0, isa: Isa::VMX, reason, level });
    }

    #[test]
    fn conditions_and_counts() {
        let of = |when: &str| {
            let rule = format!("[[rule]]\nwhen = {{ point = \"lost-flush\"{when} }}");
            answered(&mut engine(&rule), 1, 10)
        };
        assert_eq!(of(""), [1], "once, if nothing says when");
        assert_eq!(of(", n = \"2, 4-5\""), [2, 4, 5]);
        assert_eq!(of(", insn = \"300-\", times = 2"), [3, 4]);
        assert_eq!(of(", skip = 3, times = 2"), [4, 5]);
        assert_eq!(of(", vcpu = 1"), [0u64; 0]);
        assert_eq!(of(", phase = \"state\""), [0u64; 0]);
        assert_eq!(of(", probability = 1.0, times = 3"), [1, 2, 3]);
    }

    #[test]
    fn words_are_found_by_what_they_mean() {
        let decides = |rule: &str, asked: Asked| engine(rule).decide(&asked).is_some();
        let address = "[[rule]]\nwhen = { point = \"lost-flush\", address = \"0x1000-0x1fff\" }";
        assert!(decides(address, Asked { a: 0, b: 0x1234, ..ask(1, 1) }));
        assert!(!decides(address, Asked { a: 0x1234, b: 0, ..ask(1, 1) }));
        let msr = "[[rule]]\nwhen = { point = \"wrmsr\", msr = \"0x10\" }";
        assert!(decides(msr, Asked { a: 0x10, ..ask(2, 1) }));
        let list = "[[rule]]\nwhen = { point = \"crash\", list = \"list_del\", stores = 1 }";
        assert!(decides(list, Asked { b: 0x201, ..ask(3, 1) }));
        assert!(!decides(list, Asked { b: 0x101, ..ask(3, 1) }));
    }

    #[test]
    fn states_follow_exits() {
        let mut engine = engine(
            "[[rule]]\nwhen = { point = \"exit\", exit = \"INVLPG\", exit-n = 2 }\nwhat.goto = 2\n\
             [[rule]]\nwhen = { point = \"lost-flush\", state = 2, level = \"L1\" }\nwhat = { answer = 5, goto = 1 }",
        );
        let mut answers = Vec::new();
        for n in 1..=5 {
            exit(&mut engine, 14, Level::L1);
            answers.push(engine.decide(&ask(1, n)).map(|decision| (decision.rule, decision.answer)));
        }
        assert_eq!(answers, [None, Some((2, 5)), None, None, None]);
        assert_eq!(engine.log().fired().len(), 1);
    }

    #[test]
    fn chance_does_not_depend_on_what_else_is_asked() {
        let rules = "seed = 3\n[[rule]]\nwhen = { point = \"lost-flush\", probability = 0.3 }\n\
                     [[rule]]\nwhen = { point = \"wrmsr\", probability = 0.5 }";
        let alone = answered(&mut engine(rules), 1, 200);
        let mut mixed = engine(rules);
        let both: Vec<u64> = (1..=200)
            .filter(|n| {
                let _ = (mixed.decide(&ask(2, *n)), mixed.decide(&ask(2, *n + 200)));
                mixed.decide(&ask(1, *n)).is_some()
            })
            .collect();
        assert_eq!(alone, both);
        assert!((30..90).contains(&alone.len()), "{}", alone.len());
        let other = answered(&mut engine(&rules.replace("seed = 3", "seed = 4")), 1, 200);
        assert_ne!(alone, other);
    }

    #[test]
    fn what_was_due_and_did_not_happen_is_told() {
        let mut healed = engine("heal-from = 300\n[[rule]]\nwhen = { point = \"lost-flush\", n = \"2-3\" }");
        let skipped: Vec<_> = (1..=4).map(|n| healed.decide(&ask(1, n)).map(|d| d.skipped)).collect();
        assert_eq!(skipped, [None, Some(Skip::NONE), Some(Skip::HEALING), None]);
        let mut never = engine("[[rule]]\nwhen = { point = \"lost-flush\", active = 0.0 }");
        assert_eq!(never.decide(&ask(1, 1)).map(|d| d.skipped), Some(Skip::INACTIVE));
        assert_eq!(never.decide(&ask(1, 2)), None);
        assert_eq!((never.log().fired().len(), never.log().all().len()), (0, 1));
    }

    #[test]
    fn nmis_come_at_their_moments() {
        let mut engine = engine(
            "[[rule]]\nwhen = { point = \"host-nmi\", insn = \"500, 300\" }\n[[rule]]\nwhen = { point = \"host-nmi\", insn = 400 }",
        );
        let mut moments = Vec::new();
        while let Some(moment) = engine.next_nmi(moments.len() as u64) {
            moments.push(moment);
            let asked = Asked { icount: moment, ..ask(HostPoint::NMI.0, moments.len() as u64) };
            assert!(engine.decide(&asked).is_some(), "{moment}");
        }
        assert_eq!(moments, [300, 400, 500], "all of a rule whose moments are listed");
    }

    #[test]
    fn what_cannot_be_is_told_with_its_line() {
        for (when, line, words) in [
            ("point = \"flush\"", 3, "there is `lost-flush`"),
            ("point = \"lost-flush\", msr = 1", 3, "tells no msr"),
            ("point = \"lost-flush\", exit = \"NONE\"", 3, "there is no exit `NONE`"),
            ("point = \"lost-flush\", state = 3", 3, "no rule goes to state 3"),
            ("point = \"lost-flush\", probability = 2.0", 3, "no probability"),
            ("point = \"host-nmi\"", 2, "needs `insn`"),
            ("point = \"host-nmi\", insn = \"1-2\"", 3, "needs `insn`"),
            ("point = \"host-nmi\", insn = 1, vcpu = 1", 3, "`vcpu` has no part"),
            ("point = \"exit\"", 3, "only `goto`"),
            ("point = \"lost-flush\", stores = 1", 3, "of a `list`"),
            ("point = \"lost-flush\", each = true", 3, "one run per occurrence"),
            ("point = \"lost-flush\", phase = \"x\"", 3, "pre-copy"),
            ("point = \"lost-flush\", level = \"L3\"", 3, "neither L1 nor L2"),
        ] {
            let source: Source = format!("seed = 1\n[[rule]]\nwhen = {{ {when} }}").parse().unwrap();
            let error = Engine::new(&source, &points()).unwrap_err();
            assert!(error.line == Some(line) && error.what.contains(words), "{when}: {error}");
        }
        assert!(Engine::check(&"seed = 1".parse().unwrap(), &points()).is_err());
    }
}
