//! How a guest is to move.

use crate::{handover::Handover, source::LogMode};
use std::{fmt, str::FromStr};

/// What of memory moves when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// The guest stands still from the beginning.
    #[default]
    Cold,
    /// Memory moves in rounds while the guest runs.
    Precopy,
    /// The guest runs on the other side, and its memory follows.
    Postcopy,
    /// One round of pre-copy, then post-copy of what was written meanwhile.
    Hybrid,
}

impl Method {
    /// Whether memory follows the guest.
    pub fn is_postcopy(self) -> bool {
        matches!(self, Self::Postcopy | Self::Hybrid)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cold => "cold",
            Self::Precopy => "precopy",
            Self::Postcopy => "postcopy",
            Self::Hybrid => "hybrid",
        })
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = [Self::Cold, Self::Precopy, Self::Postcopy, Self::Hybrid]
            .into_iter()
            .find(|m| m.to_string() == text);
        named.ok_or_else(|| format!("`{text}` is none of cold, precopy, postcopy, hybrid"))
    }
}

/// How a guest is to move.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub method: Method,
    pub log: LogMode,
    /// Bytes per second of virtual time.
    pub bandwidth: u64,
    /// Nanoseconds that the guest may stand still.
    pub downtime_ns: u64,
    /// Rounds after which memory is considered not to converge.
    pub rounds: usize,
    /// Slow the guest down where it writes faster than is sent.
    pub auto_converge: bool,
    pub handover: Handover,
    /// Of this attempt.
    pub epoch: u64,
    /// Which attempt it is to make the same move, from one on.
    pub attempt: u32,
    /// How many there are at most, where the guest stays.
    pub attempts: u32,
}

/// See: QEMU 10.2.2 migration/options.c, whose limit of downtime this is
const DOWNTIME_NS: u64 = 300_000_000;

impl Default for Plan {
    fn default() -> Self {
        Self {
            method: Method::default(),
            log: LogMode::default(),
            bandwidth: 1 << 30,
            downtime_ns: DOWNTIME_NS,
            rounds: 30,
            auto_converge: false,
            handover: Handover::default(),
            epoch: 1,
            attempt: 1,
            attempts: 1,
        }
    }
}

impl Plan {
    /// Nanoseconds that so many bytes take.
    pub fn time(&self, bytes: u64) -> u64 {
        let ns = u128::from(bytes) * 1_000_000_000 / u128::from(self.bandwidth.max(1));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}
