//! A shard: its results are written part by part, each whole or not at all, so that it can be stopped, started again, and be run
//! twice at once.

use super::{
    engine::{Beds, Tables, check, creates, load, options},
    read,
    ways::Ways,
    whole,
};
use crate::{
    interrupt,
    machine_args::PluginArgs,
    output::{ExitCode, tell},
};
use anyhow::{Context, Result, bail};
use clap::ValueHint;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    cell::RefCell,
    fs,
    io::IsTerminal,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Instant,
};
use tracing::subscriber::NoSubscriber;
use vmtape_faults::{
    Source,
    campaign::{Campaign, Job, Line, Shard},
};

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The plan of `campaign plan`
    #[arg(value_hint = ValueHint::FilePath)]
    plan: PathBuf,
    /// The folder of the results
    #[arg(short, long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    output: PathBuf,
    /// Which shard, from 0 on: I or I/N. Without it the engine's variable says: SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX,
    /// PARALLEL_SEQ
    #[arg(long, value_name = "I")]
    shard: Option<String>,
    /// Build each run's machine anew, instead of going back to a snapshot of its guest's beginning: the same results, and slower
    #[arg(long)]
    afresh: bool,
    #[command(flatten)]
    plugins: PluginArgs,
}

/// Jobs of one part.
const PART: usize = 500;

pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let campaign = read(&args.plan)?;
    let shard = Shard::find(args.shard.as_deref(), campaign.shards, |name| std::env::var(name).ok())?;
    fs::create_dir_all(&args.output).with_context(|| args.output.display().to_string())?;
    let loaded = load(&campaign, &args.plugins)?;
    check(&campaign, &loaded)?;
    let creates = creates(&loaded);
    let (mut beds, tables) = (Beds::new(&loaded, &creates, args.afresh), Tables::new(&loaded));
    let ways = Ways::new(&campaign, &args.plugins)?;
    let jobs: Vec<(u64, bool)> = campaign.of_shard(shard).collect();
    interrupt::listen();
    keep_panics();
    let (bar, start) = (bar(jobs.len() as u64), Instant::now());
    let (mut ran, mut failures) = (0u64, 0u64);
    for (part, jobs) in jobs.chunks(PART).enumerate() {
        let path = args.output.join(name(&campaign, shard, part));
        if path.exists() {
            bar.inc(jobs.len() as u64);
            continue;
        }
        let mut lines = Vec::new();
        for (index, again) in jobs {
            if interrupt::is_wished() {
                bail!("interrupted: what is written is whole, and the same command goes on from there");
            }
            let line = match tables.job(&campaign, *index, *again) {
                Some(job) => one(&campaign, &job, &mut beds, &ways),
                None => absent(&campaign, *index, *again),
            };
            if !line.failure.is_empty() {
                failures += 1;
                bar.suspend(|| keep(&args.output, &campaign, &line, &tables))?;
            }
            lines.push(serde_json::to_string(&line).context("a result")?);
            bar.inc(1);
            ran += 1;
        }
        whole(&path, (lines.join("\n") + "\n").as_bytes())?;
    }
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64().max(1e-3);
    tell(format!(
        "shard {shard}: {ran} jobs in {seconds:.1} s ({:.0} a second), {} looked at closely, {failures} failures",
        ran as f64 / seconds,
        beds.looked_at()
    ));
    Ok(if failures == 0 { ExitCode::SAME } else { ExitCode::COULD_NOT_TEST })
}

/// Writes down the plan of a job in which this program failed, and says where.
fn keep(folder: &Path, campaign: &Campaign, line: &Line, tables: &Tables<'_>) -> Result<()> {
    let path = folder.join(format!("{}-failed-job-{}.toml", line.campaign, line.job));
    let Some(job) = tables.job(campaign, line.job, line.again) else { return Ok(()) };
    whole(&path, job.plan.to_toml().as_bytes())?;
    let machine = options(&campaign.machines[job.machine]).join(" ");
    let (number, guest, failure) = (line.job, &job.guest, &line.failure);
    tell(format!("job {number} ({machine} {guest}, {}): {failure}", path.display()));
    Ok(())
}

/// The file of a part. It has the campaign's number: results of another one never pass for it.
fn name(campaign: &Campaign, shard: Shard, part: usize) -> String {
    let (hash, Shard { index, of }) = (campaign.hash(), shard);
    format!("{hash:016x}-shard-{index}-of-{of}-part-{part}.jsonl")
}

/// Whether a file has results, and not some that are on their way.
pub fn is_result(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.contains("-shard-") && name.ends_with(".jsonl")
}

fn bar(jobs: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(jobs);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} jobs, {per_sec}, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn line(campaign: &Campaign, index: u64, again: bool) -> Line {
    Line {
        job: index,
        again,
        campaign: format!("{:016x}", campaign.hash()),
        plan: String::new(),
        guest: String::new(),
        machine: 0,
        way: None,
        signature: None,
        faults: 0,
        failure: String::new(),
    }
}

/// A canary whose machine lacks its point.
fn absent(campaign: &Campaign, index: u64, again: bool) -> Line {
    line(campaign, index, again)
}

/// Runs a job. That this program fails is a result too.
fn one(campaign: &Campaign, job: &Job, beds: &mut Beds<'_>, ways: &Ways) -> Line {
    let mut line = Line {
        plan: format!("{:016x}", job.plan.hash()),
        guest: job.guest.clone(),
        machine: job.machine,
        way: job.moving.map(|moving| moving.way),
        ..line(campaign, job.index, job.again)
    };
    let source = Source::from(job.plan.clone());
    // What the backend warns of is the fault's doing.
    let run = || {
        tracing::subscriber::with_default(NoSubscriber::default(), || -> Result<_> {
            let bed = beds.of(job.machine, &job.guest)?;
            match job.moving {
                Some(moving) => Ok(ways.run(&bed.bed, moving, &source)?.outcome()),
                None => Ok(bed.run(&source)?),
            }
        })
    };
    match caught(run) {
        Ok(Ok(outcome)) => (line.signature, line.faults) = (Some(outcome.signature), outcome.faults),
        Ok(Err(error)) => line.failure = format!("{error:#}"),
        Err(panic) => line.failure = format!("this program panicked: {panic}"),
    }
    line
}

thread_local! {
    /// What the last panic said, and where.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs something that may panic; then what it said, and where.
fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| PANIC.take())
}

/// Panics are results here, and are told with their job.
fn keep_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|place| format!(", {place}")).unwrap_or_default();
        let said = info.payload_as_str().unwrap_or("without a word");
        PANIC.set(format!("{said}{place}"));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_with_its_place() {
        keep_panics();
        assert_eq!(caught(|| 7), Ok(7));
        let told = caught(|| panic!("no {}", "way")).err().unwrap_or_default();
        assert!(told.starts_with("no way, ") && told.contains("run.rs:"), "{told}");
    }
}
