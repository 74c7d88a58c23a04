//! Scenarios of a guest narrower than its host, and the asserted codes of nested page faults.
//!
//! The host of these tests is memory and nothing else; KVM's emulator is asked where an operand lies, and does no more.

use crate::Vm;
use vmtape_abi::{
    Backend, BusOp, EmulateRequest, EmulateStatus, Emulated, EmulatorMmu, FlushScope, Host, MemoryRegion,
    Translation, VmConfig,
};
use vmtape_arch::{
    access::{Access, AccessKind, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::{Exception, Vector},
    exit::{Exit, Resume, ResumeKind, SvmExitCode},
    host::{Silicon, Vendor},
    note::{Note, NoteKind},
    regs::{Cr0, Cr4, Efer, SegAttr},
    vcpu::{VcpuState, seg},
};

const GVA: u64 = 0xffff_9234_0000_0000;
const DATA: u64 = 0x200_0000;
/// Tables of levels 4, 3, 2 and 1.
const TABLES: [u64; 4] = [0x210_0000, 0x210_1000, 0x210_2000, 0x210_3000];
const RAM: u64 = 0x400_0000;

struct TestHost {
    ram: Vec<u8>,
    notes: Vec<Note>,
    /// Where KVM's emulator was told that the operand lies.
    emulated: Option<Result<Translation, Exception>>,
    access: Access,
}

impl Host for TestHost {
    fn read(&mut self, hpa: u64, buf: &mut [u8]) -> bool {
        let Some(bytes) = self.ram.get(hpa as usize..hpa as usize + buf.len()) else { return false };
        buf.copy_from_slice(bytes);
        true
    }

    fn write(&mut self, hpa: u64, data: &[u8]) -> bool {
        let Some(bytes) = self.ram.get_mut(hpa as usize..hpa as usize + data.len()) else { return false };
        bytes.copy_from_slice(data);
        true
    }

    fn cmpxchg(&mut self, hpa: u64, old: u64, new: u64, size: u8) -> Option<bool> {
        let now = self.read_u64(hpa)?;
        if now != old {
            return Some(false);
        }
        self.write(hpa, &new.to_le_bytes()[..usize::from(size)]);
        Some(true)
    }

    fn flush_tlb(&mut self, _vcpu: u32, _scope: FlushScope, _address: u64) {}

    fn emulate(
        &mut self,
        _vcpu: u32,
        state: &mut VcpuState,
        _request: &EmulateRequest,
        mmu: &mut dyn EmulatorMmu,
    ) -> Emulated {
        let access = self.access;
        let result = mmu.translate(state, &access, self);
        self.emulated = Some(result);
        match result {
            Ok(_) => Emulated::default(),
            Err(fault) => Emulated { status: EmulateStatus::FAULT, fault, ..Default::default() },
        }
    }

    fn bus(&mut self, _vcpu: u32, _op: &mut BusOp) -> bool {
        false
    }

    fn interrupt(&mut self, _vcpu: u32, _ack: bool) -> Option<u8> {
        None
    }

    fn nmi(&mut self, _vcpu: u32, _ack: bool) -> bool {
        false
    }

    fn note(&mut self, _vcpu: u32, note: Note) {
        self.notes.push(note);
    }

    fn wants(&self, _kind: NoteKind) -> bool {
        true
    }

    fn log(&mut self, _level: u32, _text: &str) {}

    fn fault_point(&mut self, _vcpu: u32, _id: u32) -> Option<u64> {
        None
    }
}

struct Bench {
    vm: Vm,
    state: VcpuState,
    host: TestHost,
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With a mapping to this host physical page.
    Mapped(u64),
    /// With a page fault that the guest takes.
    Fault(u32),
    /// With an emulation that goes to a device at this address.
    Mmio(u64),
}

impl Bench {
    /// A 64-bit guest with paging on: guest and host width, and the two entries of the scenario.
    fn new(npt: bool, guest_width: u8, host_width: u8, pde: u64, pte: u64) -> Self {
        let silicon = Silicon {
            vendor: Vendor::AMD,
            phys_bits: host_width,
            host_levels: 4,
            ept_levels: 0,
            gbpages: true,
            ept_ad: false,
            ept_advanced: false,
            apicv: false,
            nrips: true,
            decode_assists: false,
            backing_shift: 21,
            rmw_reads_first: false,
            encryption_bits: 0,
            pad: [0; 3],
        };
        let vm = Vm::new(&VmConfig { silicon, options: Vec::new() }, npt).unwrap();
        let host = TestHost {
            ram: vec![0; RAM as usize],
            notes: Vec::new(),
            emulated: None,
            access: Access::default(),
        };
        let mut state = VcpuState::reset();
        state.cr0 = Cr0::new().with_pe(true).with_pg(true).with_et(true).into_bits();
        state.cr4 = Cr4::new().with_pae(true).into_bits();
        state.efer = Efer::new().with_lme(true).with_lma(true).into_bits();
        state.cr3 = TABLES[0];
        state.seg[seg::CS].attr = SegAttr::new().with_typ(0xb).with_s(true).with_present(true).with_l(true);
        let mut bench = Self { vm, state, host };
        for (i, entry) in [TABLES[1] | 7, TABLES[2] | 7, pde, pte].into_iter().enumerate() {
            bench.host.write(bench.entry_address(i), &entry.to_le_bytes());
        }
        let region = MemoryRegion { slot: 0, flags: 0, gpa: 0, size: RAM, hpa: 0 };
        bench.vm.set_memory_region(&region, &mut bench.host).unwrap();
        bench.vm.create_vcpu(0).unwrap();
        let leaf = |function, eax| CpuidEntry { function, eax, ..Default::default() };
        let gbpages = CpuidEntry { edx: 1 << 26, ..leaf(0x8000_0001, 0) };
        let width = leaf(0x8000_0008, u32::from(guest_width) | 48 << 8);
        let cpuid = [leaf(0x8000_0000, 0x8000_0008), gbpages, width];
        bench.vm.set_cpuid(0, &mut bench.state, &cpuid, &mut bench.host).unwrap();
        bench.enter();
        bench
    }

    fn entry_address(&self, table: usize) -> u64 {
        TABLES[table] + 8 * (GVA >> (39 - 9 * table) & 0x1ff)
    }

    fn pte(&mut self) -> u64 {
        self.host.read_u64(self.entry_address(3)).unwrap()
    }

    fn enter(&mut self) {
        assert_eq!(self.vm.enter(0, &mut self.state, &mut self.host), Resume::GUEST);
    }

    /// One try of the access on silicon.
    fn once(&mut self, access: &Access) -> (Answer, Exit) {
        let mut exit = Exit::default();
        let mut answer = self.vm.access(0, &mut self.state, access, &mut self.host, &mut exit);
        if answer.verdict == Verdict::FAULT && self.state.intercepts.exceptions >> Vector::PF.0 & 1 != 0 {
            answer.verdict = self.vm.exception(0, &mut self.state, &answer.fault, &mut self.host, &mut exit);
        }
        (answer, exit)
    }

    /// The access until it comes to an end, and the exits on the way.
    fn run(&mut self, kind: AccessKind, user: bool) -> (End, Vec<Exit>) {
        self.run_at(GVA, kind, user)
    }

    fn run_at(&mut self, gva: u64, kind: AccessKind, user: bool) -> (End, Vec<Exit>) {
        let access = Access { gva, kind, user, size: 8, ..Default::default() };
        self.state.cpl = if user { 3 } else { 0 };
        self.host.access = access;
        let mut exits = Vec::new();
        loop {
            let (answer, exit) = self.once(&access);
            match answer.verdict {
                Verdict::NATIVE => return (End::Mapped(answer.mapping.hpa), exits),
                Verdict::FAULT => return (End::Fault(answer.fault.error_code), exits),
                _ => exits.push(exit),
            }
            let resume = self.vm.handle_exit(0, &mut self.state, &exit, &mut self.host);
            assert_eq!(resume.kind, ResumeKind::RESUME);
            if let Some(Ok(translation)) = self.host.emulated.take() {
                assert!(!translation.ram, "only MMIO is emulated here");
                return (End::Mmio(translation.gpa), exits);
            }
            self.enter();
            if self.state.inject.valid {
                assert_eq!(self.state.inject.vector, Vector::PF.0);
                assert_eq!(self.state.cr2, gva);
                return (End::Fault(self.state.inject.error_code), exits);
            }
        }
    }
}

const READ: AccessKind = AccessKind::READ;
const WRITE: AccessKind = AccessKind::WRITE;
const FETCH: AccessKind = AccessKind::FETCH;
const BIT36: u64 = 1 << 36;
const NX: u64 = 1 << 63;

/// Lets the bench touch the tables, so that only the final page is left to fault.
fn pde(flags: u64) -> u64 {
    TABLES[3] | flags
}

#[test]
fn shadow_paging_is_exact_about_the_guests_width() {
    // PDE flags, PTE, CR0.WP, NX enabled, access, user, expected error code.
    let scenarios = [
        (1, DATA | 1 | BIT36, false, false, READ, false, 0x9),
        (7, DATA | 1 | BIT36, true, false, WRITE, false, 0xb),
        (7, DATA | 1 | BIT36, false, false, READ, true, 0xd),
        (7, DATA | 7 | BIT36, false, false, WRITE, true, 0xf),
        (7, DATA | 7 | BIT36 | NX, false, true, FETCH, false, 0x19),
        (7, DATA | 7 | BIT36, false, true, FETCH, false, 0x19),
        (7, DATA | 7 | 1 << 51, false, false, READ, false, 0x9),
        (7, DATA | 6 | BIT36, false, false, READ, false, 0x0),
        (7 | BIT36, DATA | 7, false, false, READ, false, 0x9),
    ];
    for (flags, pte, wp, nxe, kind, user, expected) in scenarios {
        let mut bench = Bench::new(false, 36, 46, pde(flags), pte);
        bench.state.cr0 = bench.state.cr0().with_wp(wp).into_bits();
        bench.state.efer = bench.state.efer().with_nxe(nxe).into_bits();
        let (end, exits) = bench.run(kind, user);
        assert_eq!(end, End::Fault(expected), "pte {pte:#x} {kind}");
        assert_eq!(bench.pte(), pte, "a fault leaves the leaf alone");
        assert_eq!(exits.len(), 1);
        assert_eq!(exits[0].reason, SvmExitCode::EXCP_PF.0);
        assert_eq!((exits[0].info1 & 1, exits[0].info2), (0, GVA), "the shadow table had nothing there");
    }
}

#[test]
fn nested_paging_reaches_beyond_the_guests_width_and_leaves_the_accessed_bit() {
    let illegal = DATA | 1 | BIT36;
    let mut bench = Bench::new(true, 36, 46, pde(1), illegal);
    let (end, exits) = bench.run(READ, false);
    assert_eq!(end, End::Mmio(0x10_0200_0000));
    assert_eq!(bench.pte(), illegal | 0x20);
    let last = exits.last().unwrap();
    assert_eq!((last.reason, last.info1, last.info2), (SvmExitCode::NPF.0, 0x1_0000_0004, 0x10_0200_0000));
}

#[test]
fn nested_paging_writes_leave_accessed_and_dirty() {
    let illegal = DATA | 7 | BIT36;
    let mut bench = Bench::new(true, 36, 46, pde(7), illegal);
    let (end, exits) = bench.run(WRITE, true);
    assert_eq!(end, End::Mmio(0x10_0200_0000));
    assert_eq!(exits.last().unwrap().info1, 0x1_0000_0006);
    assert_eq!(bench.pte(), illegal | 0x60);
}

#[test]
fn under_nested_paging_the_hosts_width_decides_about_reserved_bits() {
    // Permission faults come without RSVD, bits beyond the host's width with it, absent entries as absent.
    for (pte, wp, nxe, kind, user, expected) in [
        (DATA | 1 | BIT36, true, false, WRITE, false, 0x3),
        (DATA | 1 | BIT36, false, false, READ, true, 0x5),
        (DATA | 7 | BIT36 | NX, false, true, FETCH, false, 0x11),
        (DATA | 7 | 1 << 51, false, false, READ, false, 0x9),
        (DATA | 6 | BIT36, false, false, READ, false, 0x0),
    ] {
        let mut bench = Bench::new(true, 36, 46, pde(7), pte);
        bench.state.cr0 = bench.state.cr0().with_wp(wp).into_bits();
        bench.state.efer = bench.state.efer().with_nxe(nxe).into_bits();
        let (end, exits) = bench.run(kind, user);
        assert_eq!(end, End::Fault(expected), "pte {pte:#x} {kind}");
        assert_eq!(bench.pte(), pte);
        assert!(exits.iter().all(|exit| exit.info1 >> 33 & 1 != 0), "only the tables were mapped on the way");
    }
}

#[test]
fn an_illegal_address_in_a_table_entry_faults_as_a_table_walk() {
    let mut bench = Bench::new(true, 36, 46, pde(7) | BIT36, DATA | 7);
    bench.state.cr0 = bench.state.cr0().with_wp(true).into_bits();
    let access = Access { gva: GVA, kind: READ, size: 8, ..Default::default() };
    bench.host.access = access;
    loop {
        let (answer, exit) = bench.once(&access);
        assert_eq!(answer.verdict, Verdict::EXIT);
        if exit.info2 >> 36 != 0 {
            assert_eq!((exit.info1, exit.info2), (0x2_0000_0006, BIT36 | TABLES[3]));
            break;
        }
        bench.vm.handle_exit(0, &mut bench.state, &exit, &mut bench.host);
        bench.enter();
    }
}

#[test]
fn equal_widths_agree_in_both_forms() {
    for npt in [false, true] {
        let mut bench = Bench::new(npt, 46, 46, pde(7), DATA | 7);
        let (end, _) = bench.run(WRITE, true);
        assert_eq!(end, End::Mapped(DATA));
        assert_eq!(bench.pte(), DATA | 0x67, "npt={npt}");
    }
}

#[test]
fn shadow_paging_sees_the_first_write_to_a_clean_page() {
    let mut bench = Bench::new(false, 46, 46, pde(7), DATA | 7);
    assert_eq!(bench.run(READ, false).0, End::Mapped(DATA));
    assert_eq!(bench.pte(), DATA | 0x27);
    let (end, exits) = bench.run(WRITE, false);
    assert_eq!(end, End::Mapped(DATA));
    assert_eq!(exits.iter().map(|exit| exit.info1).collect::<Vec<_>>(), [3], "present, but not writable yet");
    assert_eq!(bench.pte(), DATA | 0x67);
}

#[test]
fn capability_and_options() {
    let vm = |npt| Bench::new(npt, 36, 46, pde(7), DATA | 7).vm;
    assert_eq!(vm(false).check_extension(185), 1);
    assert_eq!(vm(true).check_extension(185), 0);
    let silicon = Bench::new(true, 36, 46, 0, 0).vm.shared.silicon;
    let config = |npt: &str| VmConfig { silicon, options: vec![("npt".into(), npt.into())] };
    assert!(Vm::new(&config("off"), true).is_err());
    assert!(Vm::new(&config("off"), false).is_ok());
    let intel = VmConfig { silicon: Silicon { vendor: Vendor::INTEL, ..silicon }, options: Vec::new() };
    assert!(Vm::new(&intel, true).is_err());
}

#[test]
fn saved_state_restores_byte_for_byte() {
    for npt in [false, true] {
        let mut bench = Bench::new(npt, 46, 46, pde(7), DATA | 7);
        bench.run(WRITE, true);
        let saved = bench.vm.save();
        let mut other = Bench::new(npt, 46, 46, pde(7), DATA | 7);
        other.vm.restore(&saved).unwrap();
        assert_eq!(other.vm.save(), saved);
        assert_eq!(other.run(READ, true).0, End::Mapped(DATA));
        assert!(other.vm.restore(&saved[..saved.len() / 2]).is_err());
    }
}

/// A paging mode to try: its registers and the words of its tables.
struct ModeCase {
    name: &'static str,
    cr0: Cr0,
    cr4: Cr4,
    long: bool,
    /// Address, value, bytes.
    words: Vec<(u64, u64, usize)>,
    pdptr: [u64; 4],
    /// Linear address, host physical page.
    pages: Vec<(u64, u64)>,
}

fn mode_cases() -> Vec<ModeCase> {
    let paged = Cr0::new().with_pe(true).with_pg(true).with_wp(true).with_et(true);
    let pae = Cr4::new().with_pae(true);
    let t = TABLES;
    vec![
        ModeCase {
            name: "paging off",
            cr0: Cr0::new().with_pe(true).with_et(true),
            cr4: Cr4::new(),
            long: false,
            words: Vec::new(),
            pdptr: [0; 4],
            pages: vec![(0x1000, 0x1000), (0x2f_f000, 0x2f_f000)],
        },
        ModeCase {
            name: "32-bit, all four quarters and both halves of a table",
            cr0: paged,
            cr4: Cr4::new().with_pse(true),
            long: false,
            words: vec![
                (t[0], t[1] | 7, 4),
                (t[0] + 4 * 0x3ff, t[1] | 7, 4),
                (t[0] + 4 * 0x140, t[1] | 7, 4),
                (t[0] + 4 * 0x240, 0x80_0087, 4),
                (t[1] + 4 * 5, 0x30_0007, 4),
                (t[1] + 4 * 0x205, 0x30_1007, 4),
            ],
            pdptr: [0; 4],
            pages: vec![
                (0x5000, 0x30_0000),
                (0x20_5000, 0x30_1000),
                (0xffc0_5000, 0x30_0000),
                (0xffe0_5000, 0x30_1000),
                (0x5000_5000, 0x30_0000),
                (0x9000_3000, 0x80_3000),
                (0x9023_3000, 0xa3_3000),
            ],
        },
        ModeCase {
            name: "PAE",
            cr0: paged,
            cr4: pae,
            long: false,
            words: vec![(t[1] + 8, t[2] | 7, 8), (t[2] + 8 * 7, 0x30_0007, 8), (t[1] + 16, 0x40_0087, 8)],
            pdptr: [0, t[1] | 1, 0, 0],
            pages: vec![(0x4020_7000, 0x30_0000), (0x4041_2000, 0x41_2000)],
        },
        ModeCase {
            name: "5-level",
            cr0: paged,
            cr4: pae.with_la57(true),
            long: true,
            words: vec![
                (t[0] + 8 * 3, t[1] | 7, 8),
                (t[1], t[2] | 7, 8),
                (t[2], 0x87, 8),
                (t[2] + 8, t[3] | 7, 8),
                (t[3], 0x20_0087, 8),
            ],
            pdptr: [0; 4],
            pages: vec![(3 << 48 | 0x12_3000, 0x12_3000), (3 << 48 | 0x4000_1000, 0x20_1000)],
        },
    ]
}

/// Runs all pages of a case; gives what was mapped and what the tables hold afterwards.
fn run_case(npt: bool, case: &ModeCase) -> (Vec<End>, Vec<u64>) {
    let mut bench = Bench::new(npt, 40, 40, 0, 0);
    TABLES.iter().for_each(|table| assert!(bench.host.write(*table, &[0; 0x1000])));
    for (address, value, size) in &case.words {
        bench.host.write(*address, &value.to_le_bytes()[..*size]);
    }
    bench.state.cr0 = case.cr0.into_bits();
    bench.state.cr4 = case.cr4.into_bits();
    bench.state.efer = Efer::new().with_lme(case.long).with_lma(case.long).into_bits();
    bench.state.pdptr = case.pdptr;
    bench.vm.state_changed(0, &mut bench.state, &mut bench.host);
    bench.enter();
    let mut ends = Vec::new();
    for (gva, _) in &case.pages {
        for kind in [READ, WRITE] {
            ends.push(bench.run_at(*gva, kind, false).0);
        }
    }
    let words = case.words.iter().map(|(address, ..)| bench.host.read_u64(*address).unwrap()).collect();
    (ends, words)
}

#[test]
fn every_paging_mode_maps_alike_in_both_forms() {
    for case in mode_cases() {
        let expected: Vec<_> = case.pages.iter().flat_map(|(_, page)| [End::Mapped(*page); 2]).collect();
        let (shadow, shadow_words) = run_case(false, &case);
        let (nested, nested_words) = run_case(true, &case);
        assert_eq!(shadow, expected, "shadow paging, {}", case.name);
        assert_eq!(nested, expected, "nested paging, {}", case.name);
        assert_eq!(shadow_words, nested_words, "accessed and dirty bits, {}", case.name);
    }
}

#[test]
fn vcpus_share_shadow_pages_even_across_widths() {
    // The role of a shadow page holds no MAXPHYADDR: a narrower vCPU meets what a wider one built.
    let mut bench = Bench::new(false, 46, 46, pde(7), DATA | 7 | 1 << 24);
    bench.host.ram.resize(0x800_0000, 0);
    let region = MemoryRegion { slot: 1, flags: 0, gpa: BIT36, size: RAM, hpa: RAM };
    bench.vm.set_memory_region(&region, &mut bench.host).unwrap();
    bench.host.write(bench.entry_address(3), &(BIT36 | 0x5007u64).to_le_bytes());
    bench.enter();
    assert_eq!(bench.run(READ, false).0, End::Mapped(RAM + 0x5000));
    bench.vm.create_vcpu(1).unwrap();
    let leaf = |function, eax| CpuidEntry { function, eax, ..Default::default() };
    let narrow = [leaf(0x8000_0000, 0x8000_0008), leaf(0x8000_0008, 36 | 48 << 8)];
    let mut state = bench.state;
    bench.vm.set_cpuid(1, &mut state, &narrow, &mut bench.host).unwrap();
    bench.vm.enter(1, &mut state, &mut bench.host);
    let access = Access { gva: GVA, kind: READ, size: 8, ..Default::default() };
    let answer = bench.vm.access(1, &mut state, &access, &mut bench.host, &mut Exit::default());
    assert_eq!((answer.verdict, answer.mapping.hpa), (Verdict::NATIVE, RAM + 0x5000));
}
