//! `vmtape report`: what is known of runs, moves and campaigns, as one page that stands alone.
//!
//! The page is made of what other commands have written: tapes, their `--json`, results and findings of a campaign. What would
//! belong on it and is not there stands on the page, with the command that makes it.

mod campaign;
mod comparison;
mod gather;
mod heat;
mod moves;
mod timeline;

use crate::{
    files,
    output::{ExitCode, Printable, tell},
};
use anyhow::{Context, Result, bail};
use clap::ValueHint;
use minijinja::{Environment, value::Serde};
use serde::Serialize;
use std::{io::Write, path::PathBuf};

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");

/// Draw tapes, moves and campaigns as one HTML page: exits over time, faults, rounds, maps, verdicts, findings
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::REPORT)]
pub struct Args {
    /// Tapes, what commands printed with --json, results of a campaign, or folders of all these
    #[arg(required = true, value_name = "DIR|TAPE", value_hint = ValueHint::AnyPath)]
    of: Vec<PathBuf>,

    /// The page to write
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: PathBuf,
}

/// All that the page shows.
#[derive(Default, Serialize)]
struct Page {
    title: String,
    tapes: Vec<timeline::Timeline>,
    moves: Vec<moves::Moves>,
    maps: Vec<heat::Map>,
    verdicts: Option<campaign::Verdicts>,
    comparisons: Vec<comparison::Comparison>,
    findings: Vec<campaign::Finding>,
    /// Files that are not shown, and why.
    unread: Vec<Unread>,
    missing: Vec<Missing>,
}

#[derive(Serialize)]
struct Unread {
    file: String,
    why: String,
}

/// What would belong on the page, and who makes it.
#[derive(Serialize)]
struct Missing {
    what: &'static str,
    command: &'static str,
}

impl Page {
    fn is_empty(&self) -> bool {
        self.tapes.is_empty()
            && self.moves.is_empty()
            && self.maps.is_empty()
            && self.verdicts.is_none()
            && self.comparisons.is_empty()
            && self.findings.is_empty()
    }

    fn name_what_is_missing(&mut self) {
        let parts = [
            (self.tapes.is_empty(), "exits over time, and faults", "vmtape record -o a.tape GUEST"),
            (
                self.moves.is_empty(),
                "migration rounds and dirty pages",
                "vmtape migrate a.tape --at exit=N --to HOST --method precopy --json > move.json",
            ),
            (
                self.maps.is_empty(),
                "the heat map of moments at which the guest may move",
                "vmtape migrate a.tape --at every-exit --to HOST --json > map.json",
            ),
            (
                self.verdicts.is_none(),
                "verdicts by fault and backend",
                "vmtape campaign run plan.toml -o DIR",
            ),
            (
                self.comparisons.iter().all(|comparison| comparison.divergence.is_none()),
                "a first divergence with its walks",
                "vmtape replay a.tape -b BACKEND --json > replay.json",
            ),
            (
                self.findings.is_empty(),
                "findings with their commands",
                "vmtape campaign report plan.toml RESULTS -o DIR",
            ),
        ];
        let missing = parts.into_iter().filter(|(missing, ..)| *missing);
        self.missing = missing.map(|(_, what, command)| Missing { what, command }).collect();
    }
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut page = Page::default();
    let names: Vec<_> = args.of.iter().map(|path| path.display().to_string()).collect();
    page.title = names.join(", ");
    for path in &args.of {
        gather::take(path, &mut page)?;
    }
    if page.is_empty() {
        let unread =
            page.unread.first().map_or(String::new(), |file| format!(" ({}: {})", file.file, file.why));
        bail!(
            "{}: there is nothing to draw: no tape, no answer in JSON, no results of a campaign{unread}",
            page.title
        );
    }
    page.name_what_is_missing();
    let html = render(&page)?;
    files::write(&args.output, |out| Ok(Printable(out).write_all(html.as_bytes())?))?;
    for Unread { file, why } in &page.unread {
        tell(format!("{file} is not shown: {why}"));
    }
    Ok(ExitCode::SAME)
}

/// The page as text. What comes from tapes and files is text on it, whatever it says: the template's name makes it so.
fn render(page: &Page) -> Result<String> {
    let mut templates = Environment::new();
    templates.add_template("page.html", TEMPLATE).context("the page's template")?;
    let context = minijinja::context! { style => STYLE, page => Serde(page) };
    templates.get_template("page.html").and_then(|page| page.render(context)).context("the page")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let mut page = Page { title: "</title><script>alert(1)</script>".to_owned(), ..Page::default() };
        page.unread.push(Unread { file: "a\"b".to_owned(), why: "<b>no</b>".to_owned() });
        page.name_what_is_missing();
        page
    }

    #[test]
    fn the_page_stands_alone_and_text_is_text() -> Result<()> {
        let html = render(&page())?;
        for foreign in ["http:", "https:", "<script", "<link", "url(", "src=", "@import", "<b>no"] {
            assert!(!html.contains(foreign), "{foreign}: {html}");
        }
        assert!(html.contains("prefers-color-scheme: dark") && html.contains("@media print"));
        Ok(())
    }

    #[test]
    fn what_is_missing_is_said() -> Result<()> {
        let html = render(&page())?;
        assert!(html.contains("exits over time") && html.contains("vmtape campaign report"), "{html}");
        Ok(())
    }
}
