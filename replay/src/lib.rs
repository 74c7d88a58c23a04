//! Replaying tapes: run the guest again or feed its exits to another backend, compare, explain.
//!
//! [`spec`] builds the machine of a tape again. Then there are four comparisons, each filling a [`Report`]: [`identical`] (the same
//! backend), [`across`] (another one, or another host or KVM), [`exits`] (without the guest), and of two tapes without running
//! anything [`tapes`] or, where one is the real KVM's, [`recording`]. A difference gets a [`Signature`], a [`Cause`] and an
//! explanation ([`explain`]); a run with faults gets a verdict ([`faults`]); [`bisect`] searches its smallest cause, [`check`] judges
//! whether a guest may move, [`migration`] moves it and holds it against a twin, [`evidence`] judges a trace that has no guest. Callers bring the
//! function that makes a VM ([`player::Create`]): this crate loads no plugin.

pub mod across;
mod aligned;
pub mod bisect;
pub mod causes;
pub mod check;
mod checker;
pub mod cpuid;
pub mod ends;
mod error;
pub mod evidence;
pub mod exempt;
pub mod exits;
pub mod explain;
pub mod faults;
pub mod identical;
pub mod islands;
pub mod migration;
pub mod native;
pub mod observer;
pub mod player;
pub mod recording;
pub mod report;
pub mod reproducer;
mod row;
mod seen;
mod sides;
pub mod signature;
pub mod spec;
pub mod state;
pub mod tapes;
pub mod text;

pub use causes::Cause;
pub use error::Error;
pub use report::Report;
pub use signature::Signature;
