//! What `kvm_intel` does: exit handlers, and what it writes into the controls.

pub mod handlers;
pub mod setup;
#[cfg(test)]
mod tests;

pub use handlers::{Cx, handle};
