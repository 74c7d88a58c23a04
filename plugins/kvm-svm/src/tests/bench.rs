//! A 64-bit guest with one linear page, on a host that is memory and nothing else.

use crate::{Vm, create};
use vmtape_abi::{Backend, Errno, Host, MemoryRegion, VmConfig};
use vmtape_arch::{
    access::{Access, AccessKind, Answer, Verdict},
    cpuid::CpuidEntry,
    exception::Vector,
    exit::{Exit, Resume, ResumeKind},
    host::{Silicon, Vendor},
    regs::{Cr0, Cr4, Efer, SegAttr},
    vcpu::{VcpuState, seg},
};
use vmtape_testing::TestHost;

/// Addresses as in kvm-unit-tests x86/access.c.
pub const GVA: u64 = 0xffff_9234_0000_0000;
pub const DATA: u64 = 0x200_0000;
/// Tables of levels 4, 3, 2 and 1.
pub const TABLES: [u64; 4] = [0x210_0000, 0x210_1000, 0x210_2000, 0x210_3000];
pub const RAM: u64 = 0x400_0000;
/// A second slot's memory lies behind the first one's.
pub const SECOND_RAM: u64 = 0x20_0000;

pub const READ: AccessKind = AccessKind::READ;
pub const WRITE: AccessKind = AccessKind::WRITE;
pub const FETCH: AccessKind = AccessKind::FETCH;
pub const BIT36: u64 = 1 << 36;
pub const NX: u64 = 1 << 63;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;

/// A directory entry that points to the page table.
pub fn pde(flags: u64) -> u64 {
    TABLES[3] | flags
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a mapping to this host physical page.
    Mapped(u64),
    /// With a page fault that the guest takes, and the accessed address in CR2.
    Fault(u32),
    /// With a page fault and another address in CR2.
    FaultAt(u32, u64),
    /// With an emulation that goes to a device at this address.
    Mmio(u64),
    /// With KVM_EXIT_INTERNAL_ERROR of this suberror.
    InternalError(u64),
    /// With KVM_EXIT_MEMORY_FAULT about this page, and -EFAULT.
    MemoryFault(u64),
    /// With the same exit for ever.
    Loop,
}

/// So many exits of one access are one too many.
const PATIENCE: usize = 32;

pub struct Bench {
    pub vm: Vm,
    pub states: Vec<VcpuState>,
    pub host: TestHost,
}

/// A machine to build: guest and host width, and the two entries of the scenario.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    pub npt: bool,
    pub options: &'a [(&'a str, &'a str)],
    pub guest_width: u8,
    pub host_width: u8,
    /// Of them, taken by memory encryption.
    pub encryption_bits: u8,
    /// Silicon has virtual GIF, VMLOAD, VMSAVE and NMI.
    pub newest: bool,
    pub pde: u64,
    pub pte: u64,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            npt: true,
            options: &[],
            guest_width: 36,
            host_width: 46,
            encryption_bits: 0,
            newest: false,
            pde: pde(7),
            pte: DATA | 7,
        }
    }
}

pub fn silicon(host_width: u8) -> Silicon {
    Silicon {
        vendor: Vendor::AMD,
        phys_bits: host_width,
        host_levels: 4,
        ept_levels: 0,
        gbpages: true.into(),
        ept_ad: false.into(),
        ept_advanced: false.into(),
        apicv: false.into(),
        nrips: true.into(),
        decode_assists: false.into(),
        backing_shift: 21,
        rmw_reads_first: false.into(),
        encryption_bits: 0,
        vgif: false.into(),
        vls: false.into(),
        vnmi: false.into(),
    }
}

/// A CPUID with a width, with or without 1 GiB pages.
pub fn cpuid(width: u8, gbpages: bool) -> Vec<CpuidEntry> {
    let leaf = |function, eax, edx| CpuidEntry { function, eax, edx, ..Default::default() };
    vec![
        leaf(0x8000_0000, 0x8000_0008, 0),
        leaf(0x8000_0001, 0, u32::from(gbpages) << 26),
        leaf(0x8000_0008, u32::from(width) | 48 << 8, 0),
    ]
}

impl Setup<'_> {
    /// A guest in long mode with paging on, before its first access.
    pub fn build(&self) -> Bench {
        let options = self.options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let newest = self.newest.into();
        let silicon = Silicon {
            encryption_bits: self.encryption_bits,
            vgif: newest,
            vls: newest,
            vnmi: newest,
            ..silicon(self.host_width)
        };
        let config = VmConfig { silicon, options };
        let mut state = VcpuState::reset();
        state.cr0 = Cr0::new().with_pe(true).with_pg(true).with_et(true).into_bits();
        state.cr4 = Cr4::new().with_pae(true).into_bits();
        state.efer = Efer::new().with_lme(true).with_lma(true).into_bits();
        state.cr3 = TABLES[0];
        state.seg[seg::CS].attr = SegAttr::new().with_typ(0xb).with_s(true).with_present(true).with_l(true);
        let host = TestHost::new((RAM + SECOND_RAM) as usize);
        let mut bench = Bench { vm: create(&config, self.npt).unwrap(), states: vec![state], host };
        for (i, entry) in [TABLES[1] | 7, TABLES[2] | 7, self.pde, self.pte].into_iter().enumerate() {
            bench.set_entry(i, entry);
        }
        bench.add_slot(0, 0, RAM, 0).unwrap();
        bench.vm.create_vcpu(0).unwrap();
        bench.set_cpuid(0, self.guest_width, true).unwrap();
        bench.enter(0);
        bench
    }
}

