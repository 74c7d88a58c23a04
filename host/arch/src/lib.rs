//! Architecture words, no behaviour: registers, exceptions, error codes, MSRs, CPUID leaves, paging entries, exit
//! reasons, and the plain `repr(C)` structures in which the host and a backend speak about them.
//!
//! A leaf crate. Manuals, unless a line says otherwise: Intel SDM (doc 325384-087) and AMD APM volume 2 (24593,
//! rev. 3.42).

// `open_enum!` names both by this path, in every crate that uses it.
extern crate self as vmtape_arch;
#[doc(hidden)]
pub use serde;

mod layout;
mod open_enum;

pub mod access;
pub mod apic;
pub mod cpuid;
pub mod descriptor;
pub mod event;
pub mod exception;
pub mod exit;
pub mod flag;
pub mod fpu;
pub mod host;
pub mod level;
pub mod memory;
pub mod memory_type;
pub mod msr;
pub mod note;
pub mod paging;
pub mod qualification;
pub mod query;
pub mod regs;
pub mod sensitive;
pub mod state;
pub mod time;
pub mod vcpu;
pub mod vmrun_check;
pub mod vmware;

/// Guest physical page size, and the unit of every frame number.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a 4 KiB page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
