//! What the VMM does beside running the guest: which ioctl at which moment.

mod carried;
mod nested_change;
mod script;

pub(crate) use carried::Carried;
pub(crate) use nested_change::NestedChange;
pub(crate) use script::{Script, memory_regions};
pub use script::{Step, When};
pub use vmtape_traces::ioctl::Action;
