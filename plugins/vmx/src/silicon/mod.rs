//! What the CPU does: the two-dimensional walk, and which instructions, exceptions and accesses leave the guest.

pub mod apic;
pub mod controls;
pub mod ept;
pub mod exits;
pub mod nested;
#[cfg(test)]
mod tests;
