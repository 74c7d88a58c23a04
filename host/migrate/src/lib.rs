//! Moving a running guest to another machine.
//!
//! A [`source::Source`] offers its guest over a [`link`], sends memory and state as a [`stream`], and hands the guest over
//! ([`handover`]); a [`destination::Destination`] judges it by a [`policy`], loads it into a machine that was just built, and runs
//! it. Both go step by step: in one process they take turns ([`Conversation`]), in two each has its own. Time is virtual
//! throughout. What may go wrong on purpose are [`points`].

pub mod classes;
mod conversation;
pub mod destination;
mod error;
mod guest;
pub mod handover;
pub mod link;
mod plan;
pub mod points;
pub mod policy;
pub mod report;
mod shared;
pub mod source;
pub mod stream;

pub use conversation::Conversation;
pub use error::Error;
pub use guest::Guest;
pub use plan::{Method, Plan};
pub use report::Outcome;
pub use shared::{Live, Surroundings, Watch};
