//! The smallest plan that shows the same.

use super::Injection;
use crate::files;
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::Path;
use vmtape_faults::{Expected, Plan, Source};
use vmtape_replay::faults::Run;

/// What the search for the smallest plan found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Smallest {
    /// Rules before and after.
    pub rules: [usize; 2],
    pub runs: usize,
    /// The search may have found a smaller one, had it been allowed more runs.
    pub stopped: bool,
    pub command: String,
}

impl Injection<'_> {
    pub(super) fn shrink(
        &self,
        source: &Source,
        run: &Run,
        path: &Path,
        bar: &indicatif::ProgressBar,
    ) -> Result<Smallest> {
        let tell = |candidate: &vmtape_faults::Candidate| {
            bar.set_message(format!("smaller: {} rules", candidate.plan.rules.len()));
        };
        let found = self.bed.shrink(source, run, &[], self.result.tries, &tell)?;
        let expect = Expected::One(run.judgement.verdict);
        let plan = Plan { expect, name: source.plan.name.clone(), ..found.smallest.plan };
        files::write(path, |out| Ok(out.write_all(plan.to_toml().as_bytes())?))?;
        let limit = found.smallest.limit.map(|limit| format!(" --max-insns {limit}")).unwrap_or_default();
        let words = path.display().to_string();
        let plan_word = shlex::try_quote(&words).map(|word| word.into_owned()).unwrap_or_default();
        Ok(Smallest {
            rules: [source.plan.rules.len(), plan.rules.len()],
            runs: found.tries,
            stopped: found.stopped,
            command: self.again(&plan_word) + &limit,
        })
    }

    /// The command that runs another plan on the same machine, with no output.
    pub(super) fn again(&self, plan: &str) -> String {
        let mut words: Vec<String> = Vec::new();
        let typed = shlex::split(self.command).unwrap_or_default();
        let mut typed = typed.into_iter();
        while let Some(word) = typed.next() {
            match word.as_str() {
                "-o" | "--output" | "--shrink" | "--tries" => drop(typed.next()),
                "--json" => {}
                word if word.starts_with("--output=") || word.starts_with("--shrink=") => {}
                _ => words.push(word),
            }
        }
        let quoted = |word: &String| match word.as_str() {
            "PLAN" => plan.to_owned(),
            word => shlex::try_quote(word).map(|word| word.into_owned()).unwrap_or_default(),
        };
        words.iter().map(quoted).collect::<Vec<_>>().join(" ")
    }
}
