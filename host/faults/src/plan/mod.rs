//! A fault plan as data: rules that say what goes wrong when. README.md of this crate says what each word means.

mod numbers;
mod source;

pub use numbers::{Number, Numbers, parse as parse_number};
pub use source::{PlanError, Source};

use crate::verdict::Expected;
use serde::{Deserialize, Serialize};

/// A plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Plan {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Of every coin that rules throw.
    #[serde(default)]
    pub seed: Number,
    /// The verdict that is right.
    #[serde(default, skip_serializing_if = "Expected::is_open")]
    pub expect: Expected,
    /// No fault happens from this instruction count on: the guest shall recover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heal_from: Option<Number>,
    /// How often the VMM calls KVM_RUN again that has failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// One thing that may go wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rule {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub when: When,
    #[serde(default)]
    pub what: What,
}

/// When it does: every word that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct When {
    /// The fault point, by its name, or `exit`: every exit, where only the state changes.
    pub point: String,
    /// Which of the vCPU's occurrences, as tapes count them, from one on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<Numbers>,
    /// One run for each occurrence, the first, the second and so on, until the plan is not reached.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub each: bool,
    /// Instructions retired by all vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insn: Option<Numbers>,
    /// The kind of the vCPU's last exit, in the words of KVM's tracepoints: the one that is handled, until the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<String>,
    /// Which of the vCPU's exits of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_n: Option<Numbers>,
    /// The first and second word that the point tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub a: Option<Numbers>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub b: Option<Numbers>,
    /// The word that is an address, whichever it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Numbers>,
    /// The word that is an MSR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msr: Option<Numbers>,
    /// The operation of a list that is under way, and how many of its stores are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stores: Option<Numbers>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// `L1` or `L2`: whose the vCPU's last exit was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// The phase of a migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The plan's state; it begins with 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<u32>,
    /// So many times that all else holds nothing happens yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip: Option<Number>,
    /// It happens so many times at most: once, or without limit where `n` or `probability` says when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<Number>,
    /// Of each occurrence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// That the rule has a part in a run at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<f64>,
}

/// What goes wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct What {
    /// What the point answers, in the words of its table; 1, unless only the state changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Number>,
    /// The state from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goto: Option<u32>,
}

impl Plan {
    /// The plan as TOML.
    pub fn to_toml(&self) -> String {
        // Nothing in a plan is a type that TOML lacks.
        toml::to_string(self).unwrap_or_default()
    }

    /// The rule that asks for one run per occurrence.
    pub fn each(&self) -> Option<usize> {
        self.rules.iter().position(|rule| rule.when.each)
    }

    /// The member of an exhaustive plan that fails the n-th occurrence.
    pub fn nth(&self, n: u64) -> Self {
        let mut plan = self.clone();
        for rule in plan.rules.iter_mut().filter(|rule| rule.when.each) {
            (rule.when.each, rule.when.n) = (false, Some(Numbers::one(n)));
        }
        plan
    }

    /// A number that equal plans share, whatever they are called and expect.
    pub fn hash(&self) -> u64 {
        let mut bare = Self { name: String::new(), expect: Expected::Anything, ..self.clone() };
        bare.rules.iter_mut().for_each(|rule| rule.name.clear());
        xxhash_rust::xxh3::xxh3_64(bare.to_toml().as_bytes())
    }
}

/// The plan's state at the beginning.
pub const FIRST_STATE: u32 = 1;

/// The point's name that stands for every exit.
pub const EXIT: &str = "exit";
