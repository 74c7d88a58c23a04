//! Exit codes, errors and logs: stdout carries data, stderr everything else.

use anyhow::Error;
use clap::ColorChoice;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};
use tracing::Level;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// The version of every JSON object that the program prints.
pub const SCHEMA_VERSION: u32 = 2;

/// How the program ends; the numbers are promises to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(pub u8);

impl ExitCode {
    /// Same, safe, pass.
    pub const SAME: Self = Self(0);
    /// Different, unsafe, fail.
    pub const DIFFERENT: Self = Self(1);
    /// The command line makes no sense.
    pub const USAGE: Self = Self(2);
    /// Could not test: an unreadable tape, a plugin that does not load.
    pub const COULD_NOT_TEST: Self = Self(125);
    /// Under `--bisect`: the command line makes no sense. `git bisect run` stops at it, where it would take 2 for bad.
    pub const STOP: Self = Self(128);
    /// Whoever read our output went away, so that no verdict was told: what a shell says of a program that SIGPIPE ended.
    pub const UNREAD: Self = Self(141);

    /// The code for a failed command.
    pub fn of_error(error: &Error) -> Self {
        let usage = is_misuse(error) || error.chain().any(|cause| cause.is::<Refused>());
        if usage { Self::USAGE } else { Self::COULD_NOT_TEST }
    }

    /// The code for a failed command under `--bisect`. What is wrong in the command line is wrong for every build: `git bisect
    /// run` is to stop, not to skip them all.
    pub fn of_error_in_bisection(error: &Error) -> Self {
        let stops = is_misuse(error) || error.chain().any(|cause| cause.is::<Refused>() || is_absent(cause));
        if stops { Self::STOP } else { Self::COULD_NOT_TEST }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        code.0.into()
    }
}

/// An error that is the command line's fault.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// A usage error from anything that can be printed.
pub fn usage(text: impl std::fmt::Display) -> Error {
    Error::new(Usage(text.to_string()))
}

fn is_misuse(error: &Error) -> bool {
    let misuse = |cause: &vmtape_replay::Error| matches!(cause, vmtape_replay::Error::Misuse(_));
    error.chain().any(|cause| cause.is::<Usage>() || cause.downcast_ref().is_some_and(misuse))
}

/// A file or a backend that the command line names is not there.
fn is_absent(cause: &(dyn std::error::Error + 'static)) -> bool {
    use vmtape_backends::Error as Plugin;
    use vmtape_traces::error::{Cause as OnTape, Error as Tape};
    let not_found = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let tape = |error: &Tape| matches!(&error.cause, OnTape::Io(error) if not_found(error));
    let plugin = |error: &Plugin| match error {
        Plugin::Unreadable { source, .. } => not_found(source),
        Plugin::NotFound { .. } => true,
        _ => false,
    };
    cause.downcast_ref().is_some_and(tape)
        || cause.downcast_ref().is_some_and(plugin)
        || cause.downcast_ref().is_some_and(not_found)
}

/// A backend refuses its options or its host: the command line's fault, or that of the plugin's build.
#[derive(Debug, thiserror::Error)]
#[error("backend {backend}: {reason}")]
pub struct Refused {
    pub backend: String,
    pub reason: String,
}

/// Says something beside the data. That nobody reads it is no reason to fail.
pub fn tell(text: impl std::fmt::Display) {
    let _ = writeln!(Printable(io::stderr()), "vmtape: {text}");
}

/// Standard output for people.
pub fn printable() -> Printable<io::StdoutLock<'static>> {
    Printable(io::stdout().lock())
}

/// Text for people, of which parts may come from a stranger's tape, trace or log: what would control a terminal is written as
/// an escape (`\x1b`).
pub struct Printable<W>(pub W);

/// How many bytes at the beginning control a terminal: those of ASCII but for ends of lines and tabs, and C1's two in UTF-8.
// See: ISO/IEC 6429, ECMA-48 5.3
fn controls(bytes: &[u8]) -> usize {
    match bytes {
        [0xc2, 0x80..=0x9f, ..] => 2,
        [byte, ..] if byte.is_ascii_control() && !matches!(byte, b'\n' | b'\t') => 1,
        _ => 0,
    }
}

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(at) = (0..bytes.len()).find(|at| controls(&bytes[*at..]) != 0) {
            let (text, rest) = bytes.split_at(at);
            let length = controls(rest);
            self.0.write_all(text)?;
            write!(self.0, "\\x{:02x}", rest[length - 1])?;
            bytes = &rest[length..];
        }
        self.0.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Prints an error with its causes.
pub fn print_error(error: &Error) {
    tell(error_text(error));
}

/// An error with its causes, each once, on one line.
pub fn error_text(error: &Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Libraries' messages often include their source already, or begin with the name that was put before them.
        if let Some(rest) = cause.strip_prefix(text.as_str())
            && rest.starts_with(": ")
        {
            text = cause;
        } else if !text.ends_with(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
    }
    text
}

