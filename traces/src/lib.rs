//! The tape: its events, its file format with writer and reader side by side, importers and exporters.
//!
//! `README.md` beside this crate describes the format byte by byte. [`Writer`] writes a tape as its machine runs, [`Tape`]
//! opens one and gives its [`Event`]s, [`Exits`] groups them by exit, [`text`] prints them as the kernel's ftrace does, and
//! [`import`] makes a tape of what the real KVM's ftrace printed.

#![forbid(unsafe_code)]

pub mod ahead;
pub mod codec;
pub mod error;
pub mod event;
pub mod exits;
pub mod export;
pub mod flat;
pub mod format;
pub mod fuzz;
pub mod hex;
pub mod import;
pub mod ioctl;
pub mod metadata;
pub mod reader;
pub mod registers;
pub mod stat;
pub mod text;
pub mod writer;

pub use error::{Cause, Error, Place, Result};
pub use event::Event;
pub use exits::{Elsewhere, ExitGroup, Exits, Rest};
pub use metadata::Metadata;
pub use reader::Tape;
pub use writer::{Options, Writer};
