//! How far a move is, while it is under way: on a terminal as it goes, and round by round with `-v`.

use crate::progress::progress;
use indicatif::{HumanBytes, HumanCount, ProgressBar};
use std::{cell::Cell, time::Duration};
use vmtape_migrate::Live;

/// Shows moves.
pub struct Display {
    bar: ProgressBar,
    bandwidth: u64,
    /// A comparison makes the same moves again; they are told once.
    told: Cell<bool>,
}

impl Display {
    pub fn new(bandwidth: u64) -> Self {
        Self { bar: progress("migrate"), bandwidth, told: Cell::new(false) }
    }

    pub fn show(&self, live: &Live) {
        let text = text(live, self.bandwidth);
        if live.left == 0 && !self.told.get() {
            tracing::info!("{text}");
            self.told.set(live.stopped);
        }
        self.bar.set_message(text);
    }

    pub fn message(&self, text: String) {
        self.bar.set_message(text);
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn time(ns: u64) -> String {
    format!("{:?}", Duration::from_micros(ns / 1000))
}

/// Times are virtual, as the bandwidth is.
fn text(live: &Live, bandwidth: u64) -> String {
    let round = if live.stopped { "stopped".to_owned() } else { format!("round {}", live.round) };
    let (pages, left) = (HumanCount(live.pages), HumanCount(live.left));
    let (bytes, rate) = (HumanBytes(live.bytes), HumanBytes(bandwidth));
    let mut text = format!(
        "{round}: {pages} pages sent, {left} left; {bytes} in all at {rate}/s, {} left",
        time(live.left_ns)
    );
    if live.stopped {
        text += &format!("; downtime {}", time(live.downtime_ns));
    } else if live.dirty_ns > 0 {
        text += &format!("; the guest wrote {} pages in {}", HumanCount(live.dirty), time(live.dirty_ns));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_pages_bytes_rate_and_time_left() {
        let mut live =
            Live { round: 2, pages: 64, left: 1200, bytes: 1 << 20, left_ns: 4_800_000, ..Live::default() };
        (live.dirty, live.dirty_ns) = (303, 4_000_000);
        assert_eq!(
            text(&live, 1 << 30),
            "round 2: 64 pages sent, 1,200 left; 1.00 MiB in all at 1.00 GiB/s, 4.8ms left; the guest wrote 303 pages in 4ms"
        );
        live = Live { stopped: true, downtime_ns: 250_000, pages: 3, ..Live::default() };
        assert_eq!(
            text(&live, 1 << 20),
            "stopped: 3 pages sent, 0 left; 0 B in all at 1.00 MiB/s, 0ns left; downtime 250µs"
        );
    }
}
