//! A plan as somebody wrote it: what is wrong with it is told with its line.

use super::Plan;
use serde::Deserialize;
use std::{collections::BTreeMap, fmt, str::FromStr};
use toml::Spanned;

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanError {
    /// From one on; `None`: the plan comes from no file.
    pub line: Option<usize>,
    pub what: String,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for PlanError {}

/// A plan and where its words stand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    pub plan: Plan,
    rules: Vec<Lines>,
}

/// The lines of a rule: its own, and those of its words.
#[derive(Clone, Debug, Default, PartialEq)]
struct Lines {
    own: usize,
    words: BTreeMap<String, usize>,
}

/// As much of a plan as has lines.
#[derive(Deserialize)]
struct Spans {
    #[serde(default)]
    rule: Vec<Spanned<RuleSpans>>,
}

#[derive(Deserialize)]
struct RuleSpans {
    when: BTreeMap<String, Spanned<toml::Value>>,
    #[serde(default)]
    what: BTreeMap<String, Spanned<toml::Value>>,
}

fn line(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

impl FromStr for Source {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let wrong = |error: toml::de::Error| PlanError {
            line: error.span().map(|span| line(text, span.start)),
            what: error.message().trim().replace('\n', " "),
        };
        let plan = toml::from_str(text).map_err(wrong)?;
        let spans: Spans = toml::from_str(text).map_err(wrong)?;
        let rules = spans.rule.iter().map(|rule| {
            let words = rule.get_ref().when.iter().chain(&rule.get_ref().what);
            Lines {
                own: line(text, rule.span().start),
                words: words.map(|(word, value)| (word.clone(), line(text, value.span().start))).collect(),
            }
        });
        Ok(Self { rules: rules.collect(), plan })
    }
}

impl From<Plan> for Source {
    fn from(plan: Plan) -> Self {
        Self { plan, rules: Vec::new() }
    }
}

impl Source {
    /// Says what is wrong with a word of a rule (counted from zero), or with the rule.
    pub fn error(&self, rule: usize, word: &str, what: impl Into<String>) -> PlanError {
        let lines = self.rules.get(rule);
        let line = lines.map(|lines| lines.words.get(word).copied().unwrap_or(lines.own));
        let what = what.into();
        let what = if line.is_some() { what } else { format!("rule {}: {what}", rule + 1) };
        PlanError { line, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Number, Numbers};

    const TEXT: &str = r#"
name = "two"
seed = 7
expect = ["masked", "guest-lost:state"]

[[rule]]
when = { point = "lost-flush", n = "2-3", address = "0x1000-0x1fff" }
what = { answer = "0xffffffffffffffff" }

[[rule]]
when.point = "exit"
when.exit = "EPT_VIOLATION"
what.goto = 2
"#;

    #[test]
    fn a_plan_is_read_and_written() {
        let plan = TEXT.parse::<Source>().unwrap().plan;
        assert_eq!((plan.rules.len(), plan.seed), (2, Number(7)));
        assert_eq!(plan.rules[0].when.n, Some("2-3".parse::<Numbers>().unwrap()));
        assert_eq!(plan.rules[0].what.answer, Some(Number(u64::MAX)));
        assert_eq!(plan.to_toml().parse::<Source>().unwrap().plan, plan);
        let other = Plan { name: "other".into(), ..plan.clone() };
        assert_eq!(other.hash(), plan.hash());
        assert_ne!(Plan { seed: Number(8), ..plan.clone() }.hash(), plan.hash());
    }

    #[test]
    fn errors_have_lines() {
        let at = |old: &str, new: &str| {
            let error = TEXT.replace(old, new).parse::<Source>().unwrap_err();
            (error.line.unwrap(), error.what)
        };
        for (old, new, line, words) in [
            ("seed = 7", "seed = -7", 3, "not a number of 64 bits"),
            ("seed = 7", "sead = 7", 3, "sead"),
            ("\"masked\"", "\"broken\"", 4, ""),
            ("\"2-3\"", "\"3-2\"", 7, "ends before it begins"),
            ("n = \"2-3\"", "m = 1", 7, "unknown field `m`"),
            ("[[rule]]\nwhen.point", "[[rule\nwhen.point", 10, ""),
            ("point = \"lost-flush\", ", "", 7, "point"),
        ] {
            let (found, what) = at(old, new);
            assert!(found == line && what.contains(words), "{new}: line {found}: {what}");
        }
        let source: Source = TEXT.parse().unwrap();
        assert_eq!(source.error(1, "exit", "no").line, Some(12));
        assert_eq!(source.error(1, "absent", "no").line, Some(10));
        assert_eq!(Source::from(Plan::default()).error(0, "n", "no").to_string(), "rule 1: no");
    }
}
