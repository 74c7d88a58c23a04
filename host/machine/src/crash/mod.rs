//! A host that crashes, and the kernel that it starts next (`kdump`).
//!
//! Silicon may hold the data of a VMCS and write it back at any time. A crash that leaves one active therefore overwrites memory of
//! the next kernel's. [`crash_everywhere`] tries each moment at which a host can crash; [`Aftermath`] is what the next kernel finds.

mod aftermath;
mod bare_host;
mod scene;

pub use aftermath::{ActiveVmcs, Aftermath, Overwritten};
pub use scene::{Crash, Scene, Work, crash_everywhere};
