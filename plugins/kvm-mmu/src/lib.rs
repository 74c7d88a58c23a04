//! What the backends share of memory virtualization: memory slots, THE page walk, TDP and shadow MMU. No exports.
#![forbid(unsafe_code)]

pub mod fault;
mod fixup;
pub mod insn;
pub mod mmu;
pub mod pages;
pub mod role;
pub mod shadow;
pub mod slots;
pub mod spte;
pub mod tdp;
pub mod walk;
pub mod walker;

pub use mmu::{Config, GuestWidth, Mmu, Unmappable};
