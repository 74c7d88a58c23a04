use crate::files;
use crate::{
    machine_args::PluginArgs,
    output::{ExitCode, print_json, printable, usage},
    progress::{end_progress, progress_of},
    scenarios::{
        catalogue::{self, Case, Scenario},
        report::{Report, table},
        runner::{self, Runner},
    },
};
use anyhow::Result;
use clap::ValueHint;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    env,
    io::{self, Write},
    path::PathBuf,
};

/// Run what must be true on every backend, each row with its source; exit code 1 if anything deviates
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::SCENARIOS)]
pub struct Args {
    /// Rows in files of one's own, instead of those built in
    #[arg(value_name = "FILE.toml", value_hint = ValueHint::FilePath)]
    files: Vec<PathBuf>,
    /// Only rows whose name contains this
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Only rows of this history (see --list)
    #[arg(long, value_name = "HISTORY")]
    history: Option<String>,
    /// Only this backend
    #[arg(short, long, value_name = "BACKEND")]
    backend: Option<String>,
    /// What holds for every backend, whoever wrote it, for the one that -b names
    #[arg(long, requires = "backend", conflicts_with = "files")]
    kit: bool,
    /// Also rows that take minutes
    #[arg(long)]
    slow: bool,
    /// List, run nothing
    #[arg(long)]
    list: bool,
    /// Leave the tapes in this folder
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    keep: Option<PathBuf>,
    /// Also write JUnit XML
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    junit: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    plugins: PluginArgs,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let rows = rows(args)?;
    let cases: Vec<_> = rows
        .iter()
        .flat_map(|row| row.cases.iter().map(move |case| (row, case)))
        .filter(|c| wanted(args, c))
        .collect();
    if cases.is_empty() {
        return Err(usage("no scenario fits these filters (see `vmtape scenarios --list`)"));
    }
    if args.list {
        return list(args, &cases);
    }
    let runner = Runner {
        program: env::current_exe()?,
        plugins: args.plugins.paths().iter().map(|path| runner::absolute(path)).collect::<Result<_>>()?,
        isolate: args.plugins.isolate(),
        search: args.plugins.search(),
        kvm_unit_tests: env::var_os("VMTAPE_KUT").map(PathBuf::from),
        slow: args.slow,
        keep: args.keep.clone(),
    };
    let bar = progress_of("scenarios", cases.len() as u64, ROWS);
    let report = Report::new(runner.run_all(&cases, &|outcome| {
        bar.inc(1);
        bar.set_message(format!("{} on {}", outcome.name, outcome.on));
    }));
    end_progress(&bar, ROWS);
    if let Some(path) = &args.junit {
        files::write(path, |out| report.junit(out))?;
    }
    if args.json {
        print_json(&report)?;
    } else {
        report.table(&mut printable())?;
    }
    Ok(if report.totals.deviating == 0 { ExitCode::SAME } else { ExitCode::DIFFERENT })
}

/// What progress counts.
const ROWS: &str = "rows";

fn rows(args: &Args) -> Result<Vec<Scenario>> {
    if let (true, Some(backend)) = (args.kit, &args.backend) {
        return catalogue::kit(backend);
    }
    if args.files.is_empty() {
        return catalogue::built_in();
    }
    let files: Result<Vec<_>> = args.files.iter().map(|path| catalogue::read(path)).collect();
    Ok(files?.concat())
}

fn wanted(args: &Args, (row, case): &(&Scenario, &Case)) -> bool {
    args.name.as_ref().is_none_or(|text| row.name.contains(text.as_str()))
        && args.history.as_ref().is_none_or(|history| row.history == *history)
        && args.backend.as_ref().is_none_or(|backend| args.kit || case.backend() == backend)
}

#[derive(Serialize, JsonSchema)]
struct List<'a> {
    scenarios: Vec<Listed<'a>>,
}

#[derive(Serialize, JsonSchema)]
struct Listed<'a> {
    history: &'a str,
    name: &'a str,
    on: Vec<&'a str>,
    text: &'a str,
    source: &'a str,
}

fn list(args: &Args, cases: &[(&Scenario, &Case)]) -> Result<ExitCode> {
    let mut rows: Vec<Listed> = Vec::new();
    for (row, case) in cases {
        match rows.last_mut().filter(|last| last.name == row.name) {
            Some(last) => last.on.push(&case.on),
            None => rows.push(Listed {
                history: &row.history,
                name: &row.name,
                on: vec![&case.on],
                text: &row.text,
                source: &row.source,
            }),
        }
    }
    if args.json {
        print_json(&List { scenarios: rows })?;
        return Ok(ExitCode::SAME);
    }
    let mut table = table(["history", "scenario", "backends", "what it says", "source"]);
    for row in &rows {
        table.add_row([row.history, row.name, &row.on.join("\n"), row.text, row.source]);
    }
    writeln!(io::stdout(), "{table}")?;
    Ok(ExitCode::SAME)
}

/// What it prints as JSON.
#[cfg(test)]
pub const SCHEMA: &[crate::schemas::Part] =
    &[crate::output::schema::<Report>, crate::output::schema::<List<'static>>];
