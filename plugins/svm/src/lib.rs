//! The backend `svm`: AMD's SVM with shadow paging (`npt=0`), and `kvm_amd`.

use vmtape_abi::{Description, Plugin, VmConfig};

/// The plugin.
pub struct Svm;

impl Plugin for Svm {
    type Vm = vmtape_kvm_svm::Vm;

    fn describe() -> Description {
        vmtape_kvm_svm::describe::description(false)
    }

    fn create(config: &VmConfig) -> Result<Self::Vm, String> {
        vmtape_kvm_svm::create(config, false)
    }
}

vmtape_abi::export_backend!(Svm);
