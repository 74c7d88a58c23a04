//! Contexts of a guest's guest, with tables built by hand: L2 gva -> L2 gpa -> L1 gpa -> hpa, each step in a format of its
//! own.
//!
//! Expected error codes: KVM 6.12.117 under kvm-unit-tests' svm_npt, as L1 sees them in EXITINFO1.

mod differential;
mod levels;
mod shadowed;
mod tracking;

use crate::{
    fault::{FaultCode, Handled, WalkFault},
    memory_type::Caching,
    mmu::{Config, ContextId, GuestWidth, Mmu},
    spte::Format,
    tdp::silicon::GuestAccess,
    walk::WalkAccess,
};
use vmtape_abi::{Host, MemoryRegion};
use vmtape_arch::{
    access::AccessKind,
    exception::PageFaultError,
    level::{Dimension, Level, Place, Stage},
    msr::PAT_POWER_ON,
    note::Note,
    paging::{EptEntry, Eptp, Pte},
    regs::{Cr0, Cr4, Efer},
    vcpu::VcpuState,
};
use vmtape_testing::TestHost;

const RAM: usize = 0x20_0000;
const GVA: u64 = 0x40_3123;
/// What L2 believes: its page directory, its page table, its page.
const L2_DIRECTORY: u64 = 0x1000;
const L2_TABLE: u64 = 0x2000;
const L2_PAGE: u64 = 0x5000;
/// Where L1 keeps them.
const OFFSET: u64 = 0x10_0000;
/// L1's nested tables, from the top.
const NESTED: [u64; 4] = [0x8_0000, 0x8_1000, 0x8_2000, 0x8_3000];
const LINK: Pte = Pte::new().with_p(true).with_w(true).with_u(true);
const READ: AccessKind = AccessKind::READ;
const WRITE: AccessKind = AccessKind::WRITE;

/// A vCPU whose L2 runs with 32-bit paging under L1's nested tables.
struct Bench {
    mmu: Mmu,
    host: TestHost,
    /// L1 as it was at VMRUN: a 64-bit guest with NX, which leaves its own paging off.
    l1: VcpuState,
    ncr3: u64,
    l2: VcpuState,
    ept: bool,
}

impl Bench {
    fn new(format: Format) -> Self {
        Self::of(format, |_| ())
    }

    /// With something else in the MMU's configuration.
    fn of(format: Format, adjust: impl FnOnce(&mut Config)) -> Self {
        let ept = matches!(format, Format::Ept { .. });
        let mut config = Config::for_tests(format);
        adjust(&mut config);
        let mut mmu = Mmu::new(config);
        let mut host = TestHost::new(RAM);
        mmu.create_vcpu(0);
        mmu.vcpu(0).set_width(GuestWidth { maxphyaddr: 40, gbpages: true, amd: !ept });
        let region = MemoryRegion { slot: 0, flags: 0, gpa: 0, size: RAM as u64, hpa: 0 };
        mmu.set_memory_region(&region, &mut host).unwrap();
        let mut l2 = VcpuState::reset();
        l2.cr0 = Cr0::new().with_pe(true).with_pg(true).with_wp(true).into_bits();
        l2.cr3 = L2_DIRECTORY;
        let mut l1 = VcpuState::reset();
        l1.cr4 = Cr4::new().with_pae(true).into_bits();
        l1.efer = Efer::new().with_lme(true).with_lma(true).with_nxe(true).into_bits();
        let mut bench = Self { mmu, host, l1, ncr3: NESTED[0], l2, ept };
        bench.put32(OFFSET + L2_DIRECTORY + 4 * (GVA >> 22), L2_TABLE | LINK.into_bits());
        bench.put32(bench.l2_leaf(), L2_PAGE | LINK.into_bits());
        for table in NESTED.windows(2) {
            bench.put(table[0], bench.link(table[1]));
        }
        for page in [L2_DIRECTORY, L2_TABLE, L2_PAGE] {
            bench.put(bench.nested_leaf(page), bench.link(OFFSET + page));
        }
        bench
    }

    /// Under L1's nested page table.
    fn npt() -> Self {
        let mut bench = Self::new(Format::X86 { width: 46 });
        bench.mmu.enter_npt(0, &bench.l1, bench.ncr3, &bench.l2, &mut bench.host);
        bench
    }

    /// Under L1's EPT.
    fn ept(ad: bool) -> Self {
        let mut bench = Self::new(Format::Ept { ad: true });
        let eptp = Eptp::new().with_memtype(6).with_levels_minus_one(3).with_ad(ad);
        let eptp = eptp.into_bits() | NESTED[0];
        bench.mmu.enter_ept(0, eptp, true, &bench.l2, &mut bench.host);
        bench
    }

