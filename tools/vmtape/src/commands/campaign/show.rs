//! A job of a campaign, to look at and to run by itself.

use super::{
    engine::{Tables, load, options},
    ways::Ways,
};
use crate::{machine_args::PluginArgs, output::ExitCode};
use anyhow::{Context, Result, bail};
use std::io::Write;
use vmtape_faults::campaign::Campaign;

/// Prints the plan, after the command that runs it: `PLAN.toml` stands for where it is, `TAPE` for one of the guest that moves.
pub fn run(campaign: &Campaign, number: u64, plugins: &PluginArgs) -> Result<ExitCode> {
    let loaded = load(campaign, plugins)?;
    let Some(job) = Tables::new(&loaded).job(campaign, number, false) else {
        bail!("there is no job {number}: they go from 0 to {}", campaign.jobs() - 1);
    };
    let machine = options(&campaign.machines[job.machine]);
    let mut words = vec!["vmtape".to_owned()];
    match job.moving {
        Some(moving) => {
            words.extend(["migrate".to_owned(), "TAPE".to_owned()]);
            words.extend(Ways::new(campaign, plugins)?.options(moving));
            words.extend(["--plan".to_owned(), "PLAN.toml".to_owned()]);
        }
        None => {
            words.extend(["inject".to_owned(), "PLAN.toml".to_owned()]);
            words.extend(machine.clone());
            words.push(job.guest.clone());
        }
    }
    let command = shlex::try_join(words.iter().map(String::as_str))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "# {command}").context("stdout")?;
    if job.moving.is_some() {
        writeln!(out, "# the tape is of: vmtape record {} {}", machine.join(" "), job.guest)
            .context("stdout")?;
    }
    write!(out, "{}", job.plan.to_toml()).context("stdout")?;
    Ok(ExitCode::SAME)
}
