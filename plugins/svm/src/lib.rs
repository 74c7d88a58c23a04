//! The backend `svm` as a library: AMD's SVM with shadow paging (`npt=0`), and `kvm_amd`.

vmtape_abi::export_backend!(vmtape_kvm_svm::Svm);
