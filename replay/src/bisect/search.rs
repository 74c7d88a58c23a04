//! The two searches: where a row of candidates turns bad, and the smallest set that is bad.

use crate::Error;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::HashMap;

/// What a trial says of a candidate, in the words of `git bisect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    Good,
    Bad,
    /// The candidate cannot be tested, or shows something else.
    Skip,
}

/// Where a row turns bad. With nothing skipped in between, `first_bad` follows `last_good`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    pub last_good: u64,
    pub first_bad: u64,
}

/// Finds where a row turns bad that is good at `good` and bad at `bad`, which are not tested again.
pub fn turn(good: u64, bad: u64, mut test: impl FnMut(u64) -> Result<Mark, Error>) -> Result<Turn, Error> {
    let mut turn = Turn { last_good: good, first_bad: bad };
    while let Some((candidate, mark)) = probe(&turn, &mut test)? {
        match mark {
            Mark::Good => turn.last_good = candidate,
            _ => turn.first_bad = candidate,
        }
    }
    Ok(turn)
}

/// Tests the candidate nearest to the middle that can be tested.
fn probe(
    turn: &Turn,
    test: &mut impl FnMut(u64) -> Result<Mark, Error>,
) -> Result<Option<(u64, Mark)>, Error> {
    /// Candidates that may be skipped in a row before the search gives up on the rest.
    const PATIENCE: u64 = 16;
    let middle = turn.last_good + (turn.first_bad - turn.last_good) / 2;
    let nearest =
        (0..=PATIENCE).flat_map(|n| [middle.checked_add(n), middle.checked_sub(n).filter(|_| n > 0)]);
    for candidate in nearest.flatten().filter(|n| (turn.last_good + 1..turn.first_bad).contains(n)) {
        match test(candidate)? {
            Mark::Skip => {}
            mark => return Ok(Some((candidate, mark))),
        }
    }
    Ok(None)
}

/// A smallest set of `0..count` for which `bad` holds: without any one of its members it no longer does. The whole set
/// must be bad and no member at all good; neither is tested. Of several such sets it is the one that needs the fewest candidates from the front: its last member comes as
/// early as can be, then the one before that, and so on. So the candidates' order decides, and nothing else.
///
/// The last member ends the shortest row of candidates that is bad; with that member kept, the one before it ends the
/// shortest row that is bad then. Each costs a binary search.
pub fn minimize(
    count: usize,
    mut bad: impl FnMut(&[usize]) -> Result<bool, Error>,
) -> Result<Vec<usize>, Error> {
    let mut known: HashMap<Vec<usize>, bool> = HashMap::new();
    let mut test = |set: &[usize]| -> Result<bool, Error> {
        if let Some(known) = known.get(set) {
            return Ok(*known);
        }
        let verdict = bad(set)?;
        known.insert(set.to_vec(), verdict);
        Ok(verdict)
    };
    let (mut kept, mut row) = (Vec::new(), count);
    while row > 0 && (kept.is_empty() || !test(&kept)?) {
        let with = |length: u64| -> Vec<usize> { (0..length as usize).chain(kept.iter().copied()).collect() };
        let found =
            turn(0, row as u64, |length| Ok(if test(&with(length))? { Mark::Bad } else { Mark::Good }))?;
        row = found.first_bad as usize - 1;
        kept.insert(0, row);
    }
    // Candidates that undo each other may have left one that is not needed.
    let mut n = kept.len();
    while n > 0 {
        n -= 1;
        let without: Vec<usize> = kept.iter().copied().filter(|member| *member != kept[n]).collect();
        if !without.is_empty() && test(&without)? {
            n = without.len();
            kept = without;
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches a row with a given first bad candidate, some of which cannot be tested; counts the tests.
    fn search(length: u64, first: u64, skipped: impl Fn(u64) -> bool) -> (Turn, u64) {
        let mut tests = 0;
        let found = turn(0, length, |n| {
            tests += 1;
            Ok(match n {
                n if skipped(n) => Mark::Skip,
                n if n >= first => Mark::Bad,
                _ => Mark::Good,
            })
        });
        (found.expect("no test fails"), tests)
    }

    #[test]
    fn every_turn_is_found_in_few_tests() {
        for first in 1..=100 {
            let (found, tests) = search(100, first, |_| false);
            assert_eq!(found, Turn { last_good: first - 1, first_bad: first });
            assert!(tests <= 7, "{tests} tests for {first}");
        }
        let (found, tests) = search(10_000_000, 7_654_321, |_| false);
        assert_eq!((found.first_bad, tests <= 24), (7_654_321, true));
    }

    #[test]
    fn skipped_candidates_only_blur_the_result() {
        let (found, _) = search(50, 20, |n| n % 3 == 1);
        assert_eq!(found, Turn { last_good: 18, first_bad: 20 });
        let (found, _) = search(50, 20, |n| (10..30).contains(&n));
        assert_eq!(found, Turn { last_good: 9, first_bad: 30 });
        assert_eq!(search(5, 3, |_| true).0, Turn { last_good: 0, first_bad: 5 });
    }

    /// Every set of up to three causes among 24 candidates, alone or needed together.
    #[test]
    fn the_smallest_set_is_found() {
        for (a, b, c) in (0..24usize).flat_map(|a| (a..24).map(move |b| (a, b, (a * 7 + b) % 24))) {
            let mut needed = vec![a, b, c];
            needed.sort_unstable();
            needed.dedup();
            let found =
                minimize(24, |set| Ok(needed.iter().all(|n| set.contains(n)))).expect("no test fails");
            assert_eq!(found, needed);
        }
    }

    #[test]
    fn of_several_smallest_sets_the_candidates_order_decides() {
        let found =
            |count, bad: fn(&[usize]) -> bool| minimize(count, |set| Ok(bad(set))).expect("no test fails");
        assert_eq!(found(10, |set| set.contains(&3) || set.contains(&8)), [3]);
        let one_of_three =
            |set: &[usize]| [[0, 9], [2, 5], [1, 5]].iter().any(|pair| pair.iter().all(|n| set.contains(n)));
        assert_eq!(found(10, one_of_three), [1, 5], "9 comes late, and 1 before 2");
        assert_eq!(found(1, |_| true), [0]);
        assert_eq!(found(0, |_| true), [0usize; 0]);
    }

    /// 4 alone is bad, 2 takes that back, and 6 takes 2 back.
    #[test]
    fn candidates_that_undo_each_other_leave_a_smallest_set() {
        let bad = |set: &[usize]| set.contains(&4) && (!set.contains(&2) || set.contains(&6));
        assert_eq!(minimize(8, |set| Ok(bad(set))).expect("no test fails"), [4]);
    }

    #[test]
    fn a_few_of_many_take_few_tests() {
        let mut tests = 0;
        let found = minimize(1000, |set| {
            tests += 1;
            Ok([7, 500, 999].iter().all(|n| set.contains(n)))
        });
        assert_eq!((found.expect("no test fails"), tests <= 40), (vec![7, 500, 999], true), "{tests} tests");
    }
}
