//! Addresses that a 4-level nested page table cannot map.

use super::bench::*;

const WIDE: u64 = 1 << 48;

#[test]
fn a_slot_that_four_levels_cannot_reach_faults_for_ever() {
    // See: KVM mmu/mmu.c kvm_tdp_mmu_page_fault(): an entry is installed for the frame's lower bits, nothing is emulated.
    let mut bench = Setup { guest_width: 52, host_width: 52, pte: WIDE | 7, ..Default::default() }.build();
    bench.add_slot(1, WIDE, SECOND_RAM, RAM).unwrap();
    bench.enter(0);
    let (end, exits) = bench.run(READ, false);
    assert_eq!(end, End::Loop);
    let endless = exits.last().unwrap();
    // What silicon reports is unverified; the bit for a present entry would make KVM look at permissions instead.
    assert_eq!((endless.info1, endless.info2), (0x1_0000_0004, WIDE));
    assert!(exits.iter().filter(|exit| exit.info2 == WIDE).count() > 16);
}

#[test]
fn the_exits_that_were_proposed_end_it_at_once() {
    const UNEXPECTED_EXIT_REASON: u64 = 4;
    for (patch, expected) in [
        ("+early-internal-error-exit", End::InternalError(UNEXPECTED_EXIT_REASON)),
        ("+early-memory-fault-exit", End::MemoryFault(WIDE)),
    ] {
        let options = &[(patch, "")];
        let mut bench =
            Setup { options, guest_width: 52, host_width: 52, pte: WIDE | 7, ..Default::default() }.build();
        bench.add_slot(1, WIDE, SECOND_RAM, RAM).unwrap();
        bench.enter(0);
        assert_eq!(bench.run(READ, false).0, expected, "{patch}");
    }
}

#[test]
fn without_a_slot_it_is_mmio_every_time() {
    let mut bench = Setup { guest_width: 52, host_width: 52, pte: WIDE | 7, ..Default::default() }.build();
    for _ in 0..2 {
        let (end, exits) = bench.run(READ, false);
        assert_eq!(end, End::Mmio(WIDE));
        assert_eq!(exits.last().unwrap().info1, 0x1_0000_0004);
    }
}

#[test]
fn shadow_paging_maps_it() {
    let setup = Setup { npt: false, guest_width: 52, host_width: 52, pte: WIDE | 7, ..Default::default() };
    let mut bench = setup.build();
    bench.add_slot(1, WIDE, SECOND_RAM, RAM).unwrap();
    bench.enter(0);
    assert_eq!(bench.run(READ, false).0, End::Mapped(RAM));
}
