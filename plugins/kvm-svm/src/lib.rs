//! AMD's SVM with `kvm_amd` on it, for both of its forms: nested paging (`npt=1`) and shadow paging (`npt=0`). No exports.
//!
//! Manuals: AMD APM volume 2, 24593 rev. 3.42. KVM: arch/x86/kvm/svm/svm.c, as of 6.12.
#![forbid(unsafe_code)]

mod backend;
pub mod describe;
mod kvm;
mod plugins;
pub mod rules;
mod silicon;
#[cfg(test)]
mod tests;
mod vm;

pub use plugins::{Svm, SvmNpt};
pub use vm::{Vm, create};
