//! `vmtape`: runs a guest under a backend, tapes every exit, and plays the tape back elsewhere.

mod cli;
mod commands;
mod fault_args;
mod files;
mod help;
mod interrupt;
mod libvirt;
mod machine_args;
mod output;
mod plan_args;
mod qemu;
mod scenarios;
mod script_args;

use clap::Parser;
use output::ExitCode;
use std::{
    ffi::OsString,
    panic::{AssertUnwindSafe, catch_unwind},
};

fn main() -> std::process::ExitCode {
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
    let cli = match cli::Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // clap knows whether this is help (stdout, success) or misuse (stderr).
            let _ = error.print();
            return if error.use_stderr() { misuse } else { ExitCode::SAME };
        }
    };
    output::init_logging(cli.verbose);
    match cli.command.run() {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) && misuse == ExitCode::USAGE => ExitCode::UNREAD,
        Err(error) => {
            output::print_error(&error);
            of_error(&error)
        }
    }
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
        assert!(!is_trial("vmtape replay a.tape") && !is_trial("vmtape bisect a.tape --axis kvm"));
    }
}
