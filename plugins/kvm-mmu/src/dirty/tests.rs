//! Dirty logging in KVM's words, on nested tables of both formats. Errnos: KVM Documentation/virt/kvm/api.rst 4.8, 4.117, 8.29.

use super::{DirtyRules, Ring};
use crate::{
    fault::{FaultCode, Handled},
    fault_points::FaultPoint,
    memory_type::Caching,
    mmu::{Config, Mmu},
    spte::Format,
    tdp::silicon::{GuestAccess, NestedFault},
    walk::WalkAccess,
};
use vmtape_abi::{Errno, MemoryRegion};
use vmtape_arch::{access::AccessKind, msr::PAT_POWER_ON, vcpu::VcpuState};
use vmtape_testing::TestHost;

const PAGES: u64 = 1030;
const EPT: Format = Format::Ept { ad: true };
const NPT: Format = Format::X86 { width: 46 };
/// Bytes of a ring of 1024 entries.
const RING: u64 = 0x4000;

/// A VM with paging off in the guest, so that linear addresses are physical ones, and one slot.
struct Bench {
    mmu: Mmu,
    state: VcpuState,
    host: TestHost,
    faults: u32,
}

/// How a write ended before KVM looked at it.
#[derive(Debug, PartialEq, Eq)]
enum Wrote {
    AtOnce,
    LogFull,
    Fault,
}

impl Bench {
    fn new(format: Format, pml: bool) -> Self {
        let dirty = DirtyRules { pml_in_write_order: true, ..DirtyRules::V6_12 };
        let mmu = Mmu::new(Config { pml, dirty, ..Config::for_tests(format) });
        Self { mmu, state: VcpuState::reset(), host: TestHost::new((PAGES << 12) as usize), faults: 0 }
    }

    /// The vCPU, and a slot with these flags.
    fn start(mut self, flags: u32) -> Self {
        self.mmu.create_vcpu(0);
        self.slot(flags);
        self.mmu.reload(0, &self.state, &mut self.host);
        self
    }

    fn slot(&mut self, flags: u32) {
        let region = MemoryRegion { slot: 0, flags, gpa: 0, size: PAGES << 12, hpa: 0 };
        self.mmu.set_memory_region(&region, &mut self.host).unwrap();
    }

    /// One write by the guest, as often as KVM lets it try again.
    fn write(&mut self, gfn: u64) -> Wrote {
        let access = WalkAccess { kind: AccessKind::WRITE, ..Default::default() };
        let mut first = None;
        loop {
            let stop = match self
                .mmu
                .tdp_access(0, &self.state, gfn << 12, &access, Caching::of(PAT_POWER_ON), &mut self.host)
                .0
            {
                GuestAccess::Mapped(mapping) => {
                    assert!(mapping.write, "a mapping that allows writes has its dirty bit");
                    return first.unwrap_or(Wrote::AtOnce);
                }
                GuestAccess::Nested(stop) => stop,
                GuestAccess::Fault(error) => panic!("the guest has no tables: {error:?}"),
            };
            self.mmu.flush_pml(0, &mut self.host);
            if stop.fault == NestedFault::LogFull {
                first.get_or_insert(Wrote::LogFull);
                continue;
            }
            first.get_or_insert(Wrote::Fault);
            self.faults += 1;
            let present = matches!(stop.fault, NestedFault::Violation { read: true, .. })
                || matches!(stop.fault, NestedFault::Npf(error) if error.p());
            let code = FaultCode::new().with_w(true).with_p(present);
            let handled = self.mmu.page_fault(0, &self.state, stop.gpa, code, &mut self.host);
            assert_eq!(handled, Handled::Resume);
        }
    }

    /// KVM_GET_DIRTY_LOG as page numbers.
    fn get(&mut self) -> Vec<u64> {
        let bits = self.mmu.get_dirty_log(0, &mut self.host).unwrap();
        (0..64 * bits.len() as u64)
            .filter(|page| bits[(page / 64) as usize] >> (page % 64) & 1 != 0)
            .collect()
    }

