//! `vmtape campaign`: thousands of fault plans from one seed, in shards.

mod engine;
mod jobs;
pub mod merge;
mod report;
mod run;
mod show;
mod ways;

use crate::{
    files,
    machine_args::PluginArgs,
    output::{ExitCode, tell},
};
use anyhow::{Context, Result};
use clap::{Subcommand, ValueHint};
use std::path::{Path, PathBuf};
use vmtape_faults::campaign::Campaign;

/// Run thousands of fault plans from one seed, in shards, and bring the results together
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::CAMPAIGN)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Check a specification, and write it with everything that it leaves open
    Plan {
        /// The specification, a TOML file (see host/faults/README.md)
        #[arg(value_hint = ValueHint::FilePath)]
        specification: PathBuf,
        /// Another number of shards
        #[arg(long, value_name = "N")]
        shards: Option<u32>,
        /// The plan to write
        #[arg(short, long, value_name = "PLAN", value_hint = ValueHint::FilePath)]
        output: PathBuf,
    },
    /// Run a shard
    Run(run::RunArgs),
    /// Bring the results of all shards together
    Merge {
        /// The plan that the shards ran
        #[arg(value_hint = ValueHint::FilePath)]
        plan: PathBuf,
        /// The folder of the results
        #[arg(value_hint = ValueHint::DirPath)]
        results: PathBuf,
        /// All results, a JSON line each, in the order of the jobs
        #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        output: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the plan of a job, and the command that runs it by itself
    Show {
        /// The plan of the campaign
        #[arg(value_hint = ValueHint::FilePath)]
        plan: PathBuf,
        /// Which job, from 0 on
        job: u64,
        #[command(flatten)]
        plugins: PluginArgs,
    },
    /// Shrink what was found, and write a folder for each finding
    Report(report::ReportArgs),
    /// Write the job file of an engine that runs all shards
    Jobs(jobs::JobsArgs),
}

pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Plan { specification, shards, output } => {
            let mut campaign = read(specification)?;
            campaign.shards = shards.unwrap_or(campaign.shards);
            campaign.check().map_err(anyhow::Error::msg)?;
            let text = toml::to_string(&campaign).context("the plan")?;
            whole(output, text.as_bytes())?;
            let (jobs, shards) = (campaign.jobs(), campaign.shards);
            tell(format!("{jobs} jobs in {shards} shards: {}", output.display()));
            Ok(ExitCode::SAME)
        }
        What::Run(args) => run::run(args),
        What::Merge { plan, results, output, json } => {
            merge::run(&read(plan)?, results, output.as_deref(), *json)
        }
        What::Show { plan, job, plugins } => show::run(&read(plan)?, *job, plugins),
        What::Report(args) => report::run(args),
        What::Jobs(args) => jobs::run(args),
    }
}

/// Reads a campaign.
fn read(path: &Path) -> Result<Campaign> {
    let named = || path.display().to_string();
    let text = files::text(path, files::BY_HAND)?;
    let campaign: Campaign = toml::from_str(&text).with_context(named)?;
    campaign.check().map_err(anyhow::Error::msg).with_context(named)?;
    Ok(campaign.expanded())
}

/// Writes a file whole or not at all, whoever else writes it at the same time.
fn whole(path: &Path, bytes: &[u8]) -> Result<()> {
    files::write(path, |out| Ok(out.write_all(bytes)?))
}
