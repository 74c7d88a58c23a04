//! Scenarios: what must be true of guests on backends, as command lines with what they must print.
//!
//! A row is data (`tools/vmtape/scenarios/*.toml`, or a user's own file): a command as one would type it, and for each
//! backend the lines that it must show, with the source that says so. Every tape that a row records is recorded twice and
//! replayed in both modes: the two files must be equal byte by byte, and the replays must be the same.

pub mod catalogue;
pub mod expect;
pub mod report;
pub mod runner;