    fn clear(&mut self, first: u64, pages: u32, bits: &[u64]) -> Result<(), Errno> {
        self.mmu.clear_dirty_log(0, first, pages, bits, &mut self.host)
    }
}

/// Format, page-modification logging.
const WAYS: [(Format, bool); 4] =
    [(EPT, true), (EPT, false), (Format::Ept { ad: false }, false), (NPT, false)];

#[test]
fn each_round_tells_of_every_page_written_in_it() {
    for (format, pml) in WAYS {
        let mut bench = Bench::new(format, pml).start(0);
        (0..PAGES).for_each(|gfn| _ = bench.write(gfn));
        bench.slot(1);
        let mut random = 1u64;
        for round in 0..20 {
            let mut written: Vec<u64> = (0..40)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (random >> 33) % PAGES
                })
                .collect();
            written.iter().for_each(|gfn| _ = bench.write(*gfn));
            written.sort_unstable();
            written.dedup();
            assert_eq!(bench.get(), written, "{format:?} pml {pml} round {round}");
        }
    }
}

#[test]
fn only_page_modification_logging_spares_the_fault() {
    for (format, pml) in WAYS {
        let mut bench = Bench::new(format, pml).start(0);
        bench.write(7);
        assert_eq!(bench.write(7), Wrote::AtOnce);
        bench.slot(1);
        assert_eq!(bench.write(7), if pml { Wrote::AtOnce } else { Wrote::Fault }, "{format:?} pml {pml}");
        assert_eq!(bench.write(7), Wrote::AtOnce, "armed once a round");
        assert_eq!(bench.get(), [7]);
        assert_eq!(bench.get(), []);
    }
}

#[test]
fn the_513th_page_finds_the_log_full() {
    let mut bench = Bench::new(EPT, true).start(0);
    (0..PAGES).for_each(|gfn| _ = bench.write(gfn));
    bench.slot(1);
    let full: Vec<u64> = (0..PAGES).filter(|gfn| bench.write(*gfn) == Wrote::LogFull).collect();
    assert_eq!(full, [512, 1024]);
    assert_eq!(bench.get().len() as u64, PAGES);
}

#[test]
fn manual_protection_clears_what_userspace_says() {
    for (format, pml) in WAYS {
        let mut bench = Bench::new(format, pml);
        bench.mmu.enable_manual_protect(0, 1, true).unwrap();
        let mut bench = bench.start(1);
        bench.write(3);
        bench.write(4);
        assert_eq!((bench.get(), bench.get()), (vec![3, 4], vec![3, 4]), "fetching does not clear");
        bench.clear(0, 64, &[1 << 3]).unwrap();
        assert_eq!(bench.get(), [4]);
        bench.write(3);
        assert_eq!(bench.get(), [3, 4], "the page was armed again");
    }
}

#[test]
fn initially_set_protects_at_the_first_clear() {
    for (format, pml) in WAYS {
        let mut bench = Bench::new(format, pml);
        bench.mmu.enable_manual_protect(0, 3, true).unwrap();
        let mut bench = bench.start(0);
        bench.write(3);
        bench.slot(1);
        let faults = bench.faults;
        assert_eq!(bench.write(3), Wrote::AtOnce);
        assert_eq!(bench.faults, faults, "nothing is protected yet");
        assert_eq!(bench.get().len() as u64, PAGES);
        bench.clear(0, PAGES as u32, &[u64::MAX; 17]).unwrap();
        assert_eq!(bench.get(), []);
        bench.write(3);
        assert_eq!(bench.get(), [3]);
    }
}

/// A VM whose memory is backed by pages of 2 MiB, with one of them mapped and written.
fn large(format: Format, pml: bool, rules: DirtyRules) -> Bench {
    let mut bench = Bench::new(format, pml);
    bench.mmu.config.backing_shift = 21;
    bench.mmu.config.dirty = rules;
    let mut bench = bench.start(0);
    bench.write(5);
    assert_eq!(bench.write(6), Wrote::AtOnce, "one large page");
    bench
}

