//! The backend `svm-npt`: AMD's SVM with nested paging (`npt=1`), and `kvm_amd`.

use vmtape_abi::{Description, Plugin, VmConfig};

/// The plugin.
pub struct SvmNpt;

impl Plugin for SvmNpt {
    type Vm = vmtape_kvm_svm::Vm;

    fn describe() -> Description {
        vmtape_kvm_svm::describe::description(true)
    }

    fn create(config: &VmConfig) -> Result<Self::Vm, String> {
        vmtape_kvm_svm::create(config, true)
    }
}

vmtape_abi::export_backend!(SvmNpt);
