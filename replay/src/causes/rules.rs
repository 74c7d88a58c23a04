//! The rules that backends name: a rule that decided on one side only says why the sides differ.

use super::cause::{Cause, Kind};
use crate::{observer::Observation, report::Rule};
use vmtape_abi::TableRow;
use vmtape_arch::note::Note;
use vmtape_traces::Event;

/// The rules that a backend named, each once.
pub fn named(observations: &[Observation], table: &[TableRow], backend: &str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for observation in observations {
        let Observation::Event(Event::Note { note: Note::Rule { id }, .. }) = *observation else { continue };
        if !rules.iter().any(|rule| rule.id == id) {
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

/// The one rule that decided on one side and not on the other. Silicon's rules say how the guest was left, KVM's what it did then:
/// of those there may be one. With several nobody knows which of them it was.
pub fn of_rules(expected: &[Rule], actual: &[Rule]) -> Option<Cause> {
    let lacks = |rules: &[Rule], rule: &Rule| rules.iter().all(|other| other.name != rule.name);
    let here = actual.iter().filter(|rule| lacks(expected, rule));
    let there = expected.iter().filter(|rule| lacks(actual, rule));
    let found: Vec<_> = here.chain(there).filter(|rule| !rule.text.is_empty()).collect();
    let of_kvm = found.iter().filter(|rule| kind_of(&rule.source) == Kind::Patch);
    let rule = match (found.as_slice(), of_kvm.collect::<Vec<_>>().as_slice()) {
        ([only], _) => *only,
        (_, [only]) => **only,
        _ => return None,
    };
    Some(Cause {
        kind: kind_of(&rule.source),
        name: rule.name.clone(),
        sentence: format!("{}: {}", rule.backend, rule.text),
        source: rule.source.clone(),
        confirmed: None,
    })
}

/// What kind of thing a source tells of.
fn kind_of(source: &str) -> Kind {
    match source {
        kvm if kvm.starts_with("KVM") => Kind::Patch,
        manual if manual.starts_with("SDM") || manual.starts_with("APM") => Kind::Clause,
        _ => Kind::Silicon,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, source: &str) -> Rule {
        let text = format!("{name} decides");
        Rule { id: 1, backend: "here".into(), name: name.into(), text, source: source.into() }
    }

    #[test]
    fn a_rule_is_the_cause_where_it_is_the_only_one() {
        let [kvm, manual] = [rule("patched", "KVM x86.c"), rule("width", "SDM vol. 3A")];
        let found = of_rules(&[], std::slice::from_ref(&kvm)).unwrap();
        assert_eq!((found.name.as_str(), found.kind), ("patched", Kind::Patch));
        let found = of_rules(&[kvm.clone(), manual.clone()], std::slice::from_ref(&kvm)).unwrap();
        assert_eq!((found.name.as_str(), found.kind), ("width", Kind::Clause));
        assert_eq!(
            of_rules(std::slice::from_ref(&kvm), std::slice::from_ref(&kvm)),
            None,
            "it decided on both sides"
        );
        let [left, other] = [rule("nested-page-fault", "APM 15.25"), rule("other", "KVM mmu.c")];
        let found = of_rules(std::slice::from_ref(&manual), &[left.clone(), kvm.clone()]).unwrap();
        assert_eq!(found.name, "patched", "what the guest was left for is not it");
        assert_eq!(of_rules(&[left], &[manual]), None, "either may be the cause");
        assert_eq!(of_rules(&[kvm], &[other]), None, "either may be the cause");
    }
}
