//! KVM's vendor-neutral half: what `kvm.ko` does for `kvm_intel` and `kvm_amd` alike. No exports.
//!
//! A vendor implements [`vm::Ops`]; [`Vm`] is then a whole `vmtape_abi::Backend`. [`profile`] is THE registry of releases,
//! patches and parameters.
//!
//! Names of functions are those of Linux 6.12's arch/x86/kvm unless a line says otherwise.
#![forbid(unsafe_code)]

#[macro_use]
mod calls;
pub mod caps;
pub mod cpuid;
pub mod cr;
pub mod emulate;
pub mod events;
pub mod forced;
pub mod hypercall;
pub mod io;
pub mod kvm;
pub mod msr;
pub mod pmu;
pub mod profile;
pub mod pv;
pub mod smm;
mod state;
pub mod supported;
#[cfg(test)]
mod tests;
pub mod tracer;
pub mod vcpu;
pub mod vm;
pub mod vmware;
pub mod warning;

pub use kvm::Kvm;
pub use vcpu::Vcpu;
pub use vm::Vm;
pub use vmtape_kvm_mmu::slots;
