//! A machine for unit tests: flat memory, a guest with four-level page tables, an emulator that only translates.

use crate::{Vm, vm::Shared};
use vmtape_abi::{
    Backend, BusOp, EmulateRequest, EmulateStatus, Emulated, EmulatorMmu, FlushScope, Host, MemoryRegion,
    VmConfig,
};
use vmtape_arch::{
    access::{Access, AccessKind, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Exception,
    exit::{Exit, Resume, VmxReason},
    host::{Silicon, Vendor},
    note::{Note, NoteKind},
    regs::{Cr0, Cr4, Efer},
    vcpu::VcpuState,
};

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

/// The services of a host, without devices.
pub struct TestHost {
    pub memory: Vec<u8>,
    pub notes: Vec<Note>,
    /// The access that the emulated instruction makes.
    pub access: Access,
    /// Where an emulated access without memory went.
    pub mmio: Option<u64>,
    /// The emulated instruction, for the emulator's tables.
    pub insn: Vec<u8>,
    /// An instruction was emulated since the last access.
    pub emulated: bool,
    pub logged: Vec<String>,
}

/// `mov (%rax), %rcx`, which the emulator knows.
pub const MOV: &[u8] = &[0x48, 0x8b, 0x08];
/// `flds (%rax)`, which it does not.
pub const FLDS: &[u8] = &[0xd9, 0x00];

impl Host for TestHost {
    fn read(&mut self, hpa: u64, buf: &mut [u8]) -> bool {
        let at = hpa as usize;
        self.memory.get(at..at + buf.len()).map(|bytes| buf.copy_from_slice(bytes)).is_some()
    }

    fn write(&mut self, hpa: u64, data: &[u8]) -> bool {
        let at = hpa as usize;
        self.memory.get_mut(at..at + data.len()).map(|bytes| bytes.copy_from_slice(data)).is_some()
    }

    fn cmpxchg(&mut self, hpa: u64, old: u64, new: u64, size: u8) -> Option<bool> {
        assert_eq!(size, 8);
        let same = self.read_u64(hpa)? == old;
        if same {
            self.write(hpa, &new.to_le_bytes());
        }
        Some(same)
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
        let mut insn = [0; 15];
        insn[..self.insn.len()].copy_from_slice(&self.insn);
        let insn_len = self.insn.len() as u8;
        // A fetch that faults comes before anything is decoded.
        if access.kind != AccessKind::FETCH && !mmu.knows(&self.insn) {
            return Emulated { status: EmulateStatus::UNHANDLEABLE, insn, insn_len, ..Default::default() };
        }
        match mmu.translate(state, &access, self) {
            Err(fault) if access.kind == AccessKind::FETCH => {
                Emulated { status: EmulateStatus::FAULT, fault, ..Default::default() }
            }
            Err(fault) => {
                Emulated { status: EmulateStatus::FAULT, fault, insn, insn_len, ..Default::default() }
            }
            Ok(to) if access.kind == AccessKind::FETCH && !to.ram => {
                Emulated { status: EmulateStatus::UNHANDLEABLE, ..Default::default() }
            }
            Ok(to) => {
                self.mmio = (!to.ram).then_some(to.gpa);
                self.emulated = true;
                Emulated { insn, insn_len, ..Default::default() }
            }
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

    fn log(&mut self, _level: u32, text: &str) {
        self.logged.push(text.into());
    }

    fn fault_point(&mut self, _vcpu: u32, _id: u32) -> Option<u64> {
        None
    }
}

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
        gbpages: true,
        ept_ad: true,
        ept_advanced: true,
        apicv: true,
        nrips: false,
        decode_assists: false,
        backing_shift: 12,
        rmw_reads_first: false,
        encryption_bits: 0,
        pad: [0; 3],
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
        let mut host = TestHost {
            memory: vec![0; MEMORY as usize],
            notes: Vec::new(),
            access: Access::default(),
            mmio: None,
            insn: MOV.to_vec(),
            emulated: false,
            logged: Vec::new(),
        };
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
        let access = Access { gva: self.gva, kind, user, size: 8, ..Default::default() };
        self.host.access = access;
        self.host.emulated = false;
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
        self.vm.shared.mmu.edit_leaf(0, gpa >> 12, edit);
    }

    /// The error code that the next entry injects with #PF.
    pub fn injected(&self) -> Option<u32> {
        let event = self.state.inject;
        (event.valid && event.vector == 14).then_some(event.error_code)
    }
}
