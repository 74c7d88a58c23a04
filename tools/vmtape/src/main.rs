//! `vmtape`: runs a guest under a backend, tapes every exit, and plays the tape back elsewhere.

mod cli;
mod commands;
mod embedded;
mod fault_args;
mod files;
mod help;
mod interrupt;
mod libvirt;
mod machine_args;
mod near;
mod output;
mod plan_args;
mod progress;
mod qemu;
mod scenarios;
#[cfg(test)]
mod schemas;
mod script_args;

use clap::{ColorChoice, CommandFactory, FromArgMatches};
use output::ExitCode;
use std::{
    ffi::OsString,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
};

fn main() -> std::process::ExitCode {
    if vmtape_backends::serve_if_child(embedded::EMBEDDED) {
        return ExitCode::SAME.into();
    }
    vmtape_replay::spec::made_by(env!("VMTAPE_BUILD"));
    let arguments: Vec<OsString> = match qemu::normalize(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => {
            output::print_error(&error);
            return ExitCode::of_error(&error).into();
        }
    };
    if is_trial(&arguments) {
        trial(&arguments)
    } else {
        run(&arguments, ExitCode::USAGE, ExitCode::of_error)
    }
    .into()
}

/// Whether the program is a trial of `git bisect run`, where only a verdict may give 0 or 1.
fn is_trial(arguments: &[OsString]) -> bool {
    let is_flag = |text: &str| text == "--bisect" || text.starts_with("--bisect=");
    arguments.iter().any(|argument| argument.to_str().is_some_and(is_flag))
}

/// Even a panic (101 by itself, which git would take for bad) is no verdict.
fn trial(arguments: &[OsString]) -> ExitCode {
    let run = || run(arguments, ExitCode::STOP, ExitCode::of_error_in_bisection);
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(ExitCode::COULD_NOT_TEST)
}

fn run(arguments: &[OsString], misuse: ExitCode, of_error: fn(&anyhow::Error) -> ExitCode) -> ExitCode {
    let json = arguments.iter().any(|argument| argument == "--json");
    let command = cli::Cli::command().color(color(arguments));
    let parsed = command.try_get_matches_from(arguments).and_then(|found| cli::Cli::from_arg_matches(&found));
    let cli = match parsed {
        Ok(cli) => cli,
        // clap knows whether this is help (stdout, success) or misuse (stderr).
        Err(error) if !error.use_stderr() => return asked_for_help(&error),
        Err(error) => {
            let _ = error.print();
            if json {
                output::print_failure(&error, misuse);
            }
            return misuse;
        }
    };
    if cli.quiet {
        output::be_quiet();
    }
    output::init_logging(cli.verbose, cli.color);
    match cli.command.run() {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) && misuse == ExitCode::USAGE => ExitCode::UNREAD,
        Err(error) => {
            output::print_error(&error);
            let code = of_error(&error);
            if json {
                output::print_failure(output::error_text(&error), code);
            }
            code
        }
    }
}

/// Help and the version are data: who cannot write them has failed. Who reads no further has seen enough.
fn asked_for_help(help: &clap::Error) -> ExitCode {
    match help.print().and_then(|()| io::stdout().flush()).map_err(anyhow::Error::new) {
        Ok(()) => ExitCode::SAME,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SAME,
        Err(error) => {
            output::print_error(&error);
            ExitCode::COULD_NOT_TEST
        }
    }
}

/// The value of `--color`, which help needs before anything is parsed.
fn color(arguments: &[OsString]) -> ColorChoice {
    let mut words = arguments.iter().filter_map(|argument| argument.to_str());
    let value = words.find_map(|word| match word.strip_prefix("--color") {
        Some("") => Some(None),
        Some(rest) => rest.strip_prefix('=').map(Some),
        None => None,
    });
    let value = value.map(|value| value.or_else(|| words.next()).unwrap_or_default());
    value.and_then(|value| value.parse().ok()).unwrap_or(ColorChoice::Auto)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trials_are_known_by_their_flag() {
        let is_trial = |line: &str| is_trial(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(
            is_trial("vmtape replay --bisect a.tape")
                && is_trial("vmtape replay a.tape --bisect=entry:+A@0x10")
        );
        let color = |line: &str| color(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(color("vmtape --color always show"), ColorChoice::Always);
        assert_eq!(color("vmtape show --color=never"), ColorChoice::Never);
        assert_eq!(color("vmtape show"), ColorChoice::Auto);
        assert!(!is_trial("vmtape replay a.tape") && !is_trial("vmtape bisect a.tape --axis kvm"));
    }
}
