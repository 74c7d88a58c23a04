//! L2 on another machine, under the same and other releases: its state by KVM's ioctls, and that it goes on to its next exit.

use super::{RELEASES, l1};
use crate::tests::{
    bench::{Bench, RAM},
    l2::{AFTER, L2_RIP, VMCB12, World},
};
use proptest::prelude::*;
use vmtape_abi::{Backend, Errno, MemoryRegion};
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
    // Of memory what KVM looks at: vmcb12.
    let page = VMCB12 as usize..VMCB12 as usize + 0x1000;
    bench.host.memory[page.clone()].copy_from_slice(&from.bench.host.memory[page]);
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

/// Pages that KVM writes for L1 are in the dirty log: a `vmcb12` is from VMRUN on, until 7.2 writes it at #VMEXIT only.
#[test]
fn dirty_pages() {
    for (kvm, by_vmrun) in [("v6.1", true), ("v6.12", true), ("v7.2", false)] {
        let mut world = World::new(&[("kvm", kvm)], true, |_| ());
        let Bench { vm, host, .. } = &mut world.bench;
        let logged = MemoryRegion { slot: 0, flags: 1, gpa: 0, size: RAM, hpa: 0 };
        vm.set_memory_region(&logged, host).unwrap();
        let dirty = |world: &mut World| {
            let Bench { vm, host, .. } = &mut world.bench;
            let bits = vm.get_dirty_log(0, host).unwrap();
            bits[(VMCB12 >> 12) as usize / 64] >> (VMCB12 >> 12 & 63) & 1 != 0
        };
        assert!(!dirty(&mut world));
        world.vmrun();
        assert_eq!(dirty(&mut world), by_vmrun, "{kvm}");
        world.enter();
        world.vmmcall();
        assert!(dirty(&mut world), "{kvm}");
        // One that fails is told at once.
        let mut refused = World::new(&[("kvm", kvm)], true, |vmcb| vmcb.control.asid = 0);
        let Bench { vm, host, .. } = &mut refused.bench;
        vm.set_memory_region(&logged, host).unwrap();
        refused.vmrun();
        assert!(dirty(&mut refused), "{kvm}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() })]

    /// Damaged nested state is taken or refused, and what is taken runs, fails or exits: no panic, no hang.
    #[test]
    fn damaged_state(
        release in prop::sample::select(&RELEASES[..]),
        damage in prop::collection::vec((prop::sample::select(&PLACES[..]), any::<u64>(), 0..65_u32), 1..6),
        len in prop::sample::select(&[0_usize, 1, 127, 128, 129, 4223, 4224, 4224, 4224, 8192][..]),
    ) {
        let mut old = World::new(&[("kvm", release)], true, |_| ());
        old.vmrun();
        let bench = &mut old.bench;
        let kind = StateKind::NESTED_STATE;
        let mut state = bench.vm.get_state(0, &mut bench.states[0], kind, &mut bench.host).unwrap();
        for (at, value, shift) in damage {
            let word = u64::from_le_bytes(state[at..at + 8].try_into().unwrap());
            let changed = word ^ value.checked_shl(shift).unwrap_or(0);
            state[at..at + 8].copy_from_slice(&changed.to_le_bytes());
        }
        state.resize(len, 0xff);
        let set = bench.vm.set_state(0, &mut bench.states[0], kind, &state, &mut bench.host);
        prop_assert!(matches!(set, Ok(()) | Err(Errno::EINVAL | Errno::EFAULT)), "{:?}", set);
        let again = bench.vm.get_state(0, &mut bench.states[0], kind, &mut bench.host).unwrap();
        prop_assert!(again.len() == 128 || again.len() == 4224);
        bench.vm.enter(0, &mut bench.states[0], &mut bench.host);
        bench.vm.enter(0, &mut bench.states[0], &mut bench.host);
    }
}

/// Words of the header, of the controls, and of L1's registers, by their offset in the state.
const PLACES: [usize; 20] = [
    0,
    8,
    16,
    24,
    128,
    128 + 0x10,
    128 + 0x40,
    128 + 0x48,
    128 + 0x50,
    128 + 0x58,
    128 + 0x60,
    128 + 0x90,
    128 + 0xa8,
    128 + 0xb0,
    128 + 0xb8,
    128 + 0x4d0,
    128 + 0x548,
    128 + 0x550,
    128 + 0x558,
    128 + 0x578,
];