const LAZY: DirtyRules = DirtyRules { eager_page_split: false, ..DirtyRules::V6_12 };

#[test]
fn large_pages_are_split_when_logging_begins_or_by_the_first_write() {
    for (format, pml) in WAYS {
        for eager_page_split in [false, true] {
            let mut bench = large(format, pml, DirtyRules { eager_page_split, ..LAZY });
            bench.slot(1);
            let first = if pml && eager_page_split { Wrote::AtOnce } else { Wrote::Fault };
            for gfn in [5, 6, 511] {
                assert_eq!(bench.write(gfn), first, "{format:?} pml {pml} eager {eager_page_split}");
            }
            assert_eq!(bench.get(), [5, 6, 511]);
            bench.write(6);
            assert_eq!(bench.get(), [6]);
        }
    }
}

#[test]
fn the_first_clear_of_a_log_that_begins_set_splits_what_it_names() {
    let levels = |splits_last| {
        let mut bench = large(NPT, false, DirtyRules { splits_last, ..DirtyRules::V6_12 });
        bench.mmu.enable_manual_protect(0, 3, true).unwrap();
        bench.slot(1);
        let level = |bench: &Bench| if bench.mmu.tdp_leaves(5, 1).count() == 1 { 1 } else { 2 };
        let before = level(&bench);
        // The first page of a large one, which begins no earlier than what is split ends.
        bench.clear(0, 64, &[1]).unwrap();
        let after = level(&bench);
        bench.write(0);
        assert_eq!(bench.get()[0], 0);
        [before, after]
    };
    assert_eq!([levels(false), levels(true)], [[2, 2], [2, 1]]);
}

#[test]
fn large_pages_come_back_when_logging_ends() {
    for (format, pml) in WAYS {
        for recovers_in_place in [false, true] {
            let mut bench = large(format, pml, DirtyRules { recovers_in_place, ..DirtyRules::V6_12 });
            bench.slot(1);
            (0..512).for_each(|gfn| _ = bench.write(gfn));
            assert_eq!(bench.mmu.tdp_leaves(5, 1).count(), 1);
            bench.slot(0);
            let what = format!("{format:?} pml {pml} in place {recovers_in_place}");
            let first = if recovers_in_place { Wrote::AtOnce } else { Wrote::Fault };
            assert_eq!((bench.write(9), bench.write(300)), (first, Wrote::AtOnce), "{what}");
            assert_eq!(bench.mmu.tdp_leaves(5, 2).count(), 1, "{what}");
        }
        // The first page's rights are the large one's.
        let mut bench = large(format, false, DirtyRules { recovers_in_place: true, ..DirtyRules::V6_12 });
        bench.slot(1);
        bench.write(9);
        bench.slot(0);
        assert_eq!((bench.write(9), bench.write(300)), (Wrote::Fault, Wrote::AtOnce));
    }
}

#[test]
fn small_pages_of_the_host_stay_small_when_logging_ends() {
    for (format, pml) in WAYS {
        let mut bench = Bench::new(format, pml).start(1);
        bench.write(9);
        bench.slot(0);
        assert_eq!(bench.write(9), Wrote::AtOnce, "{format:?} pml {pml}");
    }
}

