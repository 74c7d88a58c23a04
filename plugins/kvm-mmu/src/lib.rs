//! What the backends share of memory virtualization: memory slots, THE page walk, TDP and shadow MMU. No exports.
#![forbid(unsafe_code)]

pub mod slots;
pub mod walk;
