//! Events of L1 and of L2: what leaves L2, what is injected into it, and what waits.
//!
//! See: KVM arch/x86/kvm/svm/nested.c svm_check_nested_events(), svm.c svm_interrupt_blocked(), svm_nmi_blocked()