/// What may go wrong between a write and the VMM that hears of it.
#[test]
fn faults_lose_pages() {
    let lossy = |format, pml, point: FaultPoint, answer| {
        let mut bench = Bench::new(format, pml).start(0);
        bench.write(3);
        bench.slot(1);
        bench.mmu.armed = true;
        bench.host.faults = vec![(point.0, answer)];
        bench.write(3);
        let first = bench.mmu.get_dirty_log(0, &mut bench.host).map(|bits| bits[0]);
        assert!(bench.host.faults.is_empty(), "{point}");
        bench.write(3);
        (first, bench.get())
    };
    for (format, pml) in WAYS {
        assert_eq!(lossy(format, pml, FaultPoint::DIRTY_WORD_DROPPED, 1), (Ok(0), vec![3]));
        assert_eq!(lossy(format, pml, FaultPoint::GET_DIRTY_LOG_EFAULT, 14), (Err(Errno::EFAULT), vec![3]));
        assert_eq!(lossy(format, pml, FaultPoint::PROTECT_BEFORE_SNAPSHOT, 3), (Ok(8), vec![]));
        assert_eq!(lossy(format, pml, FaultPoint::PROTECT_FLUSH_SKIPPED, 1), (Ok(8), vec![3]));
        assert_eq!(lossy(format, pml, FaultPoint::SPTE_UPDATE_RACE, 1), (Ok(8), vec![]));
        if !pml {
            assert_eq!(lossy(format, pml, FaultPoint::DIRTY_MARK_LOST, 1), (Ok(0), vec![]));
        }
    }
    assert_eq!(lossy(EPT, true, FaultPoint::PML_NOT_DRAINED, 0), (Ok(0), vec![3]));
    assert_eq!(lossy(EPT, true, FaultPoint::PML_NOT_DRAINED, 1), (Ok(0), vec![]));
}

/// An entry that becomes another frame's in the middle of the fast page fault: the log tells of the wrong page.
#[test]
fn the_fast_page_fault_marks_another_page() {
    for (format, _) in WAYS.into_iter().filter(|(_, pml)| !pml) {
        let mut bench = Bench::new(format, false).start(0);
        bench.slot(1);
        bench.mmu.armed = true;
        bench.write(3);
        assert_eq!(bench.get(), [3]);
        bench.host.faults = vec![(FaultPoint::FAST_PF_ABA.0, 5)];
        bench.write(3);
        assert_eq!((bench.get(), bench.host.faults.len()), (vec![5], 0));
    }
}

#[test]
fn faults_lose_entries_of_rings() {
    let lossy = |point: FaultPoint, answer| {
        let mut bench = Bench::new(NPT, false);
        bench.mmu.enable_dirty_ring(RING).unwrap();
        let mut bench = bench.start(1);
        bench.mmu.armed = true;
        bench.host.faults = vec![(point.0, answer)];
        let mut told = Vec::new();
        for _ in 0..2 {
            bench.write(3);
            told.push(bench.mmu.harvest_dirty_ring(0, &mut bench.host).unwrap().len());
            bench.mmu.reset_dirty_rings(&mut bench.host).unwrap();
        }
        assert!(bench.host.faults.is_empty(), "{point}");
        told
    };
    assert_eq!(lossy(FaultPoint::RING_ENTRY_LOST, 1), [0, 0]);
    assert_eq!(lossy(FaultPoint::RING_SLOT_GONE, 0), [1, 0]);
}

#[test]
fn a_ring_and_a_log_that_begins_set_lose_what_was_mapped_before() {
    let mut bench = Bench::new(NPT, false);
    bench.mmu.enable_manual_protect(0, 3, true).unwrap();
    bench.mmu.enable_dirty_ring(RING).unwrap();
    let mut bench = bench.start(0);
    bench.write(3);
    bench.slot(1);
    assert_eq!(bench.write(3), Wrote::AtOnce, "nothing was protected");
    bench.write(4);
    let harvest = bench.mmu.harvest_dirty_ring(0, &mut bench.host).unwrap();
    assert_eq!(harvest.iter().map(|entry| entry.offset).collect::<Vec<_>>(), [4]);
}

