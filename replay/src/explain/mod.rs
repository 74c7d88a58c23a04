//! Why two machines differ at an instruction, told for people: what each side did, walk by walk, level by level, with the
//! deciding entry and bit marked.

mod fold;
mod groups;
mod story;
mod tables;
mod walk;

pub use groups::groups;
pub use story::{Outcome, Story, Teller, focus, of_group, outcome};
pub(crate) use story::{address_of, leaves};
pub use tables::{entries as tables, instruction};
pub use walk::{Walker, Widths, accessed_dirty_difference, illegal_bit, is_malformed};