    /// An entry of L1's nested tables.
    fn link(&self, to: u64) -> u64 {
        let ept = EptEntry::new().with_r(true).with_w(true).with_x(true);
        to | if self.ept { ept.into_bits() } else { LINK.into_bits() }
    }

    fn l2_leaf(&self) -> u64 {
        OFFSET + L2_TABLE + 4 * (GVA >> 12 & 0x3ff)
    }

    fn nested_leaf(&self, gpa: u64) -> u64 {
        NESTED[3] + 8 * (gpa >> 12 & 0x1ff)
    }

    fn put(&mut self, at: u64, entry: u64) {
        assert!(self.host.write(at, &entry.to_le_bytes()));
    }

    fn put32(&mut self, at: u64, entry: u64) {
        assert!(self.host.write(at, &(entry as u32).to_le_bytes()));
    }

    fn walk(&mut self, kind: AccessKind) -> Result<u64, WalkFault> {
        let access = WalkAccess { kind, ..Default::default() };
        let walk = self.mmu.walk_guest(0, &self.l2, GVA, &access, access.pferr(), &mut self.host);
        walk.map(|(walk, _)| walk.gpa)
    }

    fn fault(&mut self, kind: AccessKind) -> (Stage, u64, u32) {
        let fault = self.walk(kind).unwrap_err();
        (fault.stage, fault.address, fault.error.into_bits())
    }
}

#[test]
fn an_address_of_l2_goes_through_both_dimensions() {
    for (mut bench, a, d) in
        [(Bench::npt(), 0x20, 0x40), (Bench::ept(true), 0x100, 0x200), (Bench::ept(false), 0, 0)]
    {
        bench.host.notes.clear();
        bench.host.places.clear();
        assert_eq!(bench.walk(WRITE), Ok(OFFSET + L2_PAGE + (GVA & 0xfff)));
        let leaf = bench.host.read_u32(bench.l2_leaf()).unwrap();
        assert_eq!(leaf & 0x60, 0x60, "L2's own entry is accessed and dirty");
        // Reading an entry of L2's tables counts as a write, and so makes the nested entry of the table's page dirty.
        for page in [L2_DIRECTORY, L2_TABLE, L2_PAGE] {
            let entry = bench.host.read_u64(bench.nested_leaf(page)).unwrap();
            assert_eq!(entry & (a | d), a | d, "nested entry of {page:#x}");
        }
        let top = bench.host.read_u64(NESTED[0]).unwrap();
        assert_eq!(top & (a | d), a, "only leaves are dirty");
        let elements = |dimension| {
            let place = Place { level: Level::L2, dimension };
            let notes = bench.host.notes.iter().zip(&bench.host.places);
            notes.filter(|(note, at)| matches!(note, Note::PagingElement { .. }) && **at == place).count()
        };
        assert_eq!(elements(Dimension::GUEST), 2);
        // Three addresses of four levels each.
        assert_eq!(elements(Dimension::NESTED), 12);
        assert!(bench.host.places.iter().all(|place| place.level == Level::L2));
    }
}

#[test]
fn a_fault_says_in_which_dimension_it_arose() {
    let mut bench = Bench::npt();
    bench.put(bench.nested_leaf(L2_PAGE), 0);
    assert_eq!(bench.fault(READ), (Stage::NESTED_FINAL, L2_PAGE, 0x4));
    bench.put(bench.nested_leaf(L2_PAGE), bench.link(OFFSET + L2_PAGE) & !2);
    assert_eq!(bench.fault(WRITE), (Stage::NESTED_FINAL, L2_PAGE, 0x7));
    assert!(bench.walk(READ).is_ok());
    // W=0 on L2's page table: the code that svm_npt expects, with bit 33.
    bench.put(bench.nested_leaf(L2_TABLE), bench.link(OFFSET + L2_TABLE) & !2);
    let fault = bench.walk(READ).unwrap_err();
    assert_eq!(fault.npf_info().into_bits(), 0x2_0000_0007);
    assert_eq!(fault.address, L2_TABLE, "KVM translates whole frames");
    // L2's own tables: an ordinary page fault at the linear address.
    bench.put(bench.nested_leaf(L2_TABLE), bench.link(OFFSET + L2_TABLE));
    bench.put32(bench.l2_leaf(), 0);
    assert_eq!(bench.fault(WRITE), (Stage::GUEST, GVA, 0x2));
    assert!(!bench.walk(READ).unwrap_err().is_nested());
}

