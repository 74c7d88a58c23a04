//! L2 on another machine, under the same and other releases: its state by KVM's ioctls, and that it goes on to its next exit.

use super::{RELEASES, l1};
use crate::tests::l2::{AFTER, L2_RIP, VMCB12, World};
use vmtape_abi::Backend;
use vmtape_arch::{
    exit::{ResumeKind, SvmExitCode as C},
    state::StateKind,
    vcpu::gpr,
};

const L1_PAT: u64 = 0x0007_0406_0007_0404;
const L2_PAT: u64 = 0x0606_0606_0606_0606;
const PAT: u32 = 0x277;

/// The kinds that a VMM moves, nested state among the first or as the last one.
const FIRST: [StateKind; 4] =
    [StateKind::SREGS2, StateKind::NESTED_STATE, StateKind::REGS, StateKind::VCPU_EVENTS];
const LAST: [StateKind; 4] =
    [StateKind::SREGS2, StateKind::REGS, StateKind::VCPU_EVENTS, StateKind::NESTED_STATE];

/// A machine that takes over what the other has, in this order of kinds.
fn moved(from: &mut World, options: &[(&str, &str)], npt: bool, order: [StateKind; 4]) -> World {
    let mut bench = l1(options, npt);
    let memory = from.bench.host.memory.clone();
    bench.host.memory = memory;
    let old = &mut from.bench;
    let pat = old.vm.get_msr(0, &mut old.states[0], PAT, &mut old.host).unwrap();
    let saved = order.map(|kind| old.vm.get_state(0, &mut old.states[0], kind, &mut old.host).unwrap());
    bench.vm.set_msr(0, &mut bench.states[0], PAT, pat, &mut bench.host).unwrap();
    for (kind, bytes) in order.into_iter().zip(saved) {
        let taken = bench.vm.set_state(0, &mut bench.states[0], kind, &bytes, &mut bench.host);
        assert_eq!(taken, Ok(()), "{kind:?} {options:?}");
    }
    World { bench }
}

/// Between any two of the releases, before L2's first instruction or after it: the same registers, the same exit to L1.
#[test]
fn l2_goes_on_elsewhere() {
    for (from, to) in RELEASES.into_iter().flat_map(|from| RELEASES.map(|to| (from, to))) {
        for (npt, order, has_run) in [
            (true, FIRST, true),
            (true, LAST, true),
            (true, FIRST, false),
            (false, FIRST, true),
            (false, LAST, false),
        ] {
            let what = format!("{from} to {to}, npt {npt}, has run {has_run}");
            let mut old = World::new(&[("kvm", from)], npt, |_| ());
            old.vmrun();
            if has_run {
                old.enter();
                old.bench.state().icount += 1;
                old.bench.state().gpr[gpr::RAX] = 0x34;
            }
            let before = *old.bench.state();
            let mut new = moved(&mut old, &[("kvm", to)], npt, order);
            assert!(new.in_l2(), "{what}");
            let after = *new.bench.state();
            assert_eq!(
                (after.rip, after.gpr, after.rflags),
                (before.rip, before.gpr, before.rflags),
                "{what}"
            );
            assert_eq!((after.cr0, after.cr3, after.efer), (before.cr0, before.cr3, before.efer), "{what}");
            new.enter();
            new.vmmcall();
            assert!(!new.in_l2(), "{what}");
            let state = *new.bench.state();
            assert_eq!(
                (state.rip, state.gpr[gpr::RAX], state.gpr[gpr::RSP]),
                (AFTER, VMCB12, 0x9000),
                "{what}"
            );
            let vmcb = new.vmcb12();
            assert_eq!((vmcb.control.exit_code, vmcb.save.rip), (0x81, L2_RIP), "{what}");
            assert_eq!(vmcb.save.rax, before.gpr[gpr::RAX], "{what}");
        }
    }
}

/// L2 reads IA32_PAT after the move: the named divergences between a KVM with one PAT and one with two.
#[test]
fn the_pat_that_l2_finds() {
    const TWO: &[(&str, &str)] = &[("kvm", "v7.2"), ("nested_svm_shared_pat", "0")];
    const ONE: &[(&str, &str)] = &[("kvm", "v6.12")];
    const POSTED: &[(&str, &str)] = &[("kvm", "gpat-v3-series")];
    for (from, to, pat) in [
        (ONE, ONE, L1_PAT),
        (TWO, TWO, L2_PAT),
        (POSTED, POSTED, L2_PAT),
        (TWO, ONE, L1_PAT),
        (ONE, TWO, 0),
        (ONE, POSTED, L1_PAT),
    ] {
        for order in [FIRST, LAST] {
            let mut old = World::new(from, true, |vmcb| vmcb.save.g_pat = L2_PAT);
            let bench = &mut old.bench;
            bench.vm.set_msr(0, &mut bench.states[0], PAT, L1_PAT, &mut bench.host).unwrap();
            old.vmrun();
            old.enter();
            let mut new = moved(&mut old, to, true, order);
            new.enter();
            let vcpu = &new.bench.vm.vcpus[0];
            assert_eq!(vcpu.nested.vmcb02.vmcb.save.g_pat, pat, "{from:?} to {to:?}");
        }
    }
}

/// L1's map behind the end of memory: KVM_RUN ends with an internal error, once in older releases and each time since 6.12.117.
#[test]
fn a_map_that_cannot_be_read() {
    for (kvm, again) in [("v5.10", false), ("v6.1", false), ("v6.12", true), ("v7.2", true)] {
        let mut old = World::new(&[("kvm", kvm)], true, |vmcb| {
            vmcb.control.intercepts.set(C::MSR, true);
        });
        old.vmrun();
        assert!(old.in_l2(), "{kvm}");
        let bench = &mut old.bench;
        let mut state =
            bench.vm.get_state(0, &mut bench.states[0], StateKind::NESTED_STATE, &mut bench.host).unwrap();
        state[128 + 0x48..128 + 0x50].copy_from_slice(&((1_u64 << 36) - 0x2000).to_le_bytes());
        let set =
            bench.vm.set_state(0, &mut bench.states[0], StateKind::NESTED_STATE, &state, &mut bench.host);
        assert_eq!(set, Ok(()), "{kvm}");
        let mut run = || bench.vm.enter(0, &mut bench.states[0], &mut bench.host);
        let first = run();
        assert_eq!((first.kind, first.data[..2].to_vec()), (ResumeKind::INTERNAL_ERROR, vec![1, 0]), "{kvm}");
        assert_eq!(run().kind == ResumeKind::INTERNAL_ERROR, again, "{kvm}");
    }
}
