//! Another backend, host or KVM: the guest runs on both, and what it can observe is compared.
//!
//! The tape's own machine is run again beside the other one. It must repeat the tape event by event, so what is compared
//! is the tape; and it has what no tape holds, every register and every byte of memory after each instruction. Both
//! stand still at the same count of retired instructions, where registers, memory and serial output must be equal. A
//! stretch that ends unequal is run again in smaller steps, down to the one instruction.

use crate::{
    Error,
    explain::{self, Widths},
    identical::{Checker, event_text, widths},
    player::{Create, Player},
    report::{Class, Cost, Divergence, Level, Report, Rule},
    signature::Signature,
    spec,
    state::{self, Difference},
    text,
};
use vmtape_abi::{Description, TableRow};
use vmtape_arch::note::Note;
use vmtape_machine::MachineSpec;
use vmtape_traces::{Event, ExitGroup, Exits, Tape, event::End};

/// Instructions per stretch, at first and at most: a comparison looks at every page that was ever written.
const FIRST_STRETCH: u64 = 1 << 16;
const LONGEST_STRETCH: u64 = 1 << 24;
/// Events of one stretch, which are in memory until its end: with more, stretches get shorter.
const MOST_EVENTS: usize = 1 << 18;
/// How a stretch that ends unequal is divided.
const DIVISION: u64 = 64;

/// The two sides of a comparison.
pub struct Sides<'a> {
    pub tape: &'a Tape,
    pub expected: MachineSpec,
    pub actual: MachineSpec,
    pub create: Create<'a>,
    /// What the tape's backend says of itself, and the other one.
    pub expected_plugin: &'a Description,
    pub plugin: &'a Description,
    pub context: usize,
    /// Whether to look for the cause: other runs, each with one thing changed.
    pub explain: bool,
    pub reproduce: String,
}

/// Both machines, at the same instruction.
struct Pair {
    expected: Player,
    actual: Player,
}

/// What was found at the end of a stretch.
struct Found {
    /// Both machines were equal after this many instructions.
    equal_at: u64,
    /// And no longer so many instructions later.
    stretch: u64,
    differences: Vec<Difference>,
}

