//! Why a guest does not move.

use crate::{link::Broken, stream::StreamError};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Link(#[from] Broken),
    #[error(transparent)]
    Machine(#[from] vmtape_machine::Error),
    #[error("the destination has been used: only a machine that was just built takes a guest")]
    Used,
    /// A message that has no place where it came.
    #[error("{kind} does not belong where the {side} is {state}")]
    Unexpected { kind: String, side: &'static str, state: String },
    #[error("the destination does not take the guest: {0}")]
    Refused(String),
    #[error(
        "memory does not converge: after {rounds} rounds {pending} pages are still to be sent, {needed} ns at this bandwidth"
    )]
    NoConvergence { rounds: usize, pending: usize, needed: u64 },
    #[error("the guest does not come to rest")]
    NoRest,
    #[error("the guest has ended before it could move")]
    Ended,
    #[error("{0}")]
    Guest(String),
    #[error("reading the dirty log of slot {slot}: errno {errno}")]
    DirtyLog { slot: u32, errno: i64 },
    #[error("the journal cannot be written: {0}")]
    Journal(std::io::Error),
    #[error("the {0} was killed")]
    Killed(&'static str),
}
