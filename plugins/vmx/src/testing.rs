//! A machine for unit tests: a guest with four-level page tables on a host that is memory.

use crate::{Vm, vm::Shared};
use vmtape_abi::{Backend, Host, MemoryRegion, VmConfig};
use vmtape_arch::{
    access::{Access, AccessKind, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume, VmxReason},
    host::{Silicon, Vendor},
    regs::{Cr0, Cr4, Efer},
    vcpu::VcpuState,
};
use vmtape_testing::TestHost;

/// Where kvm-unit-tests' access.c puts what it tests, so that addresses here are those that its failures print.
/// See: kvm-unit-tests x86/access.c ac_test_init(), AT_CODE_DATA_PHYS, AT_PAGING_STRUCTURES_PHYS
pub const GVA: u64 = 0xffff_9234_0000_0000;
pub const DATA: u64 = 0x200_0000;
pub const MEMORY: u64 = 0x220_0000;
pub const PML4: u64 = 0x1000;
pub const PDPT: u64 = 0x210_0000;
pub const PD: u64 = 0x210_1000;
pub const PT: u64 = 0x210_2000;
/// The entries for `GVA`.
const PML4E: u64 = PML4 + 8 * 292;
const PDPTE: u64 = PDPT + 8 * 208;
pub const PDE: u64 = PD;
pub const PTE: u64 = PT;
/// P, W, U, A, D.
pub const ALL: u64 = 0x67;

/// A vCPU in long mode on a small VM.
pub struct Guest {
    pub vm: Vm,
    pub state: VcpuState,
    pub host: TestHost,
    pub exit: Exit,
    /// The linear address that is accessed: `GVA`, or near it.
    pub gva: u64,
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Mapped,
    /// A #PF of the guest's own tables: error code.
    Fault(u32),
    /// Reason and qualification without bits 11:9, which kvm-unit-tests leave out too.
    Exit(VmxReason, u64),
}

/// A host whose EPT maps 4 KiB pages.
pub fn silicon(phys_bits: u8) -> Silicon {
    Silicon {
        vendor: Vendor::INTEL,
        phys_bits,
        host_levels: 4,
        ept_levels: 4,
        gbpages: true.into(),
        ept_ad: true.into(),
        ept_advanced: true.into(),
        apicv: true.into(),
        nrips: false.into(),
        decode_assists: false.into(),
        backing_shift: 12,
        rmw_reads_first: false.into(),
        encryption_bits: 0,
        vgif: false.into(),
        vls: false.into(),
        vnmi: false.into(),
    }
}

/// The CPUID of a guest with this width.
pub fn cpuid(maxphyaddr: u8) -> Vec<CpuidEntry> {
    let leaf = |function, eax, ecx, edx| CpuidEntry { function, eax, ecx, edx, ..Default::default() };
    vec![
        leaf(0x8000_0000, 0x8000_0008, 0, 0),
        leaf(0x8000_0001, 0, 0, 1 << 20 | 1 << 29),
        leaf(0x8000_0008, 0x3000 | u32::from(maxphyaddr), 0, 0),
    ]
}

impl Guest {
    /// A guest of the given width whose tables map `GVA` to `DATA` with all rights, accessed and dirty.
    pub fn new(silicon: Silicon, maxphyaddr: u8, options: &[(&str, &str)]) -> Self {
        let options = options.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
        let mut vm = Vm::of(Shared::new(&VmConfig { silicon, options }).unwrap());
        let mut host = TestHost::new(MEMORY as usize);
        let mut state = VcpuState::reset();
        state.cr0 = Cr0::new().with_pe(true).with_pg(true).with_wp(true).into_bits();
        state.cr4 = Cr4::new().with_pae(true).into_bits();
        state.efer = Efer::new().with_lme(true).with_lma(true).with_nxe(true).into_bits();
        state.cr3 = PML4;
        let region = MemoryRegion { slot: 0, flags: 0, gpa: 0, size: MEMORY, hpa: 0 };
        vm.set_memory_region(&region, &mut host).unwrap();
        vm.create_vcpu(0).unwrap();
        vm.set_cpuid(0, &mut state, &cpuid(maxphyaddr), &mut host).unwrap();
        for (at, entry) in [(PML4E, PDPT), (PDPTE, PD), (PDE, PT)] {
            host.write(at, &(entry | ALL).to_le_bytes());
        }
        host.write(PTE, &(DATA | ALL).to_le_bytes());
        assert_eq!(vm.enter(0, &mut state, &mut host), Resume::GUEST);
        Self { vm, state, host, exit: Exit::default(), gva: GVA }
    }