impl Sides<'_> {
    /// Compares until the first divergence or the end.
    pub fn compare(&self, report: &mut Report, progress: &mut dyn FnMut(u64)) -> Result<(), Error> {
        let mut pair = self.pair(true)?;
        let mut checker = Checker::new(self.tape);
        let found = self.run(&mut pair, &mut checker, report, progress)?;
        report.compared = checker.compared().clone();
        report.compared.instructions = pair.expected.machine.icount();
        report.expected_end = pair.expected.end.as_ref().map(text::end_text);
        report.actual_end = pair.actual.end.as_ref().map(text::end_text);
        if let Some(found) = found {
            drop(pair);
            let divergence = self.locate(found)?;
            report.compared.instructions = divergence.icount;
            report.diverge(divergence);
        }
        Ok(())
    }

    fn pair(&self, listen: bool) -> Result<Pair, Error> {
        let budget = spec::budget(self.tape);
        let player = |machine: &MachineSpec| {
            let inputs = Box::new(spec::inputs(self.tape)?);
            // Exits are counted differently on the two sides: only the tape's own machine may stop by them.
            let budget = if machine.backend == self.expected.backend {
                budget
            } else {
                spec::Budget { exits: u64::MAX, ..budget }
            };
            Player::new(machine.clone(), inputs, budget, self.create, listen)
        };
        Ok(Pair { expected: player(&self.expected)?, actual: player(&self.actual)? })
    }

    /// Runs both in stretches while they are equal.
    fn run(
        &self,
        pair: &mut Pair,
        checker: &mut Checker,
        report: &mut Report,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<Found>, Error> {
        let (mut stretch, mut equal_at) = (FIRST_STRETCH, 0);
        loop {
            pair.advance_to(equal_at + stretch)?;
            let (events, others) = (pair.expected.take_events(), pair.actual.take_events());
            let heard = events.len().max(others.len());
            count(&events, report, |cost| &mut cost.expected);
            count(&others, report, |cost| &mut cost.actual);
            self.check_tape(events, checker)?;
            let differences = pair.differences();
            if !differences.is_empty() {
                return Ok(Some(Found { equal_at, stretch, differences }));
            }
            if pair.expected.end.is_some() {
                return Ok(None);
            }
            equal_at = pair.expected.machine.icount();
            stretch = match heard {
                0..MOST_EVENTS => (stretch * 2).min(LONGEST_STRETCH),
                _ => (stretch / 2).max(FIRST_STRETCH / DIVISION),
            };
            progress(equal_at);
        }
    }

    /// The tape's own machine must repeat the tape: otherwise nothing can be said about another one.
    fn check_tape(&self, events: Vec<Event>, checker: &mut Checker) -> Result<(), Error> {
        match checker.check(events)? {
            None => Ok(()),
            Some(mismatch) => {
                let words = |event: &Option<Event>| event.as_ref().map_or("nothing".into(), event_text);
                Err(Error::Other(format!(
                    "{}: the installed `{}` does not repeat this tape (after exit {}: taped {}, now {}); it is \
                     another build than the one that recorded",
                    self.tape.name(),
                    self.expected.backend,
                    checker.compared().exits,
                    words(&mismatch.expected),
                    words(&mismatch.actual)
                )))
            }
        }
    }

    /// Runs again to the first instruction after which the two differ.
    fn locate(&self, mut found: Found) -> Result<Divergence, Error> {
        loop {
            let step = found.stretch.div_ceil(DIVISION);
            let mut pair = self.pair(false)?;
            pair.advance_to(found.equal_at)?;
            pair.listen(step == 1);
            let equal_at = loop {
                let before = pair.expected.machine.icount();
                pair.advance_to(before + step)?;
                let differences = pair.differences_in(&found.differences);
                let over = pair.expected.end.is_some() || pair.actual.end.is_some();
                match differences.is_empty() && !over {
                    true => {}
                    false if step == 1 => return Ok(self.divergence(&pair, before, differences)),
                    false => break before,
                }
            };
            found = Found { equal_at, stretch: step, ..found };
        }
    }

    fn divergence(&self, pair: &Pair, icount: u64, differences: Vec<Difference>) -> Divergence {
        let (expected, actual) = (groups(&pair.expected), groups(&pair.actual));
        let (guest, host) = (widths(&self.expected), widths(&self.actual));
        let mut differences = differences;
        differences.sort_by_key(|difference| difference.rank(guest.guest));
        let rows: Vec<_> = differences.iter().map(Difference::row).collect();
        // The exits before this instruction are context.
        let here = |groups: &[ExitGroup]| -> Vec<ExitGroup> {
            groups.iter().filter(|group| group.exit.icount >= icount).cloned().collect()
        };
        let mut rules = rules_of(&here(&actual), &self.plugin.rules, &self.actual.backend);
        let class_rules = rules.clone();
        rules.extend(rules_of(&here(&expected), &self.expected_plugin.rules, &self.expected.backend));
        let (class, summary) = classify(&differences, &class_rules);
        let mut walks = Vec::new();
        add_walks(&mut walks, &self.expected, &here(&expected), guest);
        add_walks(&mut walks, &self.actual, &here(&actual), host);
        let state = pair.actual.machine.state(0);
        let last = actual.last().or(expected.last());
        let rip = last.map_or(state.map_or(0, |state| state.rip), |group| group.exit.rip);
        let what = differences.first().map_or_else(String::new, Difference::name);
        Divergence {
            signature: Signature::new(&what, rip),
            cause: None,
            level: Level::GuestVisible,
            class,
            summary,
            vcpu: last.map_or(0, |group| group.exit.vcpu),
            icount,
            rip,
            expected_exit: expected.last().map(|group| group.number),
            actual_exit: actual.last().map(|group| group.number),
            rows,
            walks,
            expected_context: text::context(expected.iter(), self.context),
            actual_context: text::context(actual.iter(), self.context),
            rules,
            reproduce: self.reproduce.clone(),
        }
    }
}

