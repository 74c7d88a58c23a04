//! What a campaign found: each finding shrunk, in a folder of its own.

use super::{
    engine::{Beds, Loaded, Tables, creates, load, options},
    merge, read,
    ways::{Moved, Ways},
    whole,
};
use crate::{
    machine_args::PluginArgs,
    output::{ExitCode, tell},
    progress::progress,
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
    Candidate, Expected, Firing, Plan, Point, Signature, Source,
    campaign::{Job, Line, MachineChoice, Moving},
};
use vmtape_replay::{
    faults::{Quick, Run},
    migration,
};
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
    let (mut beds, tables) = (Beds::new(&loaded, &creates, false), Tables::new(&loaded));
    let ways = Ways::new(&campaign, &args.plugins)?;
    let findings = merged.findings();
    let bar = progress("report");
    let mut written = 0;
    for (signature, lines) in findings.iter().take(args.most) {
        bar.set_message(signature.to_string());
        let first = lines[0];
        let job = tables.job(&campaign, first.job, false).context("a job")?;
        let folder = args.output.join(format!("{written:03}-{}", name(signature)));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let machine = &loaded[job.machine];
        let finding = Finding { machine, job: &job, lines, signature, folder: &folder };
        let bed = beds.of(job.machine, &job.guest)?;
        tracing::subscriber::with_default(NoSubscriber::default(), || match job.moving {
            Some(moving) => finding.write_move(bed, &ways, moving, args.tries),
            None => finding.write(bed, args.tries),
        })?;
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
    machine: &'a Loaded,
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
        self.is_shown(&run.judgement.signature)?;
        let own = &self.machine.choice;
        let mut choices: Vec<MachineChoice> = own.simpler();
        let machine = |choice: &MachineChoice| self.machine.machine_of(choice, &self.job.guest);
        // A machine that cannot be built is no simpler one.
        choices.retain(|choice| machine(choice).is_ok());
        let machines = choices.iter().map(machine).collect::<Result<Vec<_>>>()?;
        let found = bed.shrink(&source, &run, &machines, tries, &|_| {})?;
        let expect = Expected::One(run.judgement.verdict);
        let plan = Plan { expect, ..found.smallest.plan.clone() };
        let (limit, on) = (found.smallest.limit, found.smallest.machine);
        let small = bed.run_as(&found.smallest, &machines, &plan, &self.folder.join("run.tape"))?;
        let choice = choices.get(on).unwrap_or(own);
        self.files(&plan, &self.text(bed, &run, &small, choice, limit))
    }

    /// One whose guest moves: the tape is that of the guest that stays.
    fn write_move(&self, bed: &mut Quick<'_>, ways: &Ways<'_>, moving: Moving, tries: usize) -> Result<()> {
        let bed = &bed.bed;
        let run = |plan: &Plan| ways.run(bed, moving, &Source::from(plan.clone()));
        let found = run(&self.job.plan)?;
        self.is_shown(&found.signature)?;
        let start = Candidate { plan: self.job.plan.clone(), limit: None, machine: 0 };
        let mut shows = |candidate: &Candidate| -> Result<bool> {
            Ok(run(&candidate.plan).is_ok_and(|moved| moved.signature.shows_same(&found.signature)))
        };
        let points = migration::points();
        let shrunk = vmtape_faults::shrink(start, &found.fired, &points, None, tries, &mut shows)?;
        let expect = Expected::One(found.signature.verdict);
        let plan = Plan { expect, ..shrunk.smallest.plan };
        let small = run(&plan)?;
        bed.record_twin(&self.folder.join("run.tape"))?;
        self.files(&plan, &self.text_of_move(&found, &small, &points, &ways.options(moving)))
    }

    fn is_shown(&self, signature: &Signature) -> Result<()> {
        if *signature != *self.signature {
            bail!("job {} gives {signature} now: it is not the build that ran it", self.job.index);
        }
        Ok(())
    }

    fn files(&self, plan: &Plan, text: &str) -> Result<()> {
        whole(&self.folder.join("as-found.toml"), self.job.plan.to_toml().as_bytes())?;
        whole(&self.folder.join("plan.toml"), plan.to_toml().as_bytes())?;
        whole(&self.folder.join("README.md"), text.as_bytes())
    }

    fn text_of_move(&self, found: &Moved, small: &Moved, points: &[Point], options: &[String]) -> String {
        let verdict = small.signature.verdict;
        let mut text = format!("# {verdict}\n\n{}.\n\n{}\n\n", verdict.meaning(), small.why);
        let _ = writeln!(text, "Injected (of {} faults, the ones that it takes):\n", found.fired.len());
        for Firing { asked, decision } in &small.fired {
            let point = points.iter().find(|point| point.number == asked.point);
            let (name, said) = point.map_or(("", ""), |point| (&point.name, &point.text));
            let (n, answer) = (asked.occurrence, decision.answer);
            let _ = writeln!(text, "- in phase {}: {name} #{n}, answer {answer:#x}. {said}.", asked.phase);
        }
        let words = ["vmtape", "migrate", "run.tape"].into_iter().chain(options.iter().map(String::as_str));
        self.close(&mut text, words.chain(["--plan", "plan.toml"]));
        text
    }

    /// The command, and where it comes from.
    fn close<'w>(&self, text: &mut String, words: impl Iterator<Item = &'w str>) {
        let command = shlex::try_join(words).unwrap_or_default();
        let _ = writeln!(text, "\nIn this folder:\n\n```sh\n{command}\n```\n");
        let (signature, count, first) = (self.signature, self.lines.len(), self.job.index);
        let _ = writeln!(text, "Signature: `{signature}`. Found {count} times, by job {first} first.");
    }

    /// What it is, why, and the command that shows it.
    fn text(
        &self,
        bed: &vmtape_replay::faults::Bed<'_>,
        run: &Run,
        small: &Run,
        choice: &MachineChoice,
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
        let machine = options(choice);
        let mut words = vec!["vmtape".to_owned(), "inject".to_owned(), "plan.toml".to_owned()];
        words.extend(machine);
        words.extend(limit.iter().flat_map(|limit| ["--max-insns".to_owned(), limit.to_string()]));
        words.push(self.job.guest.clone());
        self.close(&mut text, words.iter().map(String::as_str));
        text
    }
}
