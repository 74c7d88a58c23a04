//! The table of policies: who refuses what.

use super::Args;
use crate::output::{ExitCode, print_json, printable};
use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use std::io::{self, Write};
use vmtape_machine::vmm::When;
use vmtape_replay::{
    across::Sides,
    migration::{Journey, Judged},
};

#[derive(Serialize, JsonSchema)]
pub struct Table {
    policies: Vec<Judged>,
}

pub fn run(args: &Args, at: When, sides: &Sides, journey: &Journey) -> Result<ExitCode> {
    let table = Table { policies: sides.judge(at, &journey.hops)? };
    if args.json {
        print_json(&table)?;
    } else {
        print(&mut printable(), &table)?;
    }
    let refused = table.policies.iter().any(|judged| judged.refuses);
    Ok(if refused { ExitCode::DIFFERENT } else { ExitCode::SAME })
}

/// A table in the form that documents have, so that they can take it as it is.
fn print(out: &mut impl Write, table: &Table) -> io::Result<()> {
    writeln!(out, "| to | policy | word | why |\n|---|---|---|---|")?;
    for judged in &table.policies {
        let word = if judged.refuses { "refuses" } else { "takes" };
        let wanted = judged.findings.iter().filter(|finding| finding.refuses == judged.refuses);
        let why: Vec<_> = wanted.map(|finding| format!("{}: {}", finding.rule, finding.text)).collect();
        writeln!(out, "| {} | `{}` | {word} | {} |", judged.to, judged.policy, why.join("; "))?;
    }
    Ok(())
}
