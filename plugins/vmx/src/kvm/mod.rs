//! What `kvm_intel` does: exit handlers, and what it writes into the VMCS.

pub mod cpus;
pub mod crash;
mod faults;
mod gpa;
pub mod handlers;
pub mod list;
pub mod msr;
mod registers;
pub mod setup;
#[cfg(test)]
mod tests;
pub mod vmcs;

pub use handlers::{Cx, handle};