    /// A guest in 32-bit paging, whose tables map the page at zero to itself in 4-byte entries.
    pub fn protected(maxphyaddr: u8, options: &[(&str, &str)]) -> Self {
        let mut guest = Self::new(silicon(46), maxphyaddr, options);
        guest.state.efer = 0;
        guest.state.cr4 = 0;
        guest.vm.state_changed(0, &mut guest.state, &mut guest.host);
        // 4-byte entries for linear address zero: the table's entry, the page's.
        guest.host.write(PML4, &(PDPT as u32 | ALL as u32).to_le_bytes());
        guest.host.write(PDPT, &(DATA as u32 | ALL as u32).to_le_bytes());
        guest.state.cr3 = PML4;
        guest.gva = 0;
        guest.vm.enter(0, &mut guest.state, &mut guest.host);
        guest
    }

    /// Writes an entry of the guest's tables.
    pub fn set(&mut self, gpa: u64, entry: u64) {
        self.host.write(gpa, &entry.to_le_bytes());
    }

    /// An entry of the guest's tables.
    pub fn get(&mut self, gpa: u64) -> u64 {
        self.host.read_u64(gpa).unwrap()
    }

    /// One access, as the interpreter asks for it on a TLB miss.
    pub fn access(&mut self, kind: AccessKind, user: bool) -> Ended {
        let access = Access { gva: self.gva, kind, user: user.into(), size: 8, ..Default::default() };
        self.host.access = access;
        self.host.emulated = None;
        let answer: Answer = self.vm.access(0, &mut self.state, &access, &mut self.host, &mut self.exit);
        match answer.verdict {
            Verdict::NATIVE => Ended::Mapped,
            Verdict::FAULT => self.fault(&answer.fault),
            _ => Ended::Exit(VmxReason(self.exit.reason), self.exit.info1 & !0xe00),
        }
    }

    /// A #PF as the interpreter delivers it: offered to the backend first, if it is intercepted.
    fn fault(&mut self, fault: &Exception) -> Ended {
        let wanted = self.state.intercepts.exceptions >> fault.vector.0 & 1 != 0;
        if wanted
            && self.vm.exception(0, &mut self.state, fault, &mut self.host, &mut self.exit) == Verdict::EXIT
        {
            return Ended::Exit(VmxReason(self.exit.reason), self.exit.info1);
        }
        Ended::Fault(fault.error_code)
    }

    /// KVM's side of the exit, and the next entry.
    pub fn handle(&mut self) -> Resume {
        let exit = self.exit;
        let resume = self.vm.handle_exit(0, &mut self.state, &exit, &mut self.host);
        self.vm.enter(0, &mut self.state, &mut self.host);
        resume
    }

    /// Lets KVM map everything that the access needs.
    pub fn populate(&mut self) {
        while let Ended::Exit(..) = self.access(AccessKind::WRITE, false) {
            self.handle();
        }
    }

    /// Gives the EPT entry of a frame other rights (bits 2:0), or makes other changes.
    pub fn edit_ept(&mut self, gpa: u64, edit: impl Fn(u64) -> u64) {
        self.vm.shared.kvm.mmu.edit_leaf(0, gpa >> 12, edit);
    }

    /// The error code that the next entry injects with #PF.
    pub fn injected(&self) -> Option<u32> {
        let event = self.state.inject;
        (event.valid.is_set() && event.vector == 14).then_some(event.error_code)
    }
}
