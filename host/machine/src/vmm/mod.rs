//! What the VMM does beside running the guest: which ioctl at which moment, and that in words.

mod script;
mod text;

pub use script::{Action, Step, When};
pub(crate) use script::{Script, memory_regions};
pub use text::{action_text, control_text};
