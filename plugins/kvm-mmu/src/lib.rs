//! What the backends share of memory virtualization: memory slots, THE page walk, TDP and shadow MMU. No exports.
#![forbid(unsafe_code)]

mod config;
pub mod context;
mod damage;
pub mod dirty;
mod epoch;
pub mod fault;
pub mod fault_points;
mod fixup;
mod hugepage;
pub mod insn;
mod large;
pub mod memory_type;
mod mmio_cache;
pub mod mmu;
pub mod mtrr;
mod nested;
mod notifier;
mod page_fault;
pub mod pages;
pub mod role;
pub mod shadow;
pub mod slots;
pub mod spte;
pub mod tdp;
pub mod walk;
pub mod walker;

#[cfg(test)]
mod nested_tests;

pub use mmu::{Config, GuestWidth, Mmu, NptRules, Unmappable};
