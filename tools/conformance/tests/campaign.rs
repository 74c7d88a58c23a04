//! Campaigns: the same results however they are divided, nothing lost, nothing believed that is not whole.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};
use vmtape_conformance::{program, skipped, tail, vmtape};

const SPECIFICATION: &str = "seed = 11\nplans = 60\nrepeat = 0.2\n\
    guests = [\"builtin:hello\", \"builtin:touch,access=write\", \"builtin:smp2\"]\n\
    [[machine]]\nbackend = \"vmx\"\n[[machine]]\nbackend = \"svm\"\n\
    [[machine]]\nbackend = \"svm-npt\"\nhost = \"amd-52\"\nkvm = \"v6.1\"\n";

fn ok(folder: &Path, line: &[&str]) -> Result<String> {
    let output = vmtape(folder, line)?;
    if !output.status.success() {
        bail!("{line:?}: {}", tail(&output));
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn plan(folder: &Path, shards: u32) -> Result<String> {
    fs::write(folder.join("campaign.toml"), SPECIFICATION)?;
    let name = format!("plan-{shards}.toml");
    ok(folder, &["campaign", "plan", "campaign.toml", "--shards", &shards.to_string(), "-o", &name])?;
    Ok(name)
}

#[test]
fn results_are_the_same_however_they_are_divided() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    let mut merged = Vec::new();
    for shards in [1, 3] {
        let (plan, results) = (plan(path, shards)?, format!("results-{shards}"));
        for shard in 0..shards {
            ok(path, &["campaign", "run", &plan, "--shard", &format!("{shard}/{shards}"), "-o", &results])?;
        }
        let text = ok(path, &["campaign", "merge", &plan, &results, "-o", "merged.jsonl"])?;
        assert!(!text.contains("WRONG") && text.contains("were run twice with the same result"), "{text}");
        merged.push((fs::read(path.join("merged.jsonl"))?, text));
    }
    assert!(merged[0] == merged[1]);
    // A result that is another one the second time, or that is not there, is no result.
    let entries: Result<Vec<_>, _> = fs::read_dir(path.join("results-3"))?.collect();
    let first = entries?.into_iter().map(|entry| entry.path()).min().context("a part")?;
    let text = fs::read_to_string(&first)?;
    fs::write(
        path.join("results-3/x-shard-9-of-9-part-9.jsonl"),
        text.replacen("\"faults\":", "\"faults\":9", 1),
    )?;
    let merge = |plan: &str, results: &str| vmtape(path, &["campaign", "merge", plan, results]);
    let output = merge("plan-3.toml", "results-3")?;
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8(output.stdout)?.contains("with two results"));
    fs::remove_file(path.join("results-3/x-shard-9-of-9-part-9.jsonl"))?;
    fs::remove_file(first)?;
    let output = merge("plan-3.toml", "results-3")?;
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8(output.stdout)?.contains("have no result"));
    // What is missing is run, and only that.
    ok(path, &["campaign", "run", "plan-3.toml", "--shard", "0", "-o", "results-3"])?;
    ok(path, &["campaign", "merge", "plan-3.toml", "results-3"])?;
    Ok(())
}

/// A shard that runs twice at once writes what it would have written alone.
#[test]
fn a_shard_may_run_twice_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let plan = plan(folder.path(), 2)?;
    let start = || {
        Command::new(program()?)
            .current_dir(folder.path())
            .args(["campaign", "run", &plan, "-o", "results"])
            .env("SLURM_ARRAY_TASK_ID", "1")
            .stderr(Stdio::null())
            .spawn()
            .context("vmtape")
    };
    for mut child in [start()?, start()?] {
        assert!(child.wait()?.success());
    }
    ok(folder.path(), &["campaign", "run", &plan, "--shard", "0", "-o", "results"])?;
    let text = ok(folder.path(), &["campaign", "merge", &plan, "results"])?;
    assert!(!text.contains("WRONG"), "{text}");
    Ok(())
}

/// Every finding comes with a command that shows it again.
#[test]
fn findings_show_themselves_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let plan = plan(folder.path(), 1)?;
    ok(folder.path(), &["campaign", "run", &plan, "-o", "results"])?;
    let line = ["campaign", "report", &plan, "results", "-o", "findings", "--tries", "20", "--most", "3"];
    let output = vmtape(folder.path(), &line)?;
    assert_eq!(output.status.code(), Some(1), "{}", tail(&output));
    let mut seen = 0;
    for entry in fs::read_dir(folder.path().join("findings"))? {
        let finding = entry?.path();
        let text = fs::read_to_string(finding.join("README.md"))?;
        let command = text.lines().find(|line| line.starts_with("vmtape ")).context("a command")?;
        let words: Vec<String> = command.split(' ').skip(1).map(|word| word.replace('\'', "")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        ok(&finding, &words)?;
        ok(&finding, &["replay", "run.tape"])?;
        seen += 1;
    }
    assert_eq!(seen, 3);
    Ok(())
}

/// The script for GNU parallel is run where there is one.
#[test]
fn parallel_runs_all_shards() -> Result<()> {
    if Command::new("parallel").arg("--version").output().is_err() {
        skipped("GNU parallel is not installed");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let plan = plan(folder.path(), 3)?;
    let script = ok(folder.path(), &["campaign", "jobs", &plan, "--engine", "parallel"])?;
    let programs = program()?;
    let beside = programs.parent().context("a folder")?;
    let path = format!("{}:{}", beside.display(), std::env::var("PATH")?);
    let ran =
        Command::new("sh").arg("-c").arg(script).current_dir(folder.path()).env("PATH", path).output()?;
    assert!(ran.status.success(), "{}", tail(&ran));
    assert!(String::from_utf8(ran.stdout)?.contains("were run twice with the same result"));
    Ok(())
}

#[test]
fn shards_and_job_files() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let plan = plan(folder.path(), 4)?;
    let refused = |line: &[&str], words: &str| -> Result<()> {
        let output = vmtape(folder.path(), line)?;
        assert!(output.status.code() == Some(125) && tail(&output).contains(words), "{}", tail(&output));
        Ok(())
    };
    refused(&["campaign", "run", &plan, "-o", "r"], "which shard?")?;
    refused(&["campaign", "run", &plan, "-o", "r", "--shard", "4"], "shard 4 is none of 4")?;
    refused(&["campaign", "run", &plan, "-o", "r", "--shard", "0/5"], "the plan has 4")?;
    refused(&["campaign", "merge", &plan, "nowhere"], "nowhere")?;
    for (engine, words) in [
        ("parallel", "seq 0 3 | parallel"),
        ("slurm", "#SBATCH --array=0-3%2"),
        ("kubernetes", "completionMode: Indexed"),
    ] {
        let text = ok(folder.path(), &["campaign", "jobs", &plan, "--engine", engine])?;
        assert!(text.contains(words), "{text}");
    }
    // What a schema does not see: both belong together.
    let job = ok(folder.path(), &["campaign", "jobs", &plan, "--engine", "kubernetes"])?;
    assert!(
        job.contains("restartPolicy: Never")
            && job.contains("backoffLimitPerIndex")
            && job.contains("completions: 4")
    );
    Ok(())
}
