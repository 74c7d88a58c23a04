//! Job files: all shards of a campaign under an engine that others run.

use super::read;
use crate::output::ExitCode;
use anyhow::{Context, Result};
use clap::{ValueEnum, ValueHint};
use std::{
    io::{self, Write},
    path::PathBuf,
};

#[derive(Debug, clap::Args)]
pub struct JobsArgs {
    /// The plan of `campaign plan`
    #[arg(value_hint = ValueHint::FilePath)]
    plan: PathBuf,
    /// Who runs them
    #[arg(long, value_enum)]
    engine: Engine,
    /// The folder of the results, as the tasks see it
    #[arg(long, value_name = "FOLDER", default_value = "results")]
    results: String,
    /// The plan, as the tasks see it (default: as given here)
    #[arg(long, value_name = "FILE")]
    plan_there: Option<String>,
    /// Tasks at once
    #[arg(long, value_name = "N", default_value_t = 2)]
    at_once: u32,
    /// Kubernetes: the image that has vmtape
    #[arg(long, value_name = "IMAGE", default_value = "vmtape:latest")]
    image: String,
    /// Kubernetes: the claim that has the plan and takes the results
    #[arg(long, value_name = "CLAIM", default_value = "vmtape-campaign")]
    claim: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// A shell script for GNU parallel
    Parallel,
    /// An array job for sbatch
    Slurm,
    /// An Indexed Job for kubectl
    Kubernetes,
}

pub fn run(args: &JobsArgs) -> Result<ExitCode> {
    let campaign = read(&args.plan)?;
    let plan = args.plan_there.clone().unwrap_or_else(|| args.plan.display().to_string());
    let text = match args.engine {
        Engine::Parallel => parallel(args, campaign.shards, &quoted(&plan)),
        Engine::Slurm => slurm(args, campaign.shards, &quoted(&plan)),
        Engine::Kubernetes => kubernetes(args, campaign.shards, &plan),
    };
    io::stdout().lock().write_all(text.as_bytes()).context("stdout")?;
    Ok(ExitCode::SAME)
}

fn quoted(text: &str) -> String {
    shlex::try_quote(text).map(|text| text.into_owned()).unwrap_or_default()
}

/// A task that fails does not stop the others, and is run again by --resume-failed.
fn parallel(args: &JobsArgs, shards: u32, plan: &str) -> String {
    let (results, at_once) = (quoted(&args.results), args.at_once);
    format!(
        "#!/bin/sh\n\
         # Again after a failure: the same command. Shards that are whole are passed over.\n\
         set -eu\n\
         mkdir -p {results}\n\
         seq 0 {last} | parallel --jobs {at_once} --joblog {results}/joblog --resume-failed \\\n\
         \x20   vmtape campaign run {plan} --shard {{}}/{shards} -o {results}\n\
         vmtape campaign merge {plan} {results}\n",
        last = shards - 1,
    )
}

/// The index comes from SLURM_ARRAY_TASK_ID, the number of shards from the plan.
fn slurm(args: &JobsArgs, shards: u32, plan: &str) -> String {
    let (results, at_once) = (quoted(&args.results), args.at_once);
    format!(
        "#!/bin/sh\n\
         #SBATCH --job-name=vmtape-campaign\n\
         #SBATCH --array=0-{last}%{at_once}\n\
         #SBATCH --ntasks=1\n\
         #SBATCH --cpus-per-task=1\n\
         #SBATCH --mem=512\n\
         #SBATCH --output=vmtape-%A_%a.log\n\
         #SBATCH --open-mode=append\n\
         # A task that is run again, or twice at once, writes the same results.\n\
         #SBATCH --requeue\n\
         exec vmtape campaign run {plan} -o {results}\n",
        last = shards - 1,
    )
}

/// The index comes from JOB_COMPLETION_INDEX. Exit code 2 (the command line) and 125 (this program failed) are the same however often
/// they are tried; a node that goes away is nobody's fault.
// See: batch/v1 Job, podFailurePolicy, backoffLimitPerIndex
fn kubernetes(args: &JobsArgs, shards: u32, plan: &str) -> String {
    let JobsArgs { results, at_once, image, claim, .. } = args;
    let text = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "apiVersion: batch/v1\n\
         kind: Job\n\
         metadata:\n\
         \x20 name: vmtape-campaign\n\
         spec:\n\
         \x20 completionMode: Indexed\n\
         \x20 completions: {shards}\n\
         \x20 parallelism: {at_once}\n\
         \x20 backoffLimitPerIndex: 3\n\
         \x20 maxFailedIndexes: {shards}\n\
         \x20 podReplacementPolicy: Failed\n\
         \x20 podFailurePolicy:\n\
         \x20   rules:\n\
         \x20   - action: Ignore\n\
         \x20     onPodConditions:\n\
         \x20     - type: DisruptionTarget\n\
         \x20       status: \"True\"\n\
         \x20   - action: FailIndex\n\
         \x20     onExitCodes:\n\
         \x20       containerName: campaign\n\
         \x20       operator: In\n\
         \x20       values: [2, 125]\n\
         \x20 template:\n\
         \x20   spec:\n\
         \x20     restartPolicy: Never\n\
         \x20     containers:\n\
         \x20     - name: campaign\n\
         \x20       image: {image}\n\
         \x20       command: [vmtape, campaign, run, {plan}, -o, {results}]\n\
         \x20       workingDir: /campaign\n\
         \x20       resources:\n\
         \x20         requests: {{cpu: \"1\", memory: 512Mi}}\n\
         \x20       volumeMounts:\n\
         \x20       - name: campaign\n\
         \x20         mountPath: /campaign\n\
         \x20     volumes:\n\
         \x20     - name: campaign\n\
         \x20       persistentVolumeClaim:\n\
         \x20         claimName: {claim}\n",
        image = text(image),
        plan = text(plan),
        results = text(results),
        claim = text(claim),
    )
}
