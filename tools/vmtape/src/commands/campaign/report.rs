//! What a campaign found: each finding shrunk, in a folder of its own.

use super::{
    engine::{Beds, creates, load, options},
    merge, read, whole,
};
use crate::{
    machine_args::PluginArgs,
    output::{ExitCode, progress, tell},
};
use anyhow::{Context, Result, bail};
use clap::ValueHint;
use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};
use tracing::subscriber::NoSubscriber;
use vmtape_faults::{
    Expected, Plan, Signature, Source,
    campaign::{Campaign, Job, Line},
};
use vmtape_replay::faults::{Quick, Run};
use vmtape_traces::text::fault_text;

#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// The plan that the shards ran
    #[arg(value_hint = ValueHint::FilePath)]
    plan: PathBuf,
    /// The folder of the results
    #[arg(value_hint = ValueHint::DirPath)]
    results: PathBuf,
    /// Where the findings go, a folder each
    #[arg(short, long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    output: PathBuf,
    /// Findings at most, the worst first
    #[arg(long, value_name = "N", default_value_t = 100)]
    most: usize,
    /// Runs that the search for the smallest plan may take
    #[arg(long, value_name = "N", default_value_t = 100)]
    tries: usize,
    #[command(flatten)]
    plugins: PluginArgs,
}

pub fn run(args: &ReportArgs) -> Result<ExitCode> {
    let campaign = read(&args.plan)?;
    let merged = merge::read(&campaign, &args.results)?;
    if let Some(wrong) = merged.wrong.first() {
        bail!("there is nothing to report of a campaign that is worth nothing: {wrong}");
    }
    let loaded = load(&campaign, &args.plugins)?;
    let creates = creates(&loaded);
    let mut beds = Beds::new(&loaded, &creates);
    let findings = merged.findings();
    let bar = progress("report");
    let mut written = 0;
    for (signature, lines) in findings.iter().take(args.most) {
        bar.set_message(signature.to_string());
        let first = lines[0];
        let job = campaign.job(first.job, false, |machine| &loaded[machine].points).context("a job")?;
        let folder = args.output.join(format!("{written:03}-{}", name(signature)));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let finding = Finding { campaign: &campaign, job: &job, lines, signature, folder: &folder };
        let bed = beds.of(job.machine, &job.guest)?;
        tracing::subscriber::with_default(NoSubscriber::default(), || finding.write(bed, args.tries))?;
        written += 1;
    }
    bar.finish_and_clear();
    tell(format!("{written} of {} findings are in {}", findings.len(), args.output.display()));
    Ok(if findings.is_empty() { ExitCode::SAME } else { ExitCode::DIFFERENT })
}

/// A folder's name: the verdict and the points.
fn name(signature: &Signature) -> String {
    let name = format!("{}-{}-{}", signature.verdict, signature.points.join("+"), signature.backend);
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    name.chars().map(plain).take(100).collect()
}

struct Finding<'a> {
    campaign: &'a Campaign,
    job: &'a Job,
    lines: &'a [&'a Line],
    signature: &'a Signature,
    folder: &'a Path,
}

impl Finding<'_> {
    fn write(&self, bed: &mut Quick<'_>, tries: usize) -> Result<()> {
        let bed = &bed.bed;
        let source = Source::from(self.job.plan.clone());
        let run = bed.run(&source, None)?;
        if run.judgement.signature != *self.signature {
            bail!(
                "job {} gives {} now: it is not the build that ran it",
                self.job.index,
                run.judgement.signature
            );
        }
        let found = bed.shrink(&source, &run, &[], tries, &|_| {})?;
        let expect = Expected::One(run.judgement.verdict);
        let plan = Plan { expect, ..found.smallest.plan.clone() };
        let small = bed.run(&Source::from(plan.clone()), Some(&self.folder.join("run.tape")))?;
        whole(&self.folder.join("as-found.toml"), self.job.plan.to_toml().as_bytes())?;
        whole(&self.folder.join("plan.toml"), plan.to_toml().as_bytes())?;
        whole(&self.folder.join("README.md"), self.text(bed, &run, &small, found.smallest.limit).as_bytes())
    }

    /// What it is, why, and the command that shows it.
    fn text(
        &self,
        bed: &vmtape_replay::faults::Bed<'_>,
        run: &Run,
        small: &Run,
        limit: Option<u64>,
    ) -> String {
        let judged = &small.judgement;
        let mut text = format!("# {}\n\n{}.\n\n", judged.verdict, judged.verdict.meaning());
        let _ = writeln!(text, "{}\n", judged.why);
        let _ =
            writeln!(text, "Injected (of {} faults, the ones that it takes):\n", run.judgement.fired.len());
        for fault in &judged.fired {
            let line = fault_text(fault, bed.twin().metadata());
            let point = bed.points.iter().find(|point| point.number == fault.point);
            let said = point.map_or("", |point| &point.text);
            let _ = writeln!(text, "- after {} instructions: {line}. {said}.", fault.icount);
        }
        let _ = writeln!(text, "\nWithout them: {}. With them: {}.", judged.ends[0], judged.ends[1]);
        if let Some(divergence) = &judged.divergence {
            let (icount, rip) = (divergence.icount, divergence.rip);
            let _ = writeln!(
                text,
                "\nThe first difference is after {icount} instructions at rip {rip:#x}: {}.",
                divergence.summary
            );
        }
        let machine = options(&self.campaign.machines[self.job.machine]);
        let mut words = vec!["vmtape".to_owned(), "inject".to_owned(), "plan.toml".to_owned()];
        words.extend(machine);
        words.extend(limit.iter().flat_map(|limit| ["--max-insns".to_owned(), limit.to_string()]));
        words.push(self.job.guest.clone());
        let command = shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default();
        let _ = writeln!(text, "\nIn this folder:\n\n```sh\n{command}\n```\n");
        let _ = writeln!(
            text,
            "Signature: `{}`. Found {} times, by job {} first.",
            self.signature,
            self.lines.len(),
            self.job.index
        );
        text
    }
}
