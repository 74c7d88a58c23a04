//! The last branches of L1 and L2, and the pause filter. See: KVM svm/svm.c svm_set_msr(); APM vol. 2 15.14.4

use super::l1;
use crate::{
    kvm::nested::lbr,
    silicon::{vmcb::Vmcb, vmrun::Running},
};
use vmtape_abi::Backend;
use vmtape_arch::exit::SvmExitCode;

/// IA32_DEBUGCTL by release: what is kept of LBR, BTF, a pin's bit and a reserved one. `None`: #GP.
#[test]
fn debugctl_by_release() {
    for (kvm, expected) in [
        ("v5.10", [Some(1), Some(3), Some(5), None]),
        ("v6.1", [Some(1), Some(3), Some(1), None]),
        ("v6.12", [Some(1), Some(1), Some(1), None]),
        ("v7.2", [Some(1), Some(1), None, None]),
    ] {
        let bench = l1(&[("kvm", kvm)], true);
        let written = [1, 3, 5, 0x41].map(|data| lbr::debugctl(&bench.as_l1(), data).ok());
        assert_eq!(written, expected, "{kvm}");
    }
}

/// Without `lbrv` nothing is kept; 5.10 has no such parameter.
#[test]
fn debugctl_needs_lbr_virtualization() {
    for (kvm, expected) in [("v5.10", 1), ("v6.12", 0), ("v7.2", 0)] {
        let mut bench = l1(&[("kvm", kvm), ("lbrv", "0")], true);
        let (state, host) = (&mut bench.states[0], &mut bench.host);
        assert_eq!(bench.vm.set_msr(0, state, 0x1d9, 1, host), Ok(()), "{kvm}");
        assert_eq!(bench.vm.get_msr(0, state, 0x1d9, host), Ok(expected), "{kvm}");
    }
}

/// kvm-unit-tests' pause_filter_test: so many PAUSEs go by, under a threshold only where they come one after the other.
#[test]
fn the_pause_filter_counts() {
    let silicon = super::super::bench::silicon(46);
    for (count, threshold, apart, pauses, exits) in
        [(9, 0, 5, 10, true), (21, 0, 5, 20, false), (21, 10, 50, 40, false), (21, 1000, 50, 40, true)]
    {
        let mut vmcb: Vmcb = super::vmcb12();
        vmcb.control.intercepts.set(SvmExitCode::PAUSE, true);
        vmcb.control.pause_filter_count = count;
        vmcb.control.pause_filter_thresh = threshold;
        let mut running = Running::default();
        running.vmrun(&mut vmcb, 0x1000, &silicon, true).unwrap();
        let exited = (1..=pauses).any(|n| running.pause_exits(n * apart));
        assert_eq!(exited, exits, "{count} {threshold}");
    }
}
