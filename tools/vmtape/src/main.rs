//! `vmtape`: runs a guest under a backend, tapes every exit, and plays the tape back elsewhere.

mod cli;
mod commands;
mod machine_args;
mod output;
mod qemu;
mod scenarios;
mod script_args;

use clap::Parser;
use output::ExitCode;

fn main() -> std::process::ExitCode {
    let arguments = qemu::normalize(std::env::args_os());
    let cli = match cli::Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // clap knows whether this is help (stdout, success) or misuse (stderr).
            let _ = error.print();
            return if error.use_stderr() { ExitCode::USAGE } else { ExitCode::SAME }.into();
        }
    };
    output::init_logging(cli.verbose);
    match commands::run(cli.command) {
        Ok(code) => code.into(),
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SAME.into(),
        Err(error) => {
            output::print_error(&error);
            ExitCode::of_error(&error).into()
        }
    }
}
