//! Host code for hot blocks of x86-64 code.
//!
//! [`Compiler::compile`] makes host code of a block that an interpreter has decoded, and [`Compiler::run`] executes it, and
//! whatever blocks are chained to it, until something needs the interpreter: an instruction that has no template, an access
//! that the table of pages does not allow, a place from which no chain leads on, or the end of the budget. Compiled code
//! never calls anything: it returns, and is entered again behind the instruction.
//!
//! Only 64-bit mode, and only on x86-64 hosts: elsewhere [`Compiler::new`] has nothing to offer.
#![allow(clippy::useless_conversion, reason = "dynasm! converts numbers of registers that are so already")]

mod interface;

#[cfg(all(target_arch = "x86_64", unix))]
mod compiler;
#[cfg(all(target_arch = "x86_64", unix))]
mod enter;
#[cfg(all(target_arch = "x86_64", unix))]
mod frame;
#[cfg(all(target_arch = "x86_64", unix))]
mod links;
#[cfg(all(target_arch = "x86_64", unix))]
mod memory;
#[cfg(all(target_arch = "x86_64", unix))]
mod translate;

#[cfg(not(all(target_arch = "x86_64", unix)))]
mod absent;

#[cfg(not(all(target_arch = "x86_64", unix)))]
pub use absent::Compiler;
#[cfg(all(target_arch = "x86_64", unix))]
pub use compiler::Compiler;
pub use interface::{
    BlockId, Changes, Entry, Exit, Guest, Link, Miss, Refused, TLB_ENTRIES, Tag, TlbEntry, Use, WEIGHTS,
    WIDEST,
};
