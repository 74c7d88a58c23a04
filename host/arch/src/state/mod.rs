//! The state of a VM in the words of KVM's ioctls: the kernel's structures, byte for byte.
//!
//! See: Linux 6.12 arch/x86/include/uapi/asm/kvm.h, include/uapi/linux/kvm.h

mod msrs;

pub use msrs::{MAX_IO_MSRS, MsrEntry};
