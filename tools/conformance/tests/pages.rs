//! Pages with commands: what stands in their `console` blocks is typed, and what they show must come out.

use anyhow::{Context, Result, bail};
use std::{fs, path::Path, process::Command};
use vmtape_conformance::{program, tail, vmtape};

/// One command of a page, with the lines below it.
struct Step {
    line: usize,
    command: String,
    /// `...` stands for any lines.
    shown: Vec<String>,
}

/// The commands of the `console` blocks: `$ COMMAND`, continued after `\`, and what it prints.
fn steps(page: &str) -> Vec<Step> {
    let (mut steps, mut inside, mut open) = (Vec::<Step>::new(), false, false);
    for (number, line) in page.lines().enumerate() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if inside {
            match (line.strip_prefix("$ "), open, steps.last_mut()) {
                (Some(command), _, _) => {
                    steps.push(Step { line: number + 1, command: command.to_owned(), shown: Vec::new() });
                }
                (None, true, Some(step)) => step.command = step.command.clone() + " " + line.trim(),
                (None, false, Some(step)) => step.shown.push(line.to_owned()),
                (None, _, None) => panic!("line {}: output without a command", number + 1),
            }
            let step = steps.last_mut().expect("just seen");
            open = step.shown.is_empty() && step.command.ends_with('\\');
            if open {
                step.command.truncate(step.command.trim_end_matches(['\\', ' ']).len());
            }
        }
    }
    steps
}

/// The first line that does not come out.
fn missing<'a>(shown: &'a [String], actual: &[&str]) -> Option<&'a String> {
    let (mut at, mut gap) = (0, false);
    for line in shown {
        if line.trim() == "..." {
            gap = true;
            continue;
        }
        let rest = actual.get(at..)?;
        let found = match gap {
            true => rest.iter().position(|actual| actual.trim_end() == line.trim_end()),
            false => rest.first().filter(|actual| actual.trim_end() == line.trim_end()).map(|_| 0),
        };
        match found {
            Some(n) => at += n + 1,
            None => return Some(line),
        }
        gap = false;
    }
    None
}

fn check(page: &Path) -> Result<()> {
    let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let folder = tempfile::tempdir()?;
    let steps = steps(&text);
    assert!(!steps.is_empty(), "{} has no commands", page.display());
    for step in steps {
        let words = shlex::split(&step.command).context("an open quote")?;
        let Some(("vmtape", words)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) else {
            bail!(
                "{}:{}: only vmtape's commands are typed here: {}",
                page.display(),
                step.line,
                step.command
            );
        };
        if step.command.contains("VMTAPE_KUT") {
            eprintln!(
                "{}:{}: not typed, it needs kvm-unit-tests: {}",
                page.display(),
                step.line,
                step.command
            );
            continue;
        }
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let output = vmtape(folder.path(), &words)?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = text.lines().collect();
        if let Some(line) = missing(&step.shown, &lines) {
            bail!(
                "{}:{}: `{}` does not show `{line}` there, but:\n{text}",
                page.display(),
                step.line,
                step.command
            );
        }
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}:{}: {text}", page.display(), step.line);
    }
    Ok(())
}

#[test]
fn the_histories_are_as_their_page_shows_them() -> Result<()> {
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmtape/scenarios/README.md"))
}

/// In the order of the page, in one folder, as somebody types them who has just installed the program: each comes to a verdict.
#[test]
fn the_commands_of_the_readme_work() -> Result<()> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md"))?;
    let folder = tempfile::tempdir()?;
    let program = program()?;
    let path = std::env::join_paths(
        [program.parent().context("a folder")?.to_owned()]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )?;
    let mut typed = 0;
    let mut inside = false;
    for line in page.lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
        }
        if !inside || !["vmtape ", "printf "].iter().any(|word| line.starts_with(word)) {
            continue;
        }
        // Nobody is there to page through it.
        let line = line.replace("| less", "> shown.txt");
        let mut bash = Command::new("bash");
        bash.args(["-c", &line]).current_dir(folder.path()).env("PATH", &path).env("HOME", folder.path());
        let output = bash.output()?;
        let told = tail(&output);
        assert!(matches!(output.status.code(), Some(0 | 1)) && !told.contains("panicked"), "{line}: {told}");
        typed += 1;
    }
    assert!(typed > 15, "{typed} commands");
    Ok(())
}

#[test]
fn a_page_that_lies_is_seen() {
    let shown = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    assert_eq!(missing(&shown(&["a", "...", "d"]), &["a", "b", "c", "d"]), None);
    assert!(missing(&shown(&["a", "c"]), &["a", "b", "c"]).is_some());
    assert!(missing(&shown(&["...", "e"]), &["a", "b", "c"]).is_some());
    let steps = steps("```console\n$ vmtape run \\\n    -b x\nout\n$ vmtape show\n```\n");
    assert_eq!(steps[0].command, "vmtape run -b x");
    assert_eq!((steps[0].shown.len(), steps[1].shown.len()), (1, 0));
}
