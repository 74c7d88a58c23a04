//! Campaigns: the same results however they are divided, nothing lost, nothing believed that is not whole.

use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};
use vmtape_conformance::{program, tail, vmtape};

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

/// A guest that is not there is told once, before the first job, and not as a failure of each.
#[test]
fn a_guest_that_is_not_there_is_told_before_the_first_job() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let specification = SPECIFICATION.replace("builtin:smp2", "smp2");
    fs::write(folder.path().join("campaign.toml"), specification)?;
    ok(folder.path(), &["campaign", "plan", "campaign.toml", "-o", "plan.toml"])?;
    let output = vmtape(folder.path(), &["campaign", "run", "plan.toml", "--shard", "0", "-o", "results"])?;
    assert_eq!(output.status.code(), Some(125));
    let told = tail(&output);
    assert!(told.contains("the campaign's guest `smp2`") && told.lines().count() <= 2, "{told}");
    assert_eq!(fs::read_dir(folder.path().join("results"))?.count(), 0);
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

/// Runs that go back to a snapshot leave what runs on machines of their own leave, to the byte.
#[test]
fn snapshots_change_nothing() -> Result<()> {
    let text = "seed = 5\nplans = 240\n\
        guests = [\"builtin:hello\", \"builtin:touch,access=write\", \"builtin:smp2\", \"builtin:cpuid\"]\n\
        [[machine]]\nbackend = \"vmx\"\nkvms = [\"v5.10\", \"v6.12\"]\n[[machine]]\nbackend = \"vmx,ept=0\"\n\
        [[machine]]\nbackend = \"svm\"\n[[machine]]\nbackend = \"svm-npt\"\n";
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    fs::write(path.join("campaign.toml"), text)?;
    ok(path, &["campaign", "plan", "campaign.toml", "-o", "plan.toml"])?;
    ok(path, &["campaign", "run", "plan.toml", "-o", "back"])?;
    ok(path, &["campaign", "run", "plan.toml", "-o", "afresh", "--afresh"])?;
    let mut parts = 0;
    for entry in fs::read_dir(path.join("back"))? {
        let name = entry?.file_name();
        let read = |folder: &str| fs::read_to_string(path.join(folder).join(&name));
        let (back, afresh) = (read("back")?, read("afresh")?);
        let differs = back.lines().zip(afresh.lines()).find(|(back, afresh)| back != afresh);
        assert!(back == afresh, "{name:?}: {differs:#?}");
        parts += 1;
    }
    assert!(parts > 0 && fs::read_dir(path.join("afresh"))?.count() == parts);
    Ok(())
}

/// Each machine has the canaries whose points it comes to, whatever its parameters.
#[test]
fn canaries_are_left_out_where_nobody_comes_to_their_point() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    let machines = ["vmx", "vmx,ept=0", "vmx,eptad=0", "vmx,pml=0", "svm-npt,nrips=0", "svm", "svm,nrips=0"];
    let rows: String = machines.iter().map(|name| format!("[[machine]]\nbackend = \"{name}\"\n")).collect();
    fs::write(path.join("campaign.toml"), format!("plans = 1\nguests = [\"builtin:hello\"]\n{rows}"))?;
    ok(path, &["campaign", "plan", "campaign.toml", "-o", "plan.toml"])?;
    ok(path, &["campaign", "run", "plan.toml", "-o", "results"])?;
    ok(path, &["campaign", "merge", "plan.toml", "results", "-o", "merged.jsonl"])?;
    let mut corrupt = Vec::new();
    for line in fs::read_to_string(path.join("merged.jsonl"))?.lines().skip(1) {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let machine = line["machine"].as_u64().context("a machine")? as usize;
        if line["signature"]["verdict"] == "silent-corruption" {
            corrupt.push(machines[machine]);
        }
    }
    // Without nested paging no silicon walks the guest's own tables.
    assert_eq!(corrupt, ["vmx", "vmx,eptad=0", "vmx,pml=0", "svm-npt,nrips=0"]);
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
    Ok(())
}

/// Runs all shards of a plan side by side.
fn run_shards(folder: &Path, plan: &str, shards: u32, results: &str) -> Result<()> {
    let start = |shard: u32| {
        let line = ["campaign", "run", plan, "--shard", &shard.to_string(), "-o", results];
        Command::new(program()?)
            .current_dir(folder)
            .args(line)
            .stderr(Stdio::piped())
            .spawn()
            .context("vmtape")
    };
    let running: Vec<_> = (0..shards).map(start).collect::<Result<_>>()?;
    for child in running {
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{}", tail(&output));
        }
    }
    Ok(())
}

