//! The MSR permission map of `vmcb02`: L0's and L1's together; and what L1's own maps say of an exit.
//!
//! See: KVM arch/x86/kvm/svm/nested.c nested_svm_merge_msrpm(), nested_svm_exit_handled_msr(), nested_svm_intercept_ioio()
