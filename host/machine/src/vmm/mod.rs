//! What the VMM does beside running the guest: which ioctl at which moment.

mod carried;
mod script;

pub(crate) use carried::Carried;
pub(crate) use script::{Script, memory_regions};
pub use script::{Step, When};
pub use vmtape_traces::ioctl::Action;