impl Bench {
    pub fn add_slot(&mut self, slot: u32, gpa: u64, size: u64, hpa: u64) -> Result<(), Errno> {
        let region = MemoryRegion { slot, flags: 0, gpa, size, hpa };
        self.vm.set_memory_region(&region, &mut self.host)
    }

    /// KVM_SET_CPUID2.
    pub fn set_cpuid(&mut self, vcpu: u32, width: u8, gbpages: bool) -> Result<(), Errno> {
        let state = &mut self.states[vcpu as usize];
        self.vm.set_cpuid(vcpu, state, &cpuid(width, gbpages), &mut self.host)
    }

    /// Another vCPU in the state of the first.
    pub fn add_vcpu(&mut self, width: u8) -> u32 {
        let vcpu = self.states.len() as u32;
        self.vm.create_vcpu(vcpu).unwrap();
        self.states.push(self.states[0]);
        self.set_cpuid(vcpu, width, true).unwrap();
        self.enter(vcpu);
        vcpu
    }

    pub fn entry_address(&self, table: usize) -> u64 {
        TABLES[table] + 8 * (GVA >> (39 - 9 * table) & 0x1ff)
    }

    /// Writes an entry as the VMM would: nobody notices.
    pub fn set_entry(&mut self, table: usize, value: u64) {
        self.host.write(self.entry_address(table), &value.to_le_bytes());
    }

    pub fn entry(&mut self, table: usize) -> u64 {
        self.host.read_u64(self.entry_address(table)).unwrap()
    }

    pub fn pte(&mut self) -> u64 {
        self.entry(3)
    }

    pub fn state(&mut self) -> &mut VcpuState {
        &mut self.states[0]
    }

    pub fn enter(&mut self, vcpu: u32) {
        let state = &mut self.states[vcpu as usize];
        assert_eq!(self.vm.enter(vcpu, state, &mut self.host), Resume::GUEST);
    }

    /// Whether page faults exit.
    pub fn intercepts_page_faults(&self) -> bool {
        self.states[0].intercepts.exceptions >> Vector::PF.0 & 1 != 0
    }

    /// One try of the access on silicon.
    fn once(&mut self, vcpu: u32, access: &Access) -> (Answer, Exit) {
        let mut exit = Exit::default();
        let state = &mut self.states[vcpu as usize];
        let mut answer = self.vm.access(vcpu, state, access, &mut self.host, &mut exit);
        if answer.verdict == Verdict::FAULT && state.intercepts.exceptions >> Vector::PF.0 & 1 != 0 {
            answer.verdict = self.vm.exception(vcpu, state, &answer.fault, &mut self.host, &mut exit);
        }
        (answer, exit)
    }

    /// The access until it comes to an end, and the exits on the way.
    pub fn run(&mut self, kind: AccessKind, user: bool) -> (End, Vec<Exit>) {
        self.run_at(0, GVA, kind, user)
    }

    pub fn run_at(&mut self, vcpu: u32, gva: u64, kind: AccessKind, user: bool) -> (End, Vec<Exit>) {
        let access = Access { gva, kind, user: user.into(), size: 8, ..Default::default() };
        self.states[vcpu as usize].cpl = if user { 3 } else { 0 };
        self.host.access = access;
        let mut exits = Vec::new();
        while exits.len() < PATIENCE {
            let (answer, exit) = self.once(vcpu, &access);
            match answer.verdict {
                Verdict::NATIVE => return (End::Mapped(answer.mapping.hpa), exits),
                Verdict::FAULT => return (End::Fault(answer.fault.error_code), exits),
                _ => exits.push(exit),
            }
            if let Some(end) = self.handle(vcpu, &exit, gva) {
                return (end, exits);
            }
        }
        (End::Loop, exits)
    }

    /// KVM's turn, and what it meant for the access.
    fn handle(&mut self, vcpu: u32, exit: &Exit, gva: u64) -> Option<End> {
        let state = &mut self.states[vcpu as usize];
        let resume = self.vm.handle_exit(vcpu, state, exit, &mut self.host);
        match resume.kind {
            ResumeKind::INTERNAL_ERROR => return Some(End::InternalError(resume.data[0])),
            ResumeKind::MEMORY_FAULT => {
                let [flags, gpa, size, ..] = resume.data;
                assert_eq!((resume.errno, flags, size), (Errno::EFAULT.0, 0, 0x1000));
                return Some(End::MemoryFault(gpa));
            }
            _ => {}
        }
        assert_eq!(resume.kind, ResumeKind::RESUME);
        if let Some(Ok(translation)) = self.host.emulated.take() {
            assert!(!translation.ram, "only MMIO is emulated here");
            return Some(End::Mmio(translation.gpa));
        }
        self.enter(vcpu);
        let state = &mut self.states[vcpu as usize];
        let inject = std::mem::take(&mut state.inject);
        if !inject.valid {
            return None;
        }
        assert_eq!(inject.vector, Vector::PF.0);
        let code = inject.error_code;
        Some(if state.cr2 == gva { End::Fault(code) } else { End::FaultAt(code, state.cr2) })
    }
}
