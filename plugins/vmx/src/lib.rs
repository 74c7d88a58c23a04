//! The `vmx` backend: Intel's silicon with EPT or shadow paging, and `kvm_intel` on it.
//!
//! `silicon` is what the CPU does, `kvm` what KVM does about it; names are those of Linux 6.12's arch/x86/kvm/vmx.
#![deny(unsafe_code)]

mod backend;
mod describe;
mod kvm;
mod rules;
mod silicon;
#[cfg(test)]
mod testing;
mod vm;

pub use vm::Vm;

/// The plugin.
pub struct Vmx;

impl vmtape_abi::Plugin for Vmx {
    type Vm = Vm;

    fn describe() -> vmtape_abi::Description {
        describe::description()
    }

    fn create(config: &vmtape_abi::VmConfig) -> Result<Vm, String> {
        Vm::new(config)
    }
}

vmtape_abi::export_backend!(Vmx);
