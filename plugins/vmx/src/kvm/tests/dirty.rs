//! Page-modification logging through the exits of `kvm_intel`.

use crate::testing::{DATA, Ended, Guest, MEMORY, PTE, silicon};
use vmtape_abi::{Backend, Host, MemoryRegion};
use vmtape_arch::{
    access::AccessKind,
    exit::{Resume, VmxReason},
};

fn set_flags(guest: &mut Guest, flags: u32) {
    let region = MemoryRegion { slot: 0, flags, gpa: 0, size: MEMORY, hpa: 0 };
    guest.vm.set_memory_region(&region, &mut guest.host).unwrap();
    guest.host.notes.clear();
}

/// Whether the log of slot 0 has the page at an address.
fn is_logged(guest: &mut Guest, gpa: u64) -> bool {
    let mmu = &mut guest.vm.shared.kvm.mmu;
    let bits = mmu.get_dirty_log(0, &mut guest.host).unwrap();
    bits[(gpa >> 18) as usize] >> (gpa >> 12 & 63) & 1 != 0
}

#[test]
fn writes_are_logged_without_an_exit_only_by_page_modification_logging() {
    for (options, expected) in [
        (&[][..], Ended::Mapped),
        // A guest's table is written by the walk, where EPT has dirty bits, and the fault is the table's.
        (&[("pml", "off")], Ended::Exit(VmxReason::EPT_VIOLATION, 0xab)),
        (&[("eptad", "off")], Ended::Exit(VmxReason::EPT_VIOLATION, 0x1aa)),
    ] {
        let mut guest = Guest::new(silicon(46), 46, options);
        guest.populate();
        set_flags(&mut guest, 1);
        assert_eq!(guest.access(AccessKind::WRITE, false), expected, "{options:?}");
        guest.populate();
        assert!(is_logged(&mut guest, DATA), "{options:?}");
        assert!(!is_logged(&mut guest, DATA), "{options:?}");
    }
}

#[test]
fn a_full_log_exits_and_every_exit_drains_it() {
    let mut guest = Guest::new(silicon(46), 46, &[]);
    guest.populate();
    set_flags(&mut guest, 1);
    let mut full = 0;
    for page in 0..600u64 {
        // Another page behind the same linear address, mapped before it is logged.
        guest.host.write(PTE, &(page << 12 | 0x67).to_le_bytes());
        loop {
            match guest.access(AccessKind::WRITE, false) {
                Ended::Mapped => break,
                Ended::Exit(VmxReason::PML_FULL, 0) => full += 1,
                Ended::Exit(VmxReason::EPT_VIOLATION, _) => {}
                other => panic!("{other:?}"),
            }
            assert_eq!(guest.handle(), Resume::GUEST);
        }
    }
    assert_eq!(full, 0, "each new page exits, and that drains the log");
    let first = guest.vm.shared.kvm.mmu.get_dirty_log(0, &mut guest.host).unwrap();
    assert!(first[..9].iter().all(|word| *word == u64::MAX));
    for page in 0..600u64 {
        guest.host.write(PTE, &(page << 12 | 0x67).to_le_bytes());
        while let Ended::Exit(reason, 0) = guest.access(AccessKind::WRITE, false) {
            assert_eq!(reason, VmxReason::PML_FULL);
            full += 1;
            assert_eq!(guest.handle(), Resume::GUEST);
        }
    }
    assert_eq!(full, 1);
    assert!(is_logged(&mut guest, 0) && !is_logged(&mut guest, 0));
}
