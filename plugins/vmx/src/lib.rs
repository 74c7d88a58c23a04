//! The `vmx` backend: Intel's silicon with EPT or shadow paging, and `kvm_intel` on it.
//!
//! `silicon` is what the CPU does, `kvm` what KVM does about it; names are those of Linux 6.12's arch/x86/kvm/vmx.
//!
//! Not modelled, so that a comparison with a real host must allow for it: exits that come from outside the guest (external
//! interrupts, the preemption timer, page-modification log full); TPR_BELOW_THRESHOLD (the interrupt controllers act without
//! an exit there); PAUSE-loop exiting; real mode under `unrestricted_guest=off`, which KVM emulates;
//! task switches, which end in NOT_MODELLED; nested VMX, likewise, where a guest's CPUID has it.
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
        vm::Shared::new(config).map(Vm::of)
    }
}

vmtape_abi::export_backend!(Vmx);
