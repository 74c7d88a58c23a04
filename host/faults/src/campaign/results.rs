//! Results of jobs, a line each, and all of them together: the same bytes whatever the number of shards.

use super::Campaign;
use crate::{signature::Signature, verdict::Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What came of a job. Nothing in it depends on where or when it ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub job: u64,
    /// The second time that it was run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// The campaign's and the plan's hash.
    pub campaign: String,
    pub plan: String,
    pub guest: String,
    pub machine: usize,
    /// Of the campaign's ways, where the guest moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<usize>,
    /// `None`: this program failed.
    pub signature: Option<Signature>,
    /// How many faults happened.
    pub faults: u64,
    /// Why this program failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub failure: String,
}

/// All results of a campaign.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merged {
    /// Each job once, in order.
    pub lines: Vec<Line>,
    /// Jobs that were run more than once, with the same result.
    pub equal_duplicates: u64,
    /// What makes the campaign worthless, in sentences.
    pub wrong: Vec<String>,
}

/// Sentences of one kind that are listed.
const LISTED: usize = 10;

/// Brings results together.
pub fn merge(campaign: &Campaign, lines: impl IntoIterator<Item = Line>) -> Merged {
    let mut merged = Merged::default();
    let mut jobs: BTreeMap<u64, Line> = BTreeMap::new();
    let wanted = format!("{:016x}", campaign.hash());
    let (mut strangers, mut unequal) = (0, Vec::new());
    for line in lines {
        if line.campaign != wanted || line.job >= campaign.jobs() {
            strangers += 1;
            continue;
        }
        let line = Line { again: false, ..line };
        match jobs.get(&line.job) {
            None => drop(jobs.insert(line.job, line)),
            Some(known) if *known == line => merged.equal_duplicates += 1,
            Some(_) => unequal.push(line.job),
        }
    }
    if strangers > 0 {
        merged.wrong.push(format!("{strangers} results are of another campaign"));
    }
    merged.wrong.extend(
        unequal
            .iter()
            .take(LISTED)
            .map(|job| format!("job {job} was run twice with two results: runs are not deterministic")),
    );
    let missing: Vec<u64> = (0..campaign.jobs()).filter(|job| !jobs.contains_key(job)).collect();
    if let Some(first) = missing.first() {
        merged.wrong.push(format!("{} jobs have no result, the first is {first}", missing.len()));
    }
    let failed = || jobs.values().filter(|line| line.signature.is_none() && !line.failure.is_empty());
    merged.wrong.extend(failed().take(LISTED).map(|line| {
        let (job, guest, failure) = (line.job, &line.guest, &line.failure);
        let backend = &campaign.machines[line.machine.min(campaign.machines.len() - 1)].backend;
        format!("job {job} ({guest} on {backend}, plan {}): {failure}", line.plan)
    }));
    for (job, line) in jobs.range(campaign.plans..) {
        let Some((canary, signature)) = campaign.canary(*job).zip(line.signature.as_ref()) else { continue };
        if signature.verdict != canary.verdict {
            let (found, known) = (signature.verdict, canary.verdict);
            merged
                .wrong
                .push(format!("canary {job} gave {found} and not {known}: nothing here can be trusted"));
        }
    }
    merged.lines = jobs.into_values().collect();
    merged
}

impl Merged {
    /// How many of each verdict.
    pub fn verdicts(&self) -> BTreeMap<Verdict, u64> {
        let mut counts = BTreeMap::new();
        for signature in self.lines.iter().filter_map(|line| line.signature.as_ref()) {
            *counts.entry(signature.verdict).or_default() += 1;
        }
        counts
    }

    /// Findings: each signature whose verdict is worth a look, with its jobs, the worst first.
    pub fn findings(&self) -> Vec<(&Signature, Vec<&Line>)> {
        let mut found: BTreeMap<&Signature, Vec<&Line>> = BTreeMap::new();
        for line in &self.lines {
            if let Some(signature) = line.signature.as_ref().filter(|signature| is_finding(signature.verdict))
            {
                found.entry(signature).or_default().push(line);
            }
        }
        found.into_iter().collect()
    }
}

fn is_finding(verdict: Verdict) -> bool {
    !matches!(verdict, Verdict::Masked | Verdict::NotReached | Verdict::Detected | Verdict::Refused)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::campaign, *};

    fn line(campaign: &Campaign, job: u64) -> Line {
        let verdict = campaign.canary(job).map_or(Verdict::Masked, |canary| canary.verdict);
        Line {
            job,
            again: false,
            campaign: format!("{:016x}", campaign.hash()),
            plan: String::new(),
            guest: String::new(),
            machine: 0,
            way: None,
            signature: Some(Signature::new(verdict, "", [], "b")),
            faults: 1,
            failure: String::new(),
        }
    }

    #[test]
    fn what_makes_a_campaign_worthless_is_told() {
        let campaign = campaign();
        let all: Vec<Line> = (0..campaign.jobs()).map(|job| line(&campaign, job)).collect();
        let words = |lines: Vec<Line>| merge(&campaign, lines).wrong.join("; ");
        let good =
            merge(&campaign, all.iter().rev().cloned().chain([Line { again: true, ..all[3].clone() }]));
        assert_eq!((good.wrong.len(), good.equal_duplicates, &good.lines), (0, 1, &all));
        assert!(words(all[1..].to_vec()).contains("1 jobs have no result, the first is 0"));
        let other = Line { faults: 2, ..all[3].clone() };
        assert!(words([&all[..], &[other]].concat()).contains("job 3 was run twice with two results"));
        let mut canary = all.clone();
        canary[campaign.plans as usize].signature = Some(Signature::new(Verdict::Hang, "", [], "b"));
        assert!(words(canary).contains("gave hang and not not-reached"));
        let stranger = Line { campaign: "x".into(), ..all[0].clone() };
        assert!(words([&all[..], &[stranger]].concat()).contains("of another campaign"));
        let mut failed = all;
        (failed[2].signature, failed[2].failure) = (None, "it broke".into());
        assert!(words(failed).contains("job 2 ( on one, plan ): it broke"));
    }
}
