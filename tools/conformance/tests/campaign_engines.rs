//! Campaigns under engines that others run: GNU parallel, a Slurm of one node, Kubernetes' schema of a Job.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};
use vmtape_conformance::{program, skipped, tail, vmtape};

const SPECIFICATION: &str = "seed = 11\nplans = 60\nrepeat = 0.2\nshards = 3\n\
    guests = [\"builtin:hello\", \"builtin:touch,access=write\"]\n\
    [[machine]]\nbackend = \"vmx\"\n[[machine]]\nbackend = \"svm\"\n[[machine]]\nbackend = \"svm-npt\"\n";

/// The job file of an engine, for a plan of three shards in a folder.
fn jobs(folder: &Path, engine: &str) -> Result<String> {
    fs::write(folder.join("campaign.toml"), SPECIFICATION)?;
    ok(vmtape(folder, &["campaign", "plan", "campaign.toml", "-o", "plan.toml"])?)?;
    ok(vmtape(folder, &["campaign", "jobs", "plan.toml", "--engine", engine])?)
}

fn ok(output: Output) -> Result<String> {
    if !output.status.success() {
        bail!("{}", tail(&output));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A command that finds the program that is tested.
fn with_program(command: &str) -> Result<Command> {
    let beside = program()?.parent().context("a folder")?.to_owned();
    let mut command = Command::new(command);
    command.env("PATH", format!("{}:{}", beside.display(), std::env::var("PATH")?));
    Ok(command)
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

#[test]
fn parallel_runs_all_shards() -> Result<()> {
    if !is_there("parallel") {
        skipped("GNU parallel is not installed");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let script = jobs(folder.path(), "parallel")?;
    let said = ok(with_program("sh")?.arg("-c").arg(script).current_dir(&folder).output()?)?;
    assert!(said.contains("were run twice with the same result"), "{said}");
    Ok(())
}

/// On a Slurm of one node, which is started for it: an array job runs each shard, and a task beyond them says so.
#[test]
fn slurm_runs_all_shards() -> Result<()> {
    if !is_there("slurmctld") || !is_there("munged") {
        skipped("slurm-wlm and munge are not installed");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("job.sh"), jobs(folder.path(), "slurm")?)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("slurm-one-node.sh");
    let both = "sbatch --wait job.sh && mkdir beyond && \
        ! sbatch --wait --array=3 --output=beyond/%a.log job.sh";
    let mut command = with_program(script.to_str().context("a path")?)?;
    let ran = command.arg("slurm").args(["bash", "-c", both]).current_dir(&folder).output()?;
    let log = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    assert!(ran.status.success(), "{}\n{}", tail(&ran), log("slurm/log/slurmctld.log"));
    assert!(log("beyond/3.log").contains("shard 3 is none of 3"), "{}", log("beyond/3.log"));
    let merged = ok(vmtape(folder.path(), &["campaign", "merge", "plan.toml", "results"])?)?;
    assert!(merged.contains("were run twice with the same result"), "{merged}");
    Ok(())
}

/// What a schema sees, by kubernetes-validate, which has Kubernetes' own; and what it does not see.
#[test]
fn kubernetes_takes_the_job() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let job = jobs(folder.path(), "kubernetes")?;
    // An index may be tried again only where a pod is not, and exit codes are in order and never zero.
    for words in ["restartPolicy: Never", "backoffLimitPerIndex: ", "completions: 3", "values: [2, 125]"] {
        assert!(job.contains(words), "{words}: {job}");
    }
    if !is_there("kubernetes-validate") {
        skipped("kubernetes-validate is not installed (pip install kubernetes-validate)");
        return Ok(());
    }
    let validate = |text: &str| -> Result<Output> {
        let path = folder.path().join("job.yaml");
        fs::write(&path, text)?;
        Ok(Command::new("kubernetes-validate").arg("--strict").arg(path).output()?)
    };
    ok(validate(&job)?)?;
    assert!(!validate(&job.replace("completionMode", "completionmode"))?.status.success());
    Ok(())
}
