//! What `kvm_amd` does: exit handlers, and what it writes into the VMCB.

pub mod handlers;
pub mod setup;

pub use handlers::{Cx, handle};
