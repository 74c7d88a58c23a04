//! The machine: guest memory, devices, the virtual clock, image loaders, and the run loop that carries a guest through
//! the interpreter and a backend.
//!
//! [`MachineSpec`] is everything that a run depends on; [`Machine::new`] takes it with a VM of a backend, [`Inputs`] (the only
//! source of what is not determined) and a [`Recorder`], and [`Machine::run`] goes on until the guest leaves or [`Limits`] end
//! it. The machine knows backends as `vmtape_abi::Backend` only; `vmtape_backends` loads them, `vmtape_replay` runs two machines
//! side by side.
//!
//! No module depends on one that depends on it. From the bottom up: `error`; what hosts and CPU models are (`model`, `hosts`), and what a host
//! that crashes leaves behind (`crash`); the parts of a machine (`memory`, `time`, `devices`, `vcpu`, `tape`, `vmm`); what describes one (`spec`) and fills it
//! (`loader`); what a backend and a running guest reach of it (`services`); and `machine`, which runs it, saves it, feeds it from a
//! tape, and moves it.

pub mod crash;
mod devices;
mod error;
pub mod fuzz;
pub mod hosts;
mod loader;
mod machine;
mod memory;
pub mod model;
mod services;
mod spec;
mod tape;
mod time;
mod vcpu;
pub mod vmm;

pub use devices::{MAX_VCPUS, Seen};
pub use error::{Error, LoadError};
pub use hosts::{Passport, enumeration};
pub use loader::load as load_image;
pub use machine::{Block, Capability, Digest, Limits, Machine, Resolved, Snapshot};
pub use memory::{Layout, Memory};
pub use model::CpuidChange;
pub use services::{Arrived, MemoryTypes, Pager, Typed, TypedPage};
pub use spec::{ChangesTold, GuestImage, MILESTONE_EVERY, MachineSpec, Platform};
pub use tape::Recorder;
pub use time::{
    Asked, Decision, Exited, Faults, HostPoint, Inputs, Live, NS_PER_SECOND, NS_PER_TICK, Phase, Recorded,
    Scripted, Taken,
};
pub use vmtape_cpu::{Engine, revision::REVISION as CPU_REVISION};
