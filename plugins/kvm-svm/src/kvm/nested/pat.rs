//! The PAT of L2.
//!
//! See: KVM arch/x86/kvm/svm/nested.c nested_vmcb02_prepare_save(), nested_svm_vmexit()
