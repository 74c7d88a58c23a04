//! The codes of nested faults that kvm-unit-tests and the kernel's selftests assert.

use super::silicon::{GuestAccess, NestedStop};
use crate::memory_type::Caching;
use crate::{
    fault::{FaultCode, Handled},
    mmu::{Config, GuestWidth, Mmu},
    spte::Format,
    walk::WalkAccess,
};
use vmtape_abi::{Host, MemoryRegion, MemoryStatus};
use vmtape_arch::{
    access::AccessKind,
    exception::{Exception, PageFaultError},
    msr::PAT_POWER_ON,
    note::Note,
    regs::{Cr0, Cr4, Efer},
    vcpu::VcpuState,
};
use vmtape_testing::TestHost;

const GVA: u64 = 0x1000_0000;
const DATA: u64 = 0x80_0000;
const TABLES: [u64; 4] = [0x20_0000, 0x20_1000, 0x20_2000, 0x40_0000];
const RAM: usize = 0x100_0000;

struct Bench {
    mmu: Mmu,
    state: VcpuState,
    host: TestHost,
}

impl Bench {
    /// A 64-bit guest with one page at `GVA`, everything mapped below it in 4 KiB pages. `flags` are the leaf's.
    fn new(format: Format, flags: u64) -> Self {
        let mut mmu = Mmu::new(Config::for_tests(format));
        let mut host = TestHost::new(RAM);
        let entries = [TABLES[1] | 0x27, TABLES[2] | 0x27, TABLES[3] | 0x27, DATA | flags];
        for (level, (table, entry)) in TABLES.into_iter().zip(entries).enumerate() {
            host.write(table + 8 * (GVA >> (39 - 9 * level) & 0x1ff), &entry.to_le_bytes());
        }
        let mut state = VcpuState::reset();
        state.cr0 = Cr0::new().with_pe(true).with_pg(true).into_bits();
        state.cr4 = Cr4::new().with_pae(true).into_bits();
        state.efer = Efer::new().with_lme(true).with_lma(true).with_nxe(true).into_bits();
        state.cr3 = TABLES[0];
        mmu.create_vcpu(0);
        mmu.vcpu(0).set_width(GuestWidth { maxphyaddr: 46, gbpages: true, amd: false });
        let region = MemoryRegion { slot: 0, flags: 0, gpa: 0, size: RAM as u64, hpa: 0 };
        mmu.set_memory_region(&region, &mut host).unwrap();
        mmu.reload(0, &state, &mut host);
        let mut bench = Self { mmu, state, host };
        let GuestAccess::Mapped(mapping) = bench.settle() else { panic!("the page does not map") };
        assert_eq!(mapping.hpa, DATA);
        bench.host.write(bench.leaf(), &(DATA | flags).to_le_bytes());
        bench
    }

    /// Lets KVM map what the access needs.
    fn settle(&mut self) -> GuestAccess {
        loop {
            match self.access(AccessKind::READ) {
                GuestAccess::Nested(stop) => {
                    let code = FaultCode::new().with_w(stop.kind == AccessKind::WRITE);
                    let handled = self.mmu.page_fault(0, &self.state, stop.gpa, code, &mut self.host);
                    assert_eq!(handled, Handled::Resume);
                }
                done => return done,
            }
        }
    }

    fn access(&mut self, kind: AccessKind) -> GuestAccess {
        let access = WalkAccess { kind, ..Default::default() };
        self.mmu.tdp_access(0, &self.state, GVA, &access, Caching::of(PAT_POWER_ON), &mut self.host).0
    }

    fn stop(&mut self, kind: AccessKind) -> NestedStop {
        match self.access(kind) {
            GuestAccess::Nested(stop) => stop,
            other => panic!("no nested fault: {other:?}"),
        }
    }

    fn leaf(&self) -> u64 {
        TABLES[3] + 8 * (GVA >> 12 & 0x1ff)
    }
}

