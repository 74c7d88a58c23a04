//! The backend `svm-npt` as a library: AMD's SVM with nested paging (`npt=1`), and `kvm_amd`.

vmtape_abi::export_backend!(vmtape_kvm_svm::SvmNpt);
