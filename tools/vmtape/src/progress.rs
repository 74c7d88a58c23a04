//! Progress on stderr, on terminals only: percent and the time that is left where the length is known.

use crate::output::is_quiet;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};

const UNKNOWN_LENGTH: &str = "{spinner} {prefix}: {msg} [{elapsed}]";

/// Progress of work whose length nobody knows.
pub fn progress(what: &str) -> ProgressBar {
    styled(ProgressBar::new_spinner(), what, UNKNOWN_LENGTH)
}

/// Progress of work whose length is known: percent, and the time that is left.
pub fn progress_of(what: &str, length: u64, unit: &str) -> ProgressBar {
    let template =
        format!("{{spinner}} {{prefix}}: {{percent}}% of {{human_len}} {unit}, {{eta}} left {{msg}}");
    styled(ProgressBar::new(length), what, &template)
}

/// Ends progress with one line that stays.
pub fn end_progress(bar: &ProgressBar, unit: &str) {
    let template = format!("{{prefix}}: {{human_pos}} of {{human_len}} {unit} in {{elapsed}}");
    restyle(bar, &template);
    bar.abandon();
}

fn styled(bar: ProgressBar, what: &str, template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() || is_quiet() {
        return ProgressBar::hidden();
    }
    restyle(&bar, template);
    bar.set_prefix(what.to_owned());
    bar
}

fn restyle(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

/// Progress of one trial after the other, each of which may tell how far it is.
pub struct Trials(ProgressBar);

impl Trials {
    pub fn new(what: &str) -> Self {
        Self(progress(what))
    }

    pub fn begin(&self, trial: &str) {
        self.0.reset();
        self.0.unset_length();
        restyle(&self.0, UNKNOWN_LENGTH);
        self.0.set_message(trial.to_owned());
    }

    pub fn reached(&self, at: u64, of: u64) {
        if self.0.length() != Some(of) {
            restyle(&self.0, "{spinner} {prefix}: {percent}% of this trial, {eta} left: {msg}");
            self.0.set_length(of);
        }
        self.0.set_position(at);
    }

    pub fn end(&self) {
        self.0.finish_and_clear();
    }
}