const READ: AccessKind = AccessKind::READ;
const WRITE: AccessKind = AccessKind::WRITE;
const FETCH: AccessKind = AccessKind::FETCH;
const EPT: Format = Format::Ept { ad: true };
const EPT_NO_AD: Format = Format::Ept { ad: false };
const NPT: Format = Format::X86 { width: 46 };
/// A leaf of the guest with nothing left to set.
const SETTLED: u64 = 0x67;

/// R, W and X of an EPT entry.
fn ept(bench: &mut Bench, gpa: u64, rwx: u64) {
    bench.mmu.edit_leaf(0, gpa >> 12, |spte| spte & !7 | rwx);
}

/// Sets and clears bits of an NPT entry.
fn npt(bench: &mut Bench, gpa: u64, set: u64, clear: u64) {
    bench.mmu.edit_leaf(0, gpa >> 12, |spte| spte & !clear | set);
}

#[test]
fn ept_violations_of_the_final_page() {
    for (rwx, kind, expected) in [
        (0b000, READ, 0x181),
        (0b000, WRITE, 0x182),
        (0b000, FETCH, 0x184),
        (0b001, WRITE, 0x18a),
        (0b001, FETCH, 0x18c),
        (0b011, FETCH, 0x19c),
        (0b101, WRITE, 0x1aa),
    ] {
        let mut bench = Bench::new(EPT, SETTLED);
        ept(&mut bench, DATA, rwx);
        let stop = bench.stop(kind);
        assert_eq!(stop.qualification(false).into_bits(), expected, "{rwx:03b} {kind}");
        assert_eq!(stop.gpa, DATA);
    }
}

#[test]
fn ept_violations_of_a_page_table() {
    // Format, rights of the table's page, the guest leaf's accessed and dirty bits, access, qualification.
    for (format, rwx, flags, kind, expected) in [
        (EPT, 0b000, 0x67, READ, Some(0x83)),
        (EPT_NO_AD, 0b000, 0x67, READ, Some(0x81)),
        (EPT_NO_AD, 0b001, 0x07, READ, Some(0x8b)),
        (EPT_NO_AD, 0b001, 0x27, READ, None),
        (EPT_NO_AD, 0b001, 0x27, WRITE, Some(0x8b)),
        (EPT, 0b001, 0x67, READ, Some(0x8b)),
        (EPT, 0b101, 0x67, READ, Some(0xab)),
    ] {
        let mut bench = Bench::new(format, flags);
        ept(&mut bench, TABLES[3], rwx);
        let got = match bench.access(kind) {
            GuestAccess::Nested(stop) => Some(stop.qualification(false).into_bits()),
            _ => None,
        };
        assert_eq!(got, expected, "{format:?} {rwx:03b} {flags:#x} {kind}");
    }
}

#[test]
fn ept_leaves_the_guests_leaf_alone_before_a_violation() {
    let mut bench = Bench::new(EPT, 0x07);
    ept(&mut bench, DATA, 0);
    bench.stop(READ);
    assert_eq!(bench.host.read_u64(bench.leaf()), Some(DATA | 7));
}

#[test]
fn advanced_information_tells_the_rights_of_the_linear_address() {
    let mut bench = Bench::new(EPT, SETTLED);
    ept(&mut bench, DATA, 0);
    assert_eq!(bench.stop(READ).qualification(true).into_bits(), 0x781);
    bench.state.cr0 = 0;
    bench.state.efer = 0;
    bench.state.cr4 = 0;
    ept(&mut bench, GVA, 0);
    assert_eq!(bench.stop(FETCH).qualification(true).into_bits(), 0x784, "paging off");
}

#[test]
fn nested_page_faults_of_the_final_page() {
    for (set, clear, kind, expected) in [
        (0, 1, READ, 0x1_0000_0004),
        (1 << 63, 0, FETCH, 0x1_0000_0015),
        (0, 4, READ, 0x1_0000_0005),
        (0, 2, WRITE, 0x1_0000_0007),
        (1 << 50, 0, FETCH, 0x1_0000_001d),
    ] {
        let mut bench = Bench::new(NPT, SETTLED);
        npt(&mut bench, DATA, set, clear);
        let stop = bench.stop(kind);
        assert_eq!((stop.npf_info().into_bits(), stop.gpa), (expected, DATA));
    }
}

