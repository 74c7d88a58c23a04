use crate::output::ExitCode;
use anyhow::{Context, Result};
use clap::Command;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Write man pages, one per command, to a folder
#[derive(Debug, clap::Args)]
#[command(after_long_help = crate::help::MAN)]
pub struct Args {
    /// The folder, which is made where there is none
    folder: PathBuf,
}

/// Variables that every command heeds.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("VMTAPE_PLUGIN_PATH", "folders with backends, separated by colons, to look at after those of --plugin"),
    ("RUST_LOG", "what is logged, in the words of tracing-subscriber; it overrides -v and -q"),
    ("NO_COLOR", "if it is set, nothing is coloured, unless --color says so"),
    ("SOURCE_DATE_EPOCH", "the time that pages carry instead of the present, in seconds since 1970"),
];

/// Where plugins are looked for.
const FILES: [(&str, &str); 3] = [
    ("PREFIX/lib/vmtape/plugins", "backends of the installation, PREFIX/bin being where the program is"),
    ("~/.local/share/vmtape/plugins", "backends of the user"),
    ("/usr/lib/vmtape/plugins", "backends of the system"),
];

pub fn run(args: &Args, program: Command) -> Result<ExitCode> {
    let mut program = program.disable_help_subcommand(true);
    program.build();
    let written = fs::create_dir_all(&args.folder).and_then(|()| pages(&program, &args.folder, &[]));
    written.with_context(|| args.folder.display().to_string())?;
    Ok(ExitCode::SAME)
}

/// The pages of a command and its commands. `siblings`: pages that belong to it.
fn pages(command: &Command, folder: &Path, siblings: &[String]) -> io::Result<()> {
    let commands: Vec<_> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).collect();
    let name = |command: &Command| command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let mut related: Vec<String> = commands.iter().map(|sub| name(sub)).collect();
    for sub in commands {
        pages(sub, folder, &[siblings, &[name(command)]].concat())?;
    }
    related.extend_from_slice(siblings);
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    write(&man, command, &related, &mut page)?;
    fs::write(folder.join(man.get_filename()), page)
}

/// See: man-pages(7), Sections within a manual page
fn write(man: &Man, command: &Command, related: &[String], out: &mut Vec<u8>) -> io::Result<()> {
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    let (notes, exit, examples) = parts(&help);
    let mut roff = Roff::new();
    notes.iter().for_each(|note| _ = roff.control("PP", []).text([roman(note.as_str())]));
    roff.to_writer(out)?;
    man.render_options_section(out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(out)?;
    }
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    match exit.as_str() {
        "" => roff.text([roman("0 done, 2 usage, 125 could not test; vmtape(1) has them all.")]),
        codes => plain(&mut roff, codes),
    };
    listed(&mut roff, "ENVIRONMENT", &ENVIRONMENT);
    listed(&mut roff, "FILES", &FILES);
    if !examples.is_empty() {
        plain(roff.control("SH", ["EXAMPLES"]), &examples);
    }
    if !related.is_empty() {
        let names: Vec<_> = related.iter().map(|name| format!("{name}(1)")).collect();
        roff.control("SH", ["SEE ALSO"]).text([roman(names.join(", "))]);
    }
    roff.to_writer(out)?;
    man.render_version_section(out)
}

/// What stands below the options: notes, exit codes, examples.
fn parts(help: &str) -> (Vec<String>, String, String) {
    let (mut notes, mut exit, mut examples) = (Vec::new(), String::new(), String::new());
    for paragraph in help.split("\n\n") {
        match (paragraph.strip_prefix("Exit codes:"), paragraph.strip_prefix("Examples:")) {
            (Some(codes), _) => exit = codes.trim_start_matches(' ').trim_start_matches('\n').to_owned(),
            (_, Some(lines)) => examples = lines.trim_start_matches('\n').to_owned(),
            _ if paragraph.is_empty() => {}
            _ => notes.push(paragraph.to_owned()),
        }
    }
    (notes, exit, examples)
}

/// Lines as they are.
fn plain<'r>(roff: &'r mut Roff, text: &str) -> &'r mut Roff {
    roff.control("nf", []);
    text.lines().for_each(|line| _ = roff.text([roman(line)]));
    roff.control("fi", [])
}

/// A section of names with what they mean.
fn listed(roff: &mut Roff, section: &str, rows: &[(&str, &str)]) {
    roff.control("SH", [section]);
    for (name, text) in rows {
        roff.control("TP", []).text([bold(*name)]).text([roman(*text)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn pages_have_the_usual_sections() {
        let folder = tempfile::tempdir().unwrap();
        run(&Args { folder: folder.path().join("man") }, crate::cli::Cli::command()).unwrap();
        let sections = |page: &str| -> Vec<String> {
            let text = fs::read_to_string(folder.path().join("man").join(page)).expect(page);
            let lines = text.lines().filter_map(|line| line.strip_prefix(".SH "));
            lines.map(|name| name.trim_matches('"').to_owned()).collect()
        };
        let usual =
            ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"];
        for page in ["vmtape.1", "vmtape-replay.1", "vmtape-host-show.1"] {
            let sections = sections(page);
            for wanted in usual.iter().filter(|name| page != "vmtape-host-show.1" || **name != "EXAMPLES") {
                assert!(sections.iter().any(|section| section == wanted), "{page} {wanted}: {sections:?}");
            }
            assert!(sections.contains(&"SEE ALSO".to_owned()), "{page}: {sections:?}");
        }
    }
}
