//! The backends that the program has in itself: the one place that names them. A plugin that is found as a file is taken instead.

use vmtape_backends::Embedded;

const BUILD: &str = env!("VMTAPE_BUILD");

/// In the order in which they are listed.
pub const EMBEDDED: &[Embedded] = &[
    Embedded::new::<vmtape_vmx::Vmx>(BUILD),
    Embedded::new::<vmtape_kvm_svm::Svm>(BUILD),
    Embedded::new::<vmtape_kvm_svm::SvmNpt>(BUILD),
];