#[test]
fn nested_page_faults_of_a_page_table() {
    for (set, clear, expected) in [(0, 2, 0x2_0000_0007), (0, 1, 0x2_0000_0006), (1 << 50, 0, 0x2_0000_000f)]
    {
        for kind in [READ, WRITE, FETCH] {
            let mut bench = Bench::new(NPT, SETTLED);
            npt(&mut bench, TABLES[3], set, clear);
            let stop = bench.stop(kind);
            assert_eq!((stop.npf_info().into_bits(), stop.gpa), (expected, bench.leaf()), "{kind}");
        }
    }
}

#[test]
fn a_guest_fault_wins_over_the_final_page_but_not_over_its_tables() {
    for format in [EPT, NPT] {
        let mut bench = Bench::new(format, 0x65);
        bench.state.cr0 = bench.state.cr0().with_wp(true).into_bits();
        bench.mmu.edit_leaf(0, DATA >> 12, |_| 0);
        assert!(matches!(bench.access(WRITE), GuestAccess::Fault(error) if error.into_bits() == 3));
        bench.mmu.edit_leaf(0, TABLES[3] >> 12, |_| 0);
        assert!(bench.stop(WRITE).table);
    }
}

#[test]
fn large_pages_follow_the_slot_and_the_backing() {
    for (backing, slot_hpa, expected) in [(12, 0, 1), (21, 0, 2), (21, 0x1000, 1)] {
        let mut bench = Bench::new(EPT, SETTLED);
        bench.mmu.config.backing_shift = backing;
        let gpa = 0x1000_0000;
        let region = MemoryRegion { slot: 1, flags: 0, gpa, size: 0x60_0000, hpa: slot_hpa };
        bench.mmu.set_memory_region(&region, &mut bench.host).unwrap();
        bench.host.notes.clear();
        bench.mmu.page_fault(0, &bench.state, gpa + 0x20_1000, FaultCode::new(), &mut bench.host);
        let level = bench.host.notes.iter().find_map(|note| match note {
            Note::SpteRequested { level, .. } => Some(*level),
            _ => None,
        });
        assert_eq!(level, Some(expected), "backing {backing}, slot at {slot_hpa:#x}");
    }
}

#[test]
fn a_stale_mmio_entry_is_made_anew() {
    let mut bench = Bench::new(NPT, SETTLED);
    let device = 0xfee0_0020;
    let code = FaultCode::new();
    let rsvd = FaultCode::new().with_p(true).with_rsvd(true);
    let mark = |bench: &mut Bench, code| {
        bench.host.notes.clear();
        assert_eq!(bench.mmu.page_fault(0, &bench.state, device, code, &mut bench.host), Handled::Emulate);
        bench.host.notes.iter().any(|note| matches!(note, Note::MarkMmioSpte { .. }))
    };
    assert!(mark(&mut bench, code));
    assert!(!mark(&mut bench, rsvd), "the entry is good");
    let region = MemoryRegion { slot: 1, flags: 0, gpa: 0x1000_0000, size: 0x1000, hpa: 0 };
    bench.mmu.set_memory_region(&region, &mut bench.host).unwrap();
    assert!(mark(&mut bench, rsvd), "a new slot makes it stale");
}

#[test]
fn without_the_tdp_mmu_the_tables_are_shadow_pages() {
    let mut bench = Bench::new(EPT, SETTLED);
    bench.mmu.zap_all(&mut bench.host);
    bench.mmu.config.tdp_mmu = false;
    bench.mmu.config.backing_shift = 21;
    bench.mmu.reload(0, &bench.state, &mut bench.host);
    bench.host.notes.clear();
    assert!(
        matches!(bench.settle(), GuestAccess::Mapped(mapping) if mapping.hpa == DATA && mapping.write.is_set())
    );
    assert!(!bench.host.notes.iter().any(|note| matches!(note, Note::TdpSpteChanged { .. })));
    assert!(bench.host.notes.iter().any(|note| matches!(note, Note::SetSpte { level: 2, .. })));
}