/// Whether the reader of our output went away.
pub fn is_broken_pipe(error: &Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// More is asked for than usual.
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Whether more is asked for than usual.
pub fn is_verbose() -> bool {
    VERBOSE.load(Ordering::Relaxed)
}

/// Logs go to stderr: warnings by default, more with `-v`, and whatever RUST_LOG says.
pub fn init_logging(verbose: u8, color: ColorChoice) {
    VERBOSE.store(verbose > 0, Ordering::Relaxed);
    let default = [Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE][usize::from(verbose).min(3)];
    let colored = match color {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let from_environment = std::env::var("RUST_LOG").ok().and_then(|told| told.parse::<Targets>().ok());
    let filter = from_environment.unwrap_or_else(|| Targets::new().with_default(default));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(colored)
        .without_time()
        .with_target(false)
        // It would tell them by a macro that panics where stderr is closed.
        .log_internal_errors(false);
    tracing_subscriber::registry().with(lines).with(filter).init();
}

/// A report with its schema version.
#[derive(Serialize, JsonSchema)]
struct Versioned<'a, T> {
    schema_version: u32,
    #[serde(flatten)]
    report: &'a T,
}

/// Adds the schema of a report, as it is printed, to others.
#[cfg(test)]
pub fn schema<T: JsonSchema + 'static>(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    generator.subschema_for::<Versioned<'static, T>>()
}

/// Whether somebody was given JSON.
static PRINTED: AtomicBool = AtomicBool::new(false);

/// Prints a report as one JSON object with its schema version.
pub fn print_json<T: Serialize>(report: &T) -> anyhow::Result<()> {
    PRINTED.store(true, Ordering::Relaxed);
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &Versioned { schema_version: SCHEMA_VERSION, report })
        .map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// A command that failed, for those who asked for JSON.
#[derive(Serialize, JsonSchema)]
pub struct Failure {
    error: Told,
}

#[derive(Serialize, JsonSchema)]
struct Told {
    /// `usage`, or `could-not-test`.
    kind: &'static str,
    /// What failed, with its causes.
    message: String,
    exit_code: u8,
}

/// Prints an error as JSON, unless there is JSON already.
pub fn print_failure(message: impl std::fmt::Display, code: ExitCode) {
    let usage = matches!(code, ExitCode::USAGE | ExitCode::STOP);
    let kind = if usage { "usage" } else { "could-not-test" };
    let message = message.to_string().trim().to_owned();
    if !PRINTED.load(Ordering::Relaxed) {
        // Who does not read it has the exit code.
        let _ = print_json(&Failure { error: Told { kind, message, exit_code: code.0 } });
    }
}

/// Nothing is told but what was asked for, and errors.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From here on nothing is told but what was asked for, and errors.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether nothing is to be told but what was asked for.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    /// See: git-bisect(1), "bisect run": 125 skips, 128 and above stop, everything else up to 127 is bad.
    #[test]
    fn no_error_is_a_verdict_in_a_bisection() {
        let code = |error: Error| ExitCode::of_error_in_bisection(&error).0;
        assert_eq!(code(usage("no such host")), 128);
        assert_eq!(code(Error::new(io::Error::other("short"))), 125);
        assert_eq!(code(Error::new(Refused { backend: "vmx".into(), reason: String::new() })), 128);
        assert_eq!(code(Error::new(io::Error::from(io::ErrorKind::NotFound)).context("a.tape")), 128);
    }

    #[test]
    fn nothing_controls_a_terminal() {
        let mut out = Printable(Vec::new());
        out.write_all(b"a\x1b[2Jb\tc\r\n\x7f").unwrap();
        assert_eq!(out.0, b"a\\x1b[2Jb\tc\\x0d\n\\x7f");
        let mut out = Printable(Vec::new());
        out.write_all("\u{9b}2Jä".as_bytes()).unwrap();
        assert_eq!(out.0, "\\x9b2Jä".as_bytes(), "C1 as well");
    }

    #[test]
    fn an_error_names_a_thing_once() {
        let text = |cause: &str| error_text(&Error::msg(cause.to_owned()).context("a.tape"));
        assert_eq!(text("a.tape: header: not a tape"), "a.tape: header: not a tape");
        assert_eq!(text("not a tape"), "a.tape: not a tape");
        assert_eq!(text("a.tape.partial: busy"), "a.tape: a.tape.partial: busy");
    }

    #[test]
    fn errors_have_their_codes() {
        let misuse = Err::<(), _>(usage("no such host")).context("--host").unwrap_err();
        assert_eq!(ExitCode::of_error(&misuse), ExitCode::USAGE);
        let unreadable = Error::new(io::Error::other("short")).context("a.tape");
        assert_eq!(ExitCode::of_error(&unreadable), ExitCode::COULD_NOT_TEST);
        let refused = Error::new(Refused { backend: "vmx".into(), reason: "unknown parameter".into() });
        assert_eq!(ExitCode::of_error(&refused), ExitCode::USAGE);
        assert!(is_broken_pipe(&Error::new(io::Error::from(io::ErrorKind::BrokenPipe)).context("show")));
    }
}
