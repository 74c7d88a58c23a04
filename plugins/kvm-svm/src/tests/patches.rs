//! What the postings of 2020 would have made of a narrow guest under nested paging.

use super::bench::*;
use vmtape_abi::Backend;

const ILLEGAL: u64 = DATA | BIT36;
/// The second posting, as it was applied for the recording `patched-npfcheck-npt1`, and whole.
const V2_NPF: &[(&str, &str)] = &[("+v2-npf-emulate", "")];
const V2: &[(&str, &str)] =
    &[("+v2-npf-emulate", ""), ("+v2-svm-need-pf-intercept", ""), ("+v2-svm-pf-fixup", "")];

#[test]
fn the_second_posting_emulates_but_cannot_take_the_accessed_bit_back() {
    // kvm-unit-tests prints of this access: `FAIL: pte 2000021 expected 2000001`.
    let mut bench = Setup { options: V2_NPF, pde: pde(1), pte: ILLEGAL | 1, ..Default::default() }.build();
    let (end, exits) = bench.run(READ, false);
    assert_eq!(end, End::Fault(0x9));
    assert_eq!((bench.pte(), bench.entry(2)), (0x10_0200_0021, pde(1) | ACCESSED));
    let last = exits.last().unwrap();
    assert_eq!((last.info1, last.info2), (0x1_0000_0004, 0x10_0200_0000));
}

#[test]
fn on_silicon_that_waits_with_its_bits_the_second_posting_would_have_been_right() {
    for (kind, code) in [(READ, 0xd), (WRITE, 0xf)] {
        let options = &[V2[0], V2[1], V2[2], ("-amd-accessed-before-npf", "")];
        let mut bench = Setup { options, pte: ILLEGAL | 7, ..Default::default() }.build();
        assert_eq!(bench.run(kind, true).0, End::Fault(code));
        assert_eq!(bench.pte(), ILLEGAL | 7);
    }
}

#[test]
fn a_write_leaves_its_dirty_bit_too() {
    let mut bench = Setup { options: V2_NPF, pte: ILLEGAL | 7, ..Default::default() }.build();
    assert_eq!(bench.run(WRITE, true).0, End::Fault(0xf));
    assert_eq!(bench.pte(), ILLEGAL | 7 | ACCESSED | DIRTY);
}

#[test]
fn a_table_beyond_the_guests_width_faults_exactly() {
    let mut bench = Setup { options: V2_NPF, pde: pde(7) | BIT36, ..Default::default() }.build();
    assert_eq!(bench.run(READ, false).0, End::Fault(0x9));
}

#[test]
fn the_interception_of_page_faults_adds_what_silicon_could_not_know() {
    let cases = [
        (ILLEGAL | 1, true, false, WRITE, false, 0x3, 0xb),
        (ILLEGAL | 1, false, false, READ, true, 0x5, 0xd),
        (ILLEGAL | 1 | NX, false, true, FETCH, false, 0x11, 0x19),
        // Already right: not present, reserved for the host too, a plain permission fault.
        (ILLEGAL | 6, false, false, READ, false, 0x0, 0x0),
        (DATA | 7 | 1 << 51, false, false, READ, false, 0x9, 0x9),
        (DATA | 1, false, false, READ, true, 0x5, 0x5),
    ];
    for (pte, wp, nxe, kind, user, silicon, whole) in cases {
        for (options, expected) in [(V2_NPF, silicon), (&V2[..2], silicon), (V2, whole)] {
            let mut bench = Setup { options, pte, ..Default::default() }.build();
            let state = bench.state();
            state.cr0 = state.cr0().with_wp(wp).into_bits();
            state.efer = state.efer().with_nxe(nxe).into_bits();
            assert_eq!(bench.run(kind, user).0, End::Fault(expected), "pte {pte:#x} {kind}");
            assert_eq!(bench.pte(), pte, "silicon's own fault leaves the leaf alone");
        }
    }
}

#[test]
fn page_faults_are_intercepted_for_narrow_guests_alone() {
    for (guest_width, expected) in [(36, true), (46, false)] {
        let bench = Setup { options: V2, guest_width, ..Default::default() }.build();
        assert_eq!(bench.intercepts_page_faults(), expected, "{guest_width} bits");
    }
    // KVM_SET_CPUID2 decides anew. See: KVM cpuid.c kvm_vcpu_after_set_cpuid()
    let options = &[("kvm", "v5.10"), V2[0], V2[1], V2[2]];
    let mut bench = Setup { options, ..Default::default() }.build();
    bench.set_cpuid(0, 46, true).unwrap();
    assert!(!bench.intercepts_page_faults());
    bench.set_cpuid(0, 40, true).unwrap();
    assert!(bench.intercepts_page_faults());
}

#[test]
fn the_first_posting_injects_what_no_cpu_raises() {
    for options in [&[("kvm", "v1-series")][..], &[("+v1-npf-check", ""), ("+v1-rsvd-pf", "")]] {
        let mut bench = Setup { options, pde: pde(1), pte: ILLEGAL | 1, ..Default::default() }.build();
        assert_eq!(bench.run(READ, false).0, End::FaultAt(0x8, 0x10_0200_0000));
        assert_eq!(bench.pte(), ILLEGAL | 1 | ACCESSED);
        assert!(!bench.intercepts_page_faults());
    }
}

#[test]
fn the_patches_do_not_concern_shadow_paging_or_legal_addresses() {
    let mut bench = Setup { options: V2, pte: 0x3000_0000 | 7, ..Default::default() }.build();
    assert_eq!(bench.run(READ, false).0, End::Mmio(0x3000_0000));
    assert_eq!(bench.vm.check_extension(185), 0);
}