/// KVM x86.c kvm_fixup_and_inject_pf_error(): a fault that is not present, or that no walk confirms, is the guest's as it is.
#[test]
fn a_page_fault_is_corrected_only_where_a_walk_faults_too() {
    let mut bench = Bench::new(EPT, SETTLED);
    let fixed = |bench: &mut Bench, code: u32| {
        let error = PageFaultError::from_bits(code);
        bench.mmu.fixup_page_fault(0, &bench.state, GVA, error, &mut bench.host)
    };
    assert_eq!(fixed(&mut bench, 3), Exception::pf(GVA, PageFaultError::from_bits(3)));
    bench.mmu.vcpu(0).root_mmu.width.maxphyaddr = 36;
    bench.host.write(bench.leaf(), &(1 << 40 | DATA | SETTLED).to_le_bytes());
    for (silicon, guest) in [(1, 9), (3, 0xb), (5, 0xd), (7, 0xf), (0x11, 0x19), (2, 2), (6, 6)] {
        assert_eq!(
            fixed(&mut bench, silicon),
            Exception::pf(GVA, PageFaultError::from_bits(guest)),
            "{silicon:#x}"
        );
    }
}

/// KVM mmu.c kvm_faultin_pfn(), kvm_handle_error_pfn(): KVM waits for a page that is on its way, is interrupted by a signal, and
/// gives up what the host refuses. A page that is taken back is mapped no more.
#[test]
fn a_page_that_is_not_there_is_waited_for() {
    for (absent, handled) in [
        (MemoryStatus::READY, Handled::Resume),
        (MemoryStatus::MISSING, Handled::Errno(-4)),
        (MemoryStatus::REFUSED, Handled::Errno(-14)),
    ] {
        for format in [EPT, NPT] {
            let mut bench = Bench::new(format, SETTLED);
            bench.host.absent.insert(DATA, absent);
            bench.mmu.unmap_range(DATA, 0x1000, &mut bench.host);
            assert_eq!(bench.stop(READ).gpa & !0xfff, DATA);
            assert_eq!(
                bench.mmu.page_fault(0, &bench.state, DATA, FaultCode::new(), &mut bench.host),
                handled
            );
            let mapped = matches!(bench.access(READ), GuestAccess::Mapped(_));
            assert_eq!(mapped, absent == MemoryStatus::READY, "{absent}");
        }
    }
}

/// 6.1 has zeros where 6.12 has bit 63. See: KVM 6.1 mmu/tdp_mmu.c __handle_changed_spte(); 6.12 mmu/spte.h SHADOW_NONPRESENT_VALUE
#[test]
fn entries_are_told_as_their_release_has_them() {
    for (suppress_ve, high_bit) in [(true, 1), (false, 0)] {
        let mut bench = Bench::new(EPT, SETTLED);
        bench.mmu.config.suppress_ve = suppress_ve;
        bench.mmu.unmap_range(DATA, 0x1000, &mut bench.host);
        bench.host.notes.clear();
        bench.settle();
        let told = bench.host.notes.iter().filter_map(|note| match note {
            Note::TdpSpteChanged { old, new, .. } => Some([*old, *new]),
            _ => None,
        });
        let told: Vec<_> = told.flatten().map(|spte| spte >> 63).collect();
        assert_eq!(told, [high_bit, high_bit], "suppress_ve {suppress_ve}");
    }
}

#[test]
fn large_pages_hold_only_what_is_there() {
    let mut bench = Bench::new(EPT, SETTLED);
    bench.mmu.config.backing_shift = 21;
    bench.host.absent.insert(DATA + 0x5000, MemoryStatus::READY);
    let size_of = |bench: &mut Bench| {
        bench.mmu.unmap_range(DATA, 0x20_0000, &mut bench.host);
        bench.host.notes.clear();
        bench.settle();
        bench.host.notes.iter().find_map(|note| match note {
            Note::SetSpte { level, .. } => Some(*level),
            _ => None,
        })
    };
    assert_eq!(size_of(&mut bench), Some(1));
    bench.host.absent.clear();
    assert_eq!(size_of(&mut bench), Some(2));
}
