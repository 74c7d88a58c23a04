//! A plan that fails each occurrence of a point, in a run of its own.

use super::{
    Injection,
    members::{Member, Members},
    print,
};
use crate::output::{ExitCode, tell};
use anyhow::{Result, bail};
use vmtape_faults::{Source, Verdict};

/// Occurrences that are tried, after which the plan is too wide.
const MOST: u64 = 10_000;

impl Injection<'_> {
    /// The n-th member for n from one on, until none of its faults happens. The tape is that of the worst.
    pub(super) fn each(&self, bar: &indicatif::ProgressBar) -> Result<ExitCode> {
        let expect = &self.source.plan.expect;
        let mut all = Members::default();
        for n in 1.. {
            if n > MOST {
                bail!(
                    "{}: still reached after {MOST} runs: narrow it down (insn, exit, address)",
                    self.name.display()
                );
            }
            bar.set_message(format!("the {n}. occurrence"));
            let run = self.bed.run(&Source::from(self.source.plan.nth(n)), None)?;
            let judged = run.judgement;
            if judged.verdict == Verdict::NotReached {
                break;
            }
            *all.verdicts.entry(judged.verdict).or_default() += 1;
            all.members.push(Member {
                n,
                verdict: judged.verdict,
                as_expected: expect.allows(judged.verdict),
                signature: judged.signature.to_string(),
                why: judged.why,
            });
        }
        bar.finish_and_clear();
        let worst = all.members.iter().min_by_key(|member| (member.verdict, member.n));
        if let (Some(path), Some(worst)) = (&self.result.output, worst) {
            self.bed.run(&Source::from(self.source.plan.nth(worst.n)), Some(path))?;
            tell(format!("{} is the run in which occurrence {} fails", path.display(), worst.n));
        }
        print::members(self, &all)
    }
}
