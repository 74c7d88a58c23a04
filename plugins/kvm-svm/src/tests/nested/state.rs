//! KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE, by bytes and by KVM's errors in order.

use super::*;
use crate::kvm::nested::{pat, vmcb12};
use vmtape_abi::Errno;
use vmtape_arch::state::StateKind;

const L1_PAT: u64 = 0x0007_0406_0007_0404;
const L2_PAT: u64 = 0x0606_0606_0606_0606;
const INVALID: u64 = 0x0808_0808_0808_0808;
const GUEST_MODE: u16 = 1;
const RUN_PENDING: u16 = 2;
const GIF_SET: u16 = 0x100;
const PAGE: usize = 128;
const MERGED: &[(&str, &str)] = &[("kvm", "v7.2"), ("nested_svm_shared_pat", "0")];

impl Bench {
    fn nested_state(&mut self) -> Vec<u8> {
        self.vm.get_state(0, &mut self.states[0], StateKind::NESTED_STATE, &mut self.host).unwrap()
    }

    fn set_nested_state(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.vm.set_state(0, &mut self.states[0], StateKind::NESTED_STATE, bytes, &mut self.host)
    }
}

/// A vCPU in L2 whose vmcb12 lies at 0x3000.
fn in_l2(options: &[(&str, &str)]) -> Bench {
    let mut bench = l1(options, true);
    let state = bench.state();
    (state.pat, state.kernel_gs_base) = (L1_PAT, 0x4444);
    let vcpu = &mut bench.vm.vcpus[0];
    let save = &mut vcpu.vmcb01.vmcb.save;
    (save.efer, save.cr0, save.cr4, save.cr3) = (0x1500, 0x8000_0001, 0x20, 0x5000);
    (save.rip, save.rflags, save.g_pat) = (0x401467, 0x202, L1_PAT);
    let mut wanted = vmcb12();
    wanted.save.g_pat = L2_PAT;
    let view = L1::new(&bench.vm.shared, &vcpu.core.cpuid);
    vcpu.nested.vmcb12 = vmcb12::cache(&view, &wanted);
    pat::load(&view, &mut vcpu.nested, L1_PAT, Default::default());
    vcpu.core.guest_mode = true;
    vcpu.nested.vmcb12_gpa = 0x3000;
    bench
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

/// The bytes of a vCPU in L1, and in L2.
#[test]
fn layout() {
    for kvm in RELEASES {
        let idle = l1(&[("kvm", kvm)], true).nested_state();
        let mut expected = vec![0; 128];
        (expected[1], expected[2], expected[4]) = (1, 1, 128);
        assert_eq!(idle, expected, "{kvm}");

        let bytes = in_l2(&[("kvm", kvm)]).nested_state();
        assert_eq!(bytes.len(), 4224, "{kvm}");
        assert_eq!(
            [u16_at(&bytes, 0), u16_at(&bytes, 2), u16_at(&bytes, 4)],
            [GUEST_MODE | GIF_SET, 1, 4224]
        );
        assert_eq!([u64_at(&bytes, 8), u64_at(&bytes, 16)], [0x3000, 0], "{kvm}");
        assert!(bytes[24..PAGE].iter().all(|byte| *byte == 0));
        // VMCB offsets: ASID, nCR3, RIP, CR3; and of what VMLOAD loads KERNEL_GS_BASE, which 5.10 leaves out.
        let at = |offset: usize| u64_at(&bytes, PAGE + offset);
        assert_eq!([at(0x58), at(0xb0), at(0x578), at(0x550)], [1, 0x1000, 0x401467, 0x5000], "{kvm}");
        assert_eq!(at(0x620), if kvm == "v5.10" { 0 } else { 0x4444 }, "{kvm}");
    }
}

/// What KVM gives, it takes, and gives again.
#[test]
fn there_and_back() {
    for kvm in RELEASES.into_iter().chain(["gpat-v1-series", "gpat-v2-series", "gpat-v3-series"]) {
        let mut from = in_l2(&[("kvm", kvm)]);
        from.vm.vcpus[0].nested.run_pending = true;
        let bytes = from.nested_state();
        assert_eq!(u16_at(&bytes, 0) & RUN_PENDING, RUN_PENDING);
        let mut to = l1(&[("kvm", kvm)], true);
        (to.state().kernel_gs_base, to.state().pat) = (0x4444, from.state().pat);
        to.vm.vcpus[0].vmcb01.vmcb.save.g_pat = L1_PAT;
        assert_eq!(to.set_nested_state(&bytes), Ok(()), "{kvm}");
        assert_eq!(to.nested_state(), bytes, "{kvm}");
        assert!(to.vm.vcpus[0].core.guest_mode);
        let idle = l1(&[("kvm", kvm)], true).nested_state();
        assert_eq!(to.set_nested_state(&idle), Ok(()));
        assert!(!to.vm.vcpus[0].core.guest_mode && to.nested_state() == idle, "{kvm}");
    }
}

/// Each condition that KVM_SET_NESTED_STATE refuses, in its order: a state with the fault of a row and of all later ones fails,
/// without the row's fault it goes on to the next.
#[test]
fn errors() {
    fn put(bytes: &mut [u8], at: usize, value: u64) {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    type Edit = fn(&mut Vec<u8>);
    let rows: &[(&str, Edit, Errno)] = &[
        ("header", |b| b.truncate(127), Errno::EFAULT),
        ("size", |b| b[4..8].copy_from_slice(&127_u32.to_le_bytes()), Errno::EINVAL),
        ("unknown flag", |b| b[0] |= 0x10, Errno::EINVAL),
        ("run pending without guest mode", |b| b[0] = 2, Errno::EINVAL),
        ("format", |b| b[2] = 0, Errno::EINVAL),
        ("flag of VMX", |b| b[0] |= 8, Errno::EINVAL),
        ("unaligned vmcb12", |b| b[8] = 1, Errno::EINVAL),
        ("vmcb12 beyond the width", |b| put(b, 8, 1 << WIDTH), Errno::EINVAL),
        ("size in guest mode", |b| b[4..8].copy_from_slice(&4223_u32.to_le_bytes()), Errno::EINVAL),
        ("data", |b| b.truncate(4223), Errno::EFAULT),
        ("controls", |b| put(b, PAGE + 0x58, 0), Errno::EINVAL),
        ("L1 without paging", |b| put(b, PAGE + 0x558, 1), Errno::EINVAL),
        ("L1 without SVME", |b| put(b, PAGE + 0x4d0, 0x500), Errno::EINVAL),
    ];
    for kvm in RELEASES {
        let good = in_l2(&[("kvm", kvm)]).nested_state();
        for (what, edit, errno) in rows {
            let mut bench = l1(&[("kvm", kvm)], true);
            let mut bytes = good.clone();
            edit(&mut bytes);
            assert_eq!(bench.set_nested_state(&bytes), Err(*errno), "{kvm}: {what}");
            assert!(!bench.vm.vcpus[0].core.guest_mode, "{kvm}: {what}");
        }
        // Since 6.1: L1 in protected mode, without VM86.
        for (offset, value) in [(0x558, 0x8000_0000), (0x570, 1 << 17 | 2)] {
            let mut bytes = good.clone();
            put(&mut bytes, PAGE + offset, value);
            let set = l1(&[("kvm", kvm)], true).set_nested_state(&bytes);
            assert_eq!(set.is_ok(), kvm == "v5.10", "{kvm} {offset:#x}");
        }
        // CR0 of L2.
        let mut bench = l1(&[("kvm", kvm)], true);
        bench.state().cr0 |= 1 << 29;
        assert_eq!(bench.set_nested_state(&good), Err(Errno::EINVAL), "{kvm}");
        // L2's CR3 is looked at last, in guest mode already.
        let mut bench = l1(&[("kvm", kvm)], true);
        bench.state().cr3 = 1 << WIDTH;
        let refused = bench.set_nested_state(&good) == Err(Errno::EINVAL);
        assert_eq!((refused, bench.vm.vcpus[0].core.guest_mode), (kvm != "v5.10", true), "{kvm}");
    }
}

/// With EFER.SVME=0 only GIF=1 is taken, and since 7.2 GIF=0 too.
#[test]
fn without_svme() {
    for (kvm, flags, taken) in [
        ("v6.12", GIF_SET, true),
        ("v6.12", 0, false),
        ("v7.2", 0, true),
        ("v7.2", GIF_SET | GUEST_MODE, false),
    ] {
        let mut bench = l1(&[("kvm", kvm)], true);
        bench.state().efer &= !(1 << 12);
        let mut bytes = l1(&[("kvm", kvm)], true).nested_state();
        bytes[..2].copy_from_slice(&flags.to_le_bytes());
        assert_eq!(bench.set_nested_state(&bytes).is_ok(), taken, "{kvm} {flags:#x}");
    }
}

/// nested=0: refused since 7.2.9 only, and the capability's size with it.
#[test]
fn without_nested() {
    for (kvm, taken, size) in [("v6.12", true, 4224), ("v7.2", false, 0)] {
        let mut bench = l1(&[("kvm", kvm), ("nested", "0")], true);
        let bytes = l1(&[("kvm", kvm)], true).nested_state();
        assert_eq!(bench.set_nested_state(&bytes).is_ok(), taken, "{kvm}");
        let Bench { vm, states, host } = &mut bench;
        let got = vm.get_state(0, &mut states[0], StateKind::NESTED_STATE, host);
        assert_eq!(got, if taken { Ok(bytes[..128].to_vec()) } else { Err(Errno::EINVAL) }, "{kvm}");
        assert_eq!(bench.vm.check_extension(157), size, "{kvm}");
    }
}

/// Scenarios 8 to 11: where gPAT is in saved state, and what each KVM makes of the others'.
#[test]
fn gpat() {
    let header = |options| {
        let bytes = in_l2(options).nested_state();
        [u64_at(&bytes, 16), u64_at(&bytes, 24), u64_at(&bytes, PAGE + 0x668)]
    };
    assert_eq!(header(&[("kvm", "v6.12")]), [0, 0, L1_PAT]);
    assert_eq!(header(&[("kvm", "v7.2")]), [0, 0, L1_PAT]);
    assert_eq!(header(MERGED), [L2_PAT, 0, L1_PAT]);
    assert_eq!(header(&[("kvm", "gpat-v3-series")]), [1, L2_PAT, L1_PAT]);
    assert_eq!(header(&[("kvm", "gpat-v2-series")]), [1, 0, L2_PAT]);
    assert_eq!(header(&[("kvm", "gpat-v1-series")]), [1, 0, L1_PAT]);

    // 9: an invalid gPAT is refused where it means something.
    for (options, taken) in [(MERGED, false), (&[("kvm", "v7.2")][..], true), (&[("kvm", "v6.12")], true)] {
        let mut bytes = in_l2(MERGED).nested_state();
        bytes[16..24].copy_from_slice(&INVALID.to_le_bytes());
        assert_eq!(l1(options, true).set_nested_state(&bytes).is_ok(), taken, "{options:?}");
    }

    // 10: an old checkpoint has no gPAT: 0, which is one.
    let old = in_l2(&[("kvm", "v6.12")]).nested_state();
    let restored = |options, bytes: &[u8]| {
        let mut bench = l1(options, true);
        bench.state().pat = L1_PAT;
        bench.set_nested_state(bytes).unwrap();
        bench.vm.vcpus[0].nested.vmcb02.vmcb.save.g_pat
    };
    assert_eq!(restored(MERGED, &old), 0);
    assert_eq!(restored(&[("kvm", "v7.2")], &old), L1_PAT);
    // A new checkpoint on an old KVM: gPAT is lost.
    assert_eq!(restored(&[("kvm", "v6.12")], &in_l2(MERGED).nested_state()), L1_PAT);
    // A VMM that copies the header field by field, and knows vmcb_pa alone, loses it too.
    let mut copied = in_l2(MERGED).nested_state();
    copied[16..PAGE].fill(0);
    assert_eq!(restored(MERGED, &copied), 0);
    // The merged form reads the flags of a posted one as gPAT, and v3 takes any gPAT with bit 0 for its flag.
    assert_eq!(restored(MERGED, &in_l2(&[("kvm", "gpat-v3-series")]).nested_state()), 1);
}

/// 11: without the flag gPAT follows IA32_PAT until KVM_RUN, in v3; v2 takes it at KVM_RUN.
#[test]
fn legacy_gpat_semantics() {
    const LATER: u64 = 0x0505_0505_0505_0505;
    let old = in_l2(&[("kvm", "v6.12")]).nested_state();
    for (kvm, before_run) in [("gpat-v3-series", LATER), ("gpat-v2-series", 0x0007_0406_0007_0406)] {
        let mut bench = l1(&[("kvm", kvm)], true);
        bench.state().pat = L1_PAT;
        bench.set_nested_state(&old).unwrap();
        bench.vm.set_msr(0, &mut bench.states[0], 0x277, LATER, &mut bench.host).unwrap();
        let gpat = |bench: &Bench| bench.vm.vcpus[0].nested.vmcb02.vmcb.save.g_pat;
        assert_eq!(gpat(&bench), before_run, "{kvm}");
        let pat = bench.state().pat;
        pat::pre_run(&mut bench.vm.vcpus[0], pat);
        assert_eq!(gpat(&bench), LATER, "{kvm}");
        bench.vm.set_msr(0, &mut bench.states[0], 0x277, L1_PAT, &mut bench.host).unwrap();
        assert_eq!((gpat(&bench), bench.state().pat), (LATER, L1_PAT), "{kvm}");
    }
}

/// The forms that saved state has, by who saves it.
const FORMS: [(&str, &[(&str, &str)]); 8] = [
    ("5.10", &[("kvm", "v5.10")]),
    ("6.1", &[("kvm", "v6.1")]),
    ("6.12", &[("kvm", "v6.12")]),
    ("7.2", &[("kvm", "v7.2")]),
    ("7.2 without the quirk", MERGED),
    ("v1", &[("kvm", "gpat-v1-series")]),
    ("v2", &[("kvm", "gpat-v2-series")]),
    ("v3", &[("kvm", "gpat-v3-series")]),
];

/// From each form to each: every one takes the others' state, and these are the pairs after which L2 has another PAT than before.
#[test]
fn every_pair() {
    // gPAT that L2 finds, by rows of who saved it; the VMM restores IA32_PAT as it read it.
    let kept = |from: usize, to: usize| match (from, to) {
        // Who shares the PAT has none of L2's to save, and none to lose.
        (0..=3, 0..=3) => Some(L1_PAT),
        // Bytes 16 to 23 are zero, and mean gPAT.
        (0..=3, 4) => Some(0),
        // No flag: IA32_PAT, which v2 takes at KVM_RUN.
        (0..=3, 5..) => Some(L1_PAT),
        // The header's second word means nothing, and IA32_PAT is L1's; of v1 it is L2's.
        (4 | 6 | 7, 0..=3) => Some(L1_PAT),
        (5, 0..=3) => Some(L2_PAT),
        (4, 4) | (5, 5) | (6, 6) | (7, 7) => Some(L2_PAT),
        // The flag, taken for gPAT.
        (5..=7, 4) => Some(1),
        // gPAT, taken for flags: bit 0 of this one is clear, so it is lost.
        (4, _) => Some(L1_PAT),
        // The flag is there and gPAT is elsewhere: L1's PAT or L2's in the saved VMCB, or none in the header.
        (5, 6) | (7, 6) => Some(L1_PAT),
        (5 | 6, 7) => Some(0),
        // v1 takes IA32_PAT for gPAT, and L1's PAT from the saved VMCB, where v2 has L2's.
        (6 | 7, 5) => Some(L1_PAT),
        _ => None,
    };
    for (from, (saver, options)) in FORMS.iter().enumerate() {
        let mut old = in_l2(options);
        let state = old.nested_state();
        let pat = old.vm.get_msr(0, &mut old.states[0], 0x277, &mut old.host).unwrap();
        for (to, (restorer, options)) in FORMS.iter().enumerate() {
            let mut new = l1(options, true);
            new.vm.set_msr(0, &mut new.states[0], 0x277, pat, &mut new.host).unwrap();
            assert_eq!(new.set_nested_state(&state), Ok(()), "{saver} to {restorer}");
            let hpat = new.state().pat;
            pat::pre_run(&mut new.vm.vcpus[0], hpat);
            let gpat = new.vm.vcpus[0].nested.vmcb02.vmcb.save.g_pat;
            assert_eq!(Some(gpat), kept(from, to), "{saver} to {restorer}");
        }
    }
}
