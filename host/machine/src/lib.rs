//! The machine: guest memory, devices, the virtual clock, image loaders, and the run loop that carries a guest through
//! the interpreter and a backend.
//!
//! [`MachineSpec`] is everything that a run depends on; [`Machine::new`] takes it with a VM of a backend, [`Inputs`] (the only
//! source of what is not determined) and a [`Recorder`], and [`Machine::run`] goes on until the guest leaves or [`Limits`] end
//! it. The machine knows backends as `vmtape_abi::Backend` only; `vmtape_backends` loads them, `vmtape_replay` runs two machines
//! side by side.

mod checkpoint;
mod control_text;
pub mod cpuid;
mod cpuid_change;
mod devices;
mod emulate;
pub mod enumeration;
mod env;
mod error;
mod feed;
mod fpu;
pub mod fuzz;
mod host;
pub mod hosts;
mod inputs;
mod knowledge;
mod loader;
mod machine;
mod memory;
pub mod model;
mod passport;
mod progress;
mod recorder;
mod registers;
mod resolve;
mod run;
mod spec;
mod take_over;
pub mod vmm;

pub use cpuid_change::CpuidChange;
pub use devices::{NS_PER_SECOND, NS_PER_TICK};
pub use error::Error;
pub use inputs::{Inputs, Live, Recorded, Taken};
pub use loader::{LoadError, load as load_image};
pub use machine::Machine;
pub use memory::Memory;
pub use passport::Passport;
pub use recorder::Recorder;
pub use resolve::Resolved;
pub use run::Limits;
pub use spec::{GuestImage, Layout, MAX_VCPUS, MILESTONE_EVERY, MachineSpec};
pub use vmtape_cpu::revision::REVISION as CPU_REVISION;
