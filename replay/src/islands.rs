//! Stretches of exits that differ between streams that are alike before and behind them.

use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a stretch has to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The guest reads a clock in it.
    Time,
    /// The guest prints something else: a time, a random number.
    Output,
    /// Interrupts, and waiting for them: they come when the host lets them.
    Interrupts,
    Unexplained,
}

impl Why {
    pub fn text(self) -> &'static str {
        match self {
            Self::Time => "time: the guest reads a clock",
            Self::Output => "output: the guest prints something else, such as a time or a random number",
            Self::Interrupts => "host: interrupts and waiting for them",
            Self::Unexplained => "unexplained",
        }
    }
}

/// One stretch.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Island {
    /// The first exit in it, or behind it where a side has none in it.
    pub expected_exit: Option<u64>,
    pub actual_exit: Option<u64>,
    /// Exits of each side in it.
    pub expected: u64,
    pub actual: u64,
    pub why: Why,
    /// What differs at its beginning.
    pub summary: String,
}

/// Stretches that are kept one by one; the rest is counted.
const KEPT: usize = 64;

/// How two streams fit together.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Alignment {
    /// Exits that are the same on both sides.
    pub equal: u64,
    /// Exits of each side that are not.
    pub expected: u64,
    pub actual: u64,
    /// Stretches, by what they have to do with.
    pub count: BTreeMap<Why, u64>,
    /// The first of them.
    pub islands: Vec<Island>,
    /// No place to go on was found: the rest counts as different.
    pub lost: bool,
}

impl Alignment {
    pub fn add(&mut self, island: Island) {
        self.expected += island.expected;
        self.actual += island.actual;
        *self.count.entry(island.why).or_default() += 1;
        if self.islands.len() < KEPT {
            self.islands.push(island);
        }
    }

    /// The share that is the same, in percent.
    pub fn share(&self) -> f64 {
        let all = self.equal + self.expected.max(self.actual);
        if all == 0 { 0.0 } else { self.equal as f64 * 100.0 / all as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_longer_side() {
        let mut alignment = Alignment { equal: 90, ..Alignment::default() };
        let island = Island {
            expected_exit: None,
            actual_exit: None,
            expected: 10,
            actual: 4,
            why: Why::Time,
            summary: String::new(),
        };
        alignment.add(island);
        assert_eq!((alignment.share(), alignment.count[&Why::Time]), (90.0, 1));
        assert_eq!(Alignment::default().share(), 0.0, "nothing is not all");
    }
}
