//! What the backends share of memory virtualization: memory slots, THE page walk, TDP and shadow MMU.

pub mod slots;