#[test]
fn errnos_are_those_of_the_ioctls() {
    let mut bench = Bench::new(NPT, false).start(0);
    let get = |bench: &mut Bench, slot| bench.mmu.get_dirty_log(slot, &mut bench.host).err();
    assert_eq!(get(&mut bench, 0), Some(Errno::ENOENT), "the slot has no bitmap");
    assert_eq!(get(&mut bench, 9), Some(Errno::ENOENT));
    assert_eq!(get(&mut bench, 1 << 16), Some(Errno::ENOENT), "SMM's address space has no slots");
    assert_eq!(get(&mut bench, 2 << 16), Some(Errno::EINVAL));
    assert_eq!(get(&mut bench, 32764), Some(Errno::EINVAL));
    bench.slot(1);
    let tail = PAGES as u32 - 1024;
    let clears = [
        (1, 64, Some(Errno::EINVAL)),
        (0, 63, Some(Errno::EINVAL)),
        (1088, 0, Some(Errno::EINVAL)),
        (1024, 64, Some(Errno::EINVAL)),
        (1024, tail, None),
        (0, 64, None),
    ];
    for (first, pages, errno) in clears {
        assert_eq!(bench.clear(first, pages, &[0; 2]).err(), errno, "{first} {pages}");
    }
    assert_eq!(bench.clear(0, 128, &[0]).err(), Some(Errno::EFAULT), "a bitmap that is too short");
    bench.mmu.config.dirty.clears_to_end = false;
    assert_eq!(bench.clear(1024, tail, &[0]).err(), Some(Errno::EINVAL), "the tail can never be cleared");
    bench.mmu.config.dirty.clears_to_end = true;
    for (arg, errno) in [(2, Some(Errno::EINVAL)), (4, Some(Errno::EINVAL)), (0, None), (1, None), (3, None)]
    {
        assert_eq!(bench.mmu.enable_manual_protect(0, arg, true).err(), errno, "{arg}");
    }
    assert_eq!(bench.mmu.enable_dirty_ring(RING), Err(Errno::EINVAL), "there is a vCPU");
    assert_eq!(bench.mmu.reset_dirty_rings(&mut bench.host), Err(Errno::EINVAL));
}

#[test]
fn rings_have_sizes() {
    for (bytes, pml, expected) in [
        (0, false, Err(Errno::EINVAL)),
        (0x800, false, Err(Errno::EINVAL)),
        (0x1800, false, Err(Errno::EINVAL)),
        (0x1000, false, Ok(256)),
        (0x2000, true, Err(Errno::EINVAL)),
        (RING, true, Ok(1024)),
        (1 << 20, true, Ok(65_536)),
        (1 << 21, true, Err(Errno::E2BIG)),
    ] {
        assert_eq!(Ring::entries_of(bytes, pml), expected, "{bytes:#x} pml {pml}");
    }
}

#[test]
fn a_ring_fills_is_harvested_and_reset() {
    for (format, pml) in WAYS {
        let mut bench = Bench::new(format, pml);
        bench.mmu.enable_dirty_ring(RING).unwrap();
        assert_eq!(bench.mmu.enable_dirty_ring(RING), Err(Errno::EINVAL), "once only");
        let mut bench = bench.start(1);
        assert_eq!(bench.mmu.get_dirty_log(0, &mut bench.host), Err(Errno::ENXIO));
        let limit = 1024 - if pml { 576 } else { 64 };
        let before = (0..PAGES).take_while(|gfn| {
            bench.write(*gfn);
            !bench.mmu.ring_is_full(0)
        });
        assert_eq!(before.count(), limit - 1, "{format:?} pml {pml}");
        assert_eq!(bench.mmu.reset_dirty_rings(&mut bench.host), Ok(0), "nothing is harvested");
        assert!(bench.mmu.ring_is_full(0), "until a reset makes room");
        let harvest = bench.mmu.harvest_dirty_ring(0, &mut bench.host).unwrap();
        assert!(harvest.iter().map(|entry| entry.offset).eq(0..limit as u64));
        assert_eq!(bench.mmu.reset_dirty_rings(&mut bench.host), Ok(limit as u32));
        assert!(!bench.mmu.ring_is_full(0));
        bench.write(3);
        assert_eq!(
            bench.mmu.harvest_dirty_ring(0, &mut bench.host).unwrap().len(),
            1,
            "the page was armed again"
        );
    }
}