/// Ten thousand plans: guests, hosts and releases of three backends, and moves between them.
const LARGE: &str = "seed = 2026\nplans = 10000\nshards = 2\nmoving = 0.03\n\
    guests = [\"builtin:hello\", \"builtin:touch,access=write\", \"builtin:smp2\", \"builtin:cpuid\"]\n\
    [[machine]]\nbackend = \"vmx\"\nhosts = [\"intel-46\", \"intel-52\"]\nkvms = [\"v5.10\", \"v6.12\"]\n\
    [[machine]]\nbackend = \"svm-npt\"\nhosts = [\"amd-48\", \"amd-52\"]\nkvms = [\"v6.1\", \"v6.12\"]\n\
    [[machine]]\nbackend = \"svm\"\n[[machine]]\nbackend = \"vmx,ept=0\"\n\
    [[move]]\nto = \"svm-npt\"\nmethod = \"precopy\"\n[[move]]\nto = \"vmx\"\nhandover = \"ch\"\n\
    [[move]]\nto = \"svm\"\nmethod = \"postcopy\"\n";

/// Nothing of it is this program's failure, no run is another one the second time, canaries are right, and whoever has other data has it
/// from a fault.
#[test]
fn ten_thousand_plans_are_judged() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    fs::write(path.join("campaign.toml"), LARGE)?;
    ok(path, &["campaign", "plan", "campaign.toml", "-o", "plan.toml"])?;
    run_shards(path, "plan.toml", 2, "results")?;
    let merged = ok(path, &["campaign", "merge", "plan.toml", "results", "-o", "merged.jsonl", "--json"])?;
    let merged: serde_json::Value = serde_json::from_str(&merged)?;
    assert_eq!(merged["wrong"], serde_json::json!([]));
    assert!(
        merged["jobs"].as_u64() > Some(10_000) && merged["equal_duplicates"].as_u64() > Some(50),
        "{merged:#}"
    );
    let mut verdicts = BTreeMap::<String, u64>::new();
    for line in fs::read_to_string(path.join("merged.jsonl"))?.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let signature = &line["signature"];
        let verdict = signature["verdict"].as_str().unwrap_or("none").to_owned();
        let faultless = signature["points"].as_array().is_none_or(Vec::is_empty);
        let moved = !line["way"].is_null();
        assert!(
            !(faultless && ["silent-corruption", "two-running"].contains(&&*verdict)),
            "other data without a fault: {line}"
        );
        // A guest that moves may be refused, or may have ended.
        assert!(!faultless || moved || ["not-reached", "none"].contains(&&*verdict), "{line}");
        *verdicts.entry(verdict).or_default() += 1;
    }
    for expected in
        ["silent-corruption", "guest-lost", "guest-visible", "hang", "detected", "refused", "masked"]
    {
        assert!(verdicts.contains_key(expected), "{expected}: {verdicts:?}");
    }
    Ok(())
}

/// A finding of a move shows itself again, too.
#[test]
fn findings_of_moves_show_themselves_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    let text = "seed = 3\nplans = 6\nrules = 2\nmoving = 1.0\npoints = [\"move-log-word\", \"move-page-zero\"]\n\
        guests = [\"builtin:dirty,pages=3,rounds=3000\"]\n[[machine]]\nbackend = \"svm-npt\"\n\
        [[move]]\nto = \"svm-npt,host=amd-52\"\nmethod = \"precopy\"\n";
    fs::write(path.join("campaign.toml"), text)?;
    ok(path, &["campaign", "plan", "campaign.toml", "-o", "plan.toml"])?;
    run_shards(path, "plan.toml", 1, "results")?;
    ok(path, &["campaign", "merge", "plan.toml", "results"])?;
    vmtape(path, &["campaign", "report", "plan.toml", "results", "-o", "findings", "--tries", "12"])?;
    let mut moves = 0;
    for entry in fs::read_dir(path.join("findings"))? {
        let finding = entry?.path();
        let text = fs::read_to_string(finding.join("README.md"))?;
        let Some(command) = text.lines().find(|line| line.starts_with("vmtape migrate ")) else { continue };
        let words = shlex::split(command).context("words")?;
        let words: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
        ok(&finding, &words)?;
        assert!(text.contains("in phase "), "{text}");
        moves += 1;
    }
    assert!(moves > 0, "no plan found anything");
    Ok(())
}

/// A plan of a campaign can be looked at, and run by itself.
#[test]
fn a_job_can_be_shown() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let plan = plan(folder.path(), 2)?;
    let shown = ok(folder.path(), &["campaign", "show", &plan, "7"])?;
    assert!(shown.starts_with("# vmtape inject ") && shown.contains("[[rule]]"), "{shown}");
    fs::write(folder.path().join("job.toml"), &shown)?;
    let command =
        shown.lines().next().unwrap_or_default().replace("# vmtape ", "").replace("PLAN.toml", "job.toml");
    let words = shlex::split(&command).context("words")?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    ok(folder.path(), &words)?;
    let output = vmtape(folder.path(), &["campaign", "show", &plan, "1000"])?;
    assert!(output.status.code() == Some(125) && tail(&output).contains("no job 1000"), "{}", tail(&output));
    Ok(())
}
