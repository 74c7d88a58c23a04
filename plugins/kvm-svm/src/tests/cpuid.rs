//! Shadow pages that outlive the CPUID under which they were built.

use super::bench::*;
use vmtape_abi::Errno;

/// A page that a guest with 40 bits may map and one with 36 may not.
const LEAF: u64 = BIT36 | 7;
/// The last release that accepts any KVM_SET_CPUID2 after KVM_RUN, in silence.
const ACCEPTS: (&str, &str) = ("kvm", "v5.10");
const ROLE: (&str, &str) = ("+role-has-cpuid", "");

/// A guest told 46 bits that has mapped a page of the slot beyond 36 bits.
fn mapped(npt: bool, options: &[(&str, &str)]) -> Bench {
    let mut bench = Setup { npt, options, guest_width: 46, pte: LEAF, ..Default::default() }.build();
    bench.add_slot(1, BIT36, SECOND_RAM, RAM).unwrap();
    bench.enter(0);
    assert_eq!(bench.run(READ, false).0, End::Mapped(RAM));
    bench
}

#[test]
fn vcpus_share_shadow_pages_even_across_widths() {
    // The page role holds nothing of CPUID: a narrower vCPU with the same CR3 meets what a wider one built.
    // See: KVM mmu/mmu.c kvm_mmu_after_set_cpuid(), commit 63f5a1909f9e
    let mut bench = mapped(false, &[]);
    let narrow = bench.add_vcpu(36);
    let (end, exits) = bench.run_at(narrow, GVA, READ, false);
    assert_eq!((end, exits.len()), (End::Mapped(RAM), 0), "a stale page, and no exit to notice it");
    assert_eq!(bench.vm.shared.kvm.mmu.shadow_pages(), 4);
}

#[test]
fn a_role_with_cpuid_keeps_them_apart_at_a_price() {
    let mut bench = mapped(false, &[ROLE]);
    let before = bench.vm.shared.kvm.mmu.shadow_pages();
    let narrow = bench.add_vcpu(36);
    let (end, exits) = bench.run_at(narrow, GVA, READ, false);
    assert_eq!((end, exits.len()), (End::Fault(0x9), 1));
    let alike = bench.add_vcpu(46);
    assert_eq!(bench.run_at(alike, GVA, READ, false).0, End::Mapped(RAM));
    assert_eq!(before, 4, "one for each level");
    assert_eq!(bench.vm.shared.kvm.mmu.shadow_pages(), before + 1, "a root of its own for the narrow one");
    // A third width for which everything is legal doubles all of them.
    let third = bench.add_vcpu(40);
    assert_eq!(bench.run_at(third, GVA, READ, false).0, End::Mapped(RAM));
    assert_eq!(bench.vm.shared.kvm.mmu.shadow_pages(), 2 * before + 1);
}

#[test]
fn write_tracking_counts_in_two_bytes_or_in_four() {
    let frames = (RAM + SECOND_RAM) >> 12;
    let bytes = |npt, options: &[(&str, &str)]| mapped(npt, options).vm.shared.kvm.mmu.gfn_track_bytes();
    assert_eq!(bytes(false, &[]), 2 * frames);
    assert_eq!(bytes(false, &[ROLE]), 4 * frames);
    // Before v5.16 nested paging paid as well. See: KVM commit deae4a10f166
    assert_eq!(bytes(true, &[]), 0);
    assert_eq!(bytes(true, &[("kvm", "v5.15")]), 2 * frames);
    assert_eq!(bytes(true, &[("kvm", "v5.15"), ROLE]), 4 * frames);
}

#[test]
fn a_change_after_the_first_run_meets_stale_pages() {
    for (options, expected) in [(&[ACCEPTS][..], End::Mapped(RAM)), (&[ACCEPTS, ROLE], End::Fault(0x9))] {
        let mut bench = mapped(false, options);
        bench.set_cpuid(0, 36, true).unwrap();
        bench.enter(0);
        assert_eq!(bench.run(READ, false).0, expected, "{options:?}");
    }
}

#[test]
fn page_sizes_are_the_guests_own_only_under_shadow_paging() {
    // See: KVM cpuid.c kvm_vcpu_after_set_cpuid(), about GBPAGES
    for (npt, expected) in [(false, End::Fault(0x9)), (true, End::Mapped(0))] {
        let mut bench = Setup { npt, options: &[ACCEPTS], guest_width: 46, ..Default::default() }.build();
        bench.set_entry(1, 0x87);
        bench.set_cpuid(0, 46, false).unwrap();
        bench.enter(0);
        assert_eq!(bench.run(READ, false).0, expected, "npt={npt}");
    }
}

#[test]
fn nested_paging_does_not_care() {
    for kvm in ["v5.10", "v5.14", "v5.15"] {
        let mut bench = mapped(true, &[("kvm", kvm)]);
        bench.set_cpuid(0, 36, true).unwrap();
        bench.enter(0);
        assert_eq!(bench.run(READ, false).0, End::Mapped(RAM), "{kvm}");
    }
}

#[test]
fn a_refused_change_changes_nothing() {
    for kvm in ["v5.16", "v5.17", "v6.1", "v6.12", "v7.2"] {
        let mut bench = mapped(false, &[("kvm", kvm)]);
        assert_eq!(bench.set_cpuid(0, 36, true), Err(Errno::EINVAL), "{kvm}");
        bench.enter(0);
        assert_eq!(bench.run(READ, false).0, End::Mapped(RAM), "{kvm}");
    }
}

/// What `mmu_role_test`, a selftest that KVM removed, does: a 1 GiB page without a slot is read, CPUID changes, and it is read
/// again. `slot`: a memslot is added in between, which outdates MMIO entries.
fn mmu_role_test(npt: bool, options: &[(&str, &str)], width: u8, gbpages: bool, slot: bool) -> End {
    const MMIO: u64 = 0x1_0000_0000;
    let mut bench = Setup { npt, options, guest_width: 46, ..Default::default() }.build();
    bench.set_entry(1, MMIO | 0x87);
    assert_eq!(bench.run(READ, false).0, End::Mmio(MMIO));
    bench.set_cpuid(0, width, gbpages).unwrap();
    if slot {
        bench.add_slot(10, MMIO << 1, 0x1000, RAM).unwrap();
    }
    bench.enter(0);
    bench.run(READ, false).0
}

#[test]
fn mmio_entries_outlive_cpuid_until_their_generation_ends() {
    const MMIO: End = End::Mmio(0x1_0000_0000);
    // MAXPHYADDR 32 makes the address illegal, no GBPAGES the page size.
    for (width, gbpages) in [(32, true), (46, false)] {
        let test = |npt, options: &[_], slot| mmu_role_test(npt, options, width, gbpages, slot);
        assert_eq!(test(false, &[ACCEPTS], true), End::Fault(0x9), "as the selftest expects");
        assert_eq!(test(false, &[ACCEPTS], false), MMIO, "a reused MMIO entry");
        assert_eq!(test(false, &[ACCEPTS, ROLE], false), End::Fault(0x9));
        assert_eq!(test(true, &[ACCEPTS], true), MMIO, "silicon walks with its own width and page sizes");
    }
}