/// The rules that a backend named in these exits.
fn rules_of(groups: &[ExitGroup], table: &[TableRow], backend: &str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for note in groups.iter().flat_map(|group| group.before.iter().chain(&group.notes)) {
        if let Note::Rule { id } = *note
            && !rules.iter().any(|rule| rule.id == id)
        {
            let row = table.iter().find(|row| row.id == id);
            rules.push(Rule {
                id,
                backend: backend.to_owned(),
                name: row.map_or_else(|| format!("rule {id}"), |row| row.name.clone()),
                text: row.map_or_else(String::new, |row| row.text.clone()),
                source: row.map_or_else(String::new, |row| row.source.clone()),
            });
        }
    }
    rules
}

fn groups(player: &Player) -> Vec<ExitGroup> {
    let events = player.peek_events();
    let exits = events.iter().filter(|event| matches!(event, Event::Exit(_))).count() as u64;
    let first = player.machine.exits().saturating_sub(exits);
    Exits::new(events.into_iter().map(Ok), first).filter_map(Result::ok).collect()
}

fn add_walks(walks: &mut Vec<String>, machine: &MachineSpec, groups: &[ExitGroup], widths: Widths) {
    for group in groups {
        let (silicon, kvm) = (explain::silicon_walk(group, widths), explain::kvm_walk(group, widths));
        if !silicon.is_empty() {
            walks.push(format!("{}, exit {}: the silicon's walk", machine.backend, group.number));
            walks.extend(silicon);
        }
        if !kvm.is_empty() {
            walks.push(format!("{}, exit {}: {}", machine.backend, group.number, kvm[0]));
            walks.extend(kvm.into_iter().skip(1));
        }
    }
}

/// Says what kind of difference it is, and the one that says most in a sentence.
fn classify(differences: &[Difference], rules: &[Rule]) -> (Class, String) {
    let class = match rules.first() {
        Some(rule) if rule.source.contains("APM") || rule.source.contains("SDM") => Class::Silicon,
        Some(_) => Class::Kvm,
        None => Class::Unexplained,
    };
    let text = |difference: &Difference| difference.accessed_dirty().unwrap_or_else(|| difference.text());
    (class, differences.first().map_or_else(String::new, text))
}

impl Pair {
    /// Runs both to the same instruction count; the second one no further than the first.
    fn advance_to(&mut self, instructions: u64) -> Result<(), Error> {
        self.expected.advance(instructions, u64::MAX)?;
        let Some(end) = &self.expected.end else { return self.actual.advance(instructions, u64::MAX) };
        let icount = self.expected.machine.icount();
        self.actual.advance(icount, u64::MAX)?;
        if !matches!(end, End::Limit { .. }) {
            // What ended the first one (a triple fault, say) may come after the last instruction that retired.
            self.actual.advance(icount + 1, u64::MAX)?;
        }
        Ok(())
    }

    fn listen(&self, on: bool) {
        self.expected.listen(on);
        self.actual.listen(on);
    }

    /// Every difference that the guest can observe.
    fn differences(&self) -> Vec<Difference> {
        let mut differences = state::compare(&self.expected.machine, &self.actual.machine);
        differences.extend(self.end_difference());
        differences
    }

    /// As [`Pair::differences`], but of memory only the pages that differ later.
    fn differences_in(&self, later: &[Difference]) -> Vec<Difference> {
        let mut differences = state::compare_pages(&self.expected.machine, &self.actual.machine, later);
        differences.extend(self.end_difference());
        differences
    }

    fn end_difference(&self) -> Option<Difference> {
        let by_limit = matches!(self.expected.end, Some(End::Limit { .. }));
        if self.expected.end != self.actual.end && !by_limit {
            let words = |player: &Player| player.end.as_ref().map_or("goes on".to_owned(), text::end_text);
            return Some(Difference::End { expected: words(&self.expected), actual: words(&self.actual) });
        }
        let (expected, actual) = (self.expected.machine.icount(), self.actual.machine.icount());
        (expected != actual).then_some(Difference::Progress { expected, actual })
    }
}

/// Counts exits by reason.
fn count(events: &[Event], report: &mut Report, side: fn(&mut Cost) -> &mut u64) {
    for event in events {
        if let Event::Exit(exit) = event {
            *side(report.cost.entry(text::reason(&exit.exit)).or_default()) += 1;
        }
    }
}