/// Bit 38: legal for L1's width of 40 bits, reserved once its nested tables are walked with 36.
#[test]
fn each_dimension_has_its_own_width() {
    let mut bench = Bench::npt();
    bench.put(NESTED[2], bench.link(NESTED[3]) | 1 << 38);
    assert_eq!(bench.fault(READ).2, 0x6, "beyond memory, so not present");
    bench.mmu.vcpu(0).context_mut(ContextId::Guest).width.maxphyaddr = 36;
    assert_eq!(bench.fault(READ), (Stage::NESTED_TABLE, L2_DIRECTORY, 0xf));
}

#[test]
fn an_ept_fault_carries_what_a_violation_would_say() {
    let mut bench = Bench::ept(true);
    bench.put(bench.nested_leaf(L2_PAGE), bench.link(OFFSET + L2_PAGE) & !2);
    let fault = bench.walk(WRITE).unwrap_err();
    let found = (fault.stage, fault.address, fault.is_misconfiguration());
    assert_eq!(found, (Stage::NESTED_FINAL, L2_PAGE, false));
    // Write; readable and executable; the linear address is valid and was translated.
    assert_eq!(fault.qualification.into_bits(), 0x1aa);
    // Write-only rights exist under no capability.
    bench.put(bench.nested_leaf(L2_PAGE), bench.link(OFFSET + L2_PAGE) & !5);
    assert!(bench.walk(READ).unwrap_err().is_misconfiguration());
}

/// L1 in PAE mode: its nested table has three levels, and pointers that are in no register.
#[test]
fn a_nested_table_in_pae_format() {
    let mut bench = Bench::new(Format::X86 { width: 46 });
    let mut l1 = VcpuState::reset();
    l1.cr4 = Cr4::new().with_pae(true).into_bits();
    bench.put(NESTED[1], NESTED[2] | 1);
    bench.mmu.enter_npt(0, &l1, NESTED[1], &bench.l2, &mut bench.host);
    assert_eq!(bench.walk(READ), Ok(OFFSET + L2_PAGE + (GVA & 0xfff)));
    bench.put(NESTED[1], 0);
    assert_eq!(bench.fault(READ).0, Stage::NESTED_TABLE);
}

/// Silicon walks L2's tables and KVM's shadow of L1's nested ones; each nested fault is KVM's to repair, until L1 is at fault.
#[test]
fn l1s_nested_tables_are_shadowed_on_demand() {
    for mut bench in [Bench::npt(), Bench::ept(true)] {
        let l2 = bench.l2;
        bench.mmu.reload(0, &l2, &mut bench.host);
        let role = bench.mmu.context(0).root_role;
        assert!(role.guest_mode() && !role.direct());
        let mut faults = 0;
        let mapping = loop {
            match bench
                .mmu
                .tdp_access(0, &l2, GVA, &WalkAccess::default(), Caching::of(PAT_POWER_ON), &mut bench.host)
                .0
            {
                GuestAccess::Mapped(mapping) => break mapping,
                GuestAccess::Nested(stop) => {
                    let write = stop.kind == WRITE;
                    let code = FaultCode::new().with_w(write).with_u(true).with_guest_page(stop.table);
                    assert_eq!(
                        bench.mmu.page_fault(0, &l2, stop.gpa, code, &mut bench.host),
                        Handled::Resume
                    );
                    faults += 1;
                    assert!(faults < 8, "no end");
                }
                GuestAccess::Fault(error) => panic!("L2 faults: {error:?}"),
            }
        };
        assert_eq!(mapping.hpa, OFFSET + L2_PAGE);
        let code = FaultCode::new().with_u(true);
        let beyond = bench.mmu.page_fault(0, &l2, 0x9000, code, &mut bench.host);
        let Handled::InjectNested(fault) = beyond else { panic!("{beyond:?}") };
        assert_eq!((fault.stage, fault.address), (Stage::NESTED_FINAL, 0x9000));
        assert_eq!(fault.error, PageFaultError::new().with_u(true));
        // L1 goes on with its own root; that of the nested tables is kept for the next entry.
        let made = |note: &Note| matches!(note, Note::GetPage { .. } | Note::SetSpte { .. });
        let notes = || bench.host.notes.iter().zip(&bench.host.places).filter(|(note, _)| made(note));
        assert!(notes().count() >= 4 && notes().all(|(_, place)| place.level == Level::L2));
        let shadow = bench.mmu.context(0).root.unwrap();
        bench.mmu.leave_guest_mode(0, &VcpuState::reset(), &mut bench.host);
        bench.mmu.reload(0, &VcpuState::reset(), &mut bench.host);
        assert_ne!(bench.mmu.context(0).root.unwrap().hpa, shadow.hpa);
        assert_eq!(bench.mmu.vcpu(0).guest_mmu.root, Some(shadow));
        assert!(!bench.mmu.vcpu(0).is_nested());
    }
}
