//! What the CPU does: which instructions, exceptions and accesses leave the guest, and what the exit says. The walk
//! itself is that of the `kvm-mmu` crate.

pub mod apic;
pub mod capabilities;
pub mod controls;
pub mod entry;
pub mod exits;
pub mod operation;
#[cfg(test)]
mod tests;
pub mod vmcs;
