//! What AMD's silicon does: intercepts, and the exits that they become.

pub mod exits;
pub mod vmcb;
