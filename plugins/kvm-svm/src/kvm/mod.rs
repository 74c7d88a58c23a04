//! What `kvm_amd` does: exit handlers, and what it writes into the VMCB.

pub mod cpus;
pub mod handlers;
pub mod msr;
pub mod nested;
pub mod setup;
pub mod vmcb;

pub use handlers::{Cx, handle};
