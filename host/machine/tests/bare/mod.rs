//! A backend without virtualization: guest physical memory is the host's, page tables are walked as bare silicon does
//! in its simplest form, and nothing is intercepted. For tests of the machine alone.

use vmtape_abi::{
    Backend, BusOp, BusSpace, EmulateRequest, EmulatorMmu, Errno, Host, MemoryRegion, Translation,
};
use vmtape_arch::host::{Silicon, Vendor};
use vmtape_arch::{
    access::{Access, AccessKind, Answer, Mapping, MappingKind, Verdict},
    cpuid::{CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry},
    exception::{Exception, PageFaultError},
    exit::{Exit, Resume, ResumeKind, StimulusKind},
    sensitive::{Sensitive, SensitiveKind},
    state::MsrEntry,
    vcpu::VcpuState,
};
use vmtape_machine::{GuestImage, MachineSpec};

const PAGE: u64 = 4096;

#[derive(Default)]
pub struct Bare {
    slots: Vec<MemoryRegion>,
    cpuid: Vec<Vec<CpuidEntry>>,
    /// IN and OUT leave the guest.
    intercepts_ports: bool,
    /// Reads of this page leave the guest, and KVM's emulator executes the instruction.
    emulated_page: Option<u64>,
    /// What the emulator makes of it then is changed by this.
    after_emulation: Option<fn(&mut VcpuState)>,
}

/// Guest memory as the emulator finds it.
struct Flat(u64);

impl EmulatorMmu for Flat {
    fn translate(
        &mut self,
        _state: &VcpuState,
        access: &Access,
        _host: &mut dyn Host,
    ) -> Result<Translation, Exception> {
        Ok(Translation { gpa: access.gva, hpa: access.gva + self.0, ram: true.into(), pad: [0; 7] })
    }

    fn wrote(&mut self, _gpa: u64, _len: u8, _host: &mut dyn Host) {}
}

impl Bare {
    /// One that intercepts port I/O, so that there are exits.
    #[allow(dead_code, reason = "not every test file uses it")]
    pub fn with_exits() -> Self {
        Self { intercepts_ports: true, ..Self::default() }
    }

    /// One whose guest leaves where it reads a page, for an emulator that gets the registers wrong in a way.
    #[allow(dead_code, reason = "not every test file uses it")]
    pub fn emulating(page: u64, wrong: Option<fn(&mut VcpuState)>) -> Self {
        Self { emulated_page: Some(page), after_emulation: wrong, ..Self::default() }
    }

    fn emulate(&self, vcpu: u32, state: &mut VcpuState, host: &mut dyn Host) -> Resume {
        let mut flat = Flat(self.hpa(0).unwrap_or(0));
        host.emulate(vcpu, state, &EmulateRequest::default(), &mut flat);
        if let Some(wrong) = self.after_emulation {
            wrong(state);
        }
        Resume::GUEST
    }

    fn hpa(&self, gpa: u64) -> Option<u64> {
        self.slots.iter().find(|s| gpa.wrapping_sub(s.gpa) < s.size).map(|s| s.hpa + (gpa - s.gpa))
    }

    /// The guest physical address, the page's shift, and whether it is writable.
    fn walk(
        &self,
        state: &VcpuState,
        access: &Access,
        host: &mut dyn Host,
    ) -> Result<(u64, u8, bool), PageFaultError> {
        if !state.cr0().pg() {
            return Ok((access.gva, 12, true));
        }
        assert!(state.efer().lma(), "only long mode is walked here");
        let write = access.kind == AccessKind::WRITE;
        let user = access.user;
        let fault = |p: bool| {
            PageFaultError::new()
                .with_p(p)
                .with_w(write)
                .with_u(user.is_set())
                .with_i(access.kind == AccessKind::FETCH && state.efer().nxe())
        };
        let (mut table, mut writable, mut user_page, mut nx) = (state.cr3 & !0xfff, true, true, false);
        let mut level = 4;
        loop {
            let shift = 12 + 9 * (level - 1);
            let address = table + (access.gva >> shift & 0x1ff) * 8;
            let hpa = self.hpa(address).ok_or(fault(false))?;
            let entry = host.read_u64(hpa).ok_or(fault(false))?;
            if entry & 1 == 0 {
                return Err(fault(false));
            }
            let leaf = level == 1 || level < 4 && entry & 0x80 != 0;
            writable &= entry & 2 != 0;
            user_page &= entry & 4 != 0;
            nx |= entry >> 63 != 0;
            let frame = entry & 0x000f_ffff_ffff_f000;
            if !leaf {
                host.write(hpa, &(entry | 0x20).to_le_bytes());
                (table, level) = (frame, level - 1);
                continue;
            }
            let denied = user.is_set() && !user_page
                || write && !writable && (user.is_set() || state.cr0().wp())
                || access.kind == AccessKind::FETCH && (nx || state.cr4().smep() && !user && user_page);
            if denied {
                return Err(fault(true));
            }
            host.write(hpa, &(entry | 0x20 | if write { 0x40 } else { 0 }).to_le_bytes());
            let offset = (1 << shift) - 1;
            return Ok((frame & !offset | access.gva & offset, shift as u8, write));
        }
    }
}

impl Backend for Bare {
    fn resolved(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn check_extension(&self, _cap: u32) -> i64 {
        0
    }

    fn supported_cpuid(&self, silicon: &[CpuidEntry]) -> Vec<CpuidEntry> {
        silicon.to_vec()
    }

    fn set_memory_region(&mut self, region: &MemoryRegion, _host: &mut dyn Host) -> Result<(), Errno> {
        self.slots.retain(|slot| slot.slot != region.slot);
        self.slots.push(*region);
        Ok(())
    }

    fn create_vcpu(&mut self, _vcpu: u32) -> Result<(), Errno> {
        self.cpuid.push(Vec::new());
        Ok(())
    }

    fn set_cpuid(
        &mut self,
        vcpu: u32,
        _state: &mut VcpuState,
        entries: &[CpuidEntry],
        _host: &mut dyn Host,
    ) -> Result<(), Errno> {
        self.cpuid[vcpu as usize] = entries.to_vec();
        Ok(())
    }

    fn get_cpuid(&self, vcpu: u32) -> Vec<CpuidEntry> {
        self.cpuid[vcpu as usize].clone()
    }

    fn get_msrs(
        &mut self,
        _: u32,
        _: &mut VcpuState,
        _: &mut [MsrEntry],
        _: &mut dyn Host,
    ) -> Result<u32, Errno> {
        Ok(0)
    }

    fn set_msrs(
        &mut self,
        _: u32,
        _: &mut VcpuState,
        _: &[MsrEntry],
        _: &mut dyn Host,
    ) -> Result<u32, Errno> {
        Ok(0)
    }

    fn state_changed(&mut self, _vcpu: u32, state: &mut VcpuState, _host: &mut dyn Host) {
        state.intercepts.virtual_interrupts = true.into();
        state.intercepts.set(SensitiveKind::TRIPLE_FAULT, true);
        state.intercepts.set(SensitiveKind::VMCALL, true);
        state.intercepts.set(SensitiveKind::IN, self.intercepts_ports);
        state.intercepts.set(SensitiveKind::OUT, self.intercepts_ports);
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _saved: &[u8]) -> Result<(), Errno> {
        Ok(())
    }

    fn access(
        &mut self,
        _vcpu: u32,
        state: &mut VcpuState,
        access: &Access,
        host: &mut dyn Host,
        exit: &mut Exit,
    ) -> Answer {
        if access.kind == AccessKind::READ && self.emulated_page == Some(access.gva & !(PAGE - 1)) {
            *exit = Exit::default();
            return Answer { verdict: Verdict::EXIT, ..Answer::default() };
        }
        let (gpa, shift, write) = match self.walk(state, access, host) {
            Ok(found) => found,
            Err(error) => {
                let fault = Exception::pf(access.gva, error);
                return Answer { verdict: Verdict::FAULT, fault, ..Answer::default() };
            }
        };
        let hpa = self.hpa(gpa);
        let kind = if hpa.is_some() { MappingKind::RAM } else { MappingKind::APIC_PAGE };
        let mapping = Mapping {
            gpa: gpa & !(PAGE - 1),
            hpa: hpa.unwrap_or(0) & !(PAGE - 1),
            read: true.into(),
            write: write.into(),
            fetch: (access.kind == AccessKind::FETCH).into(),
            kind,
            guest_page_shift: shift,
            ..Mapping::default()
        };
        Answer { verdict: Verdict::NATIVE, mapping, ..Answer::default() }
    }

    fn sensitive(
        &mut self,
        _vcpu: u32,
        _state: &mut VcpuState,
        _insn: &Sensitive,
        _host: &mut dyn Host,
        exit: &mut Exit,
        _fault: &mut Exception,
    ) -> Verdict {
        *exit = Exit::default();
        Verdict::EXIT
    }

    fn exception(
        &mut self,
        _vcpu: u32,
        _state: &mut VcpuState,
        _exception: &Exception,
        _host: &mut dyn Host,
        _exit: &mut Exit,
    ) -> Verdict {
        Verdict::NATIVE
    }

    fn enter(&mut self, _vcpu: u32, _state: &mut VcpuState, _host: &mut dyn Host) -> Resume {
        Resume::GUEST
    }

    fn handle_exit(&mut self, vcpu: u32, state: &mut VcpuState, exit: &Exit, host: &mut dyn Host) -> Resume {
        if exit.stimulus == StimulusKind::ACCESS {
            return self.emulate(vcpu, state, host);
        }
        let insn = &exit.insn;
        let write = match insn.kind {
            SensitiveKind::IN => false,
            SensitiveKind::OUT => true,
            SensitiveKind::VMCALL => {
                const ENOSYS: i64 = -1000;
                state.gpr[0] = ENOSYS as u64;
                state.rip += u64::from(insn.len);
                return Resume::GUEST;
            }
            _ => return Resume::new(ResumeKind::SHUTDOWN),
        };
        let mut op = BusOp {
            space: BusSpace::KERNEL_PIO,
            write: write.into(),
            size: insn.size,
            address: insn.number.into(),
            data: state.gpr[0],
            pad: 0,
        };
        if !host.bus(vcpu, &mut op) {
            op.space = BusSpace::USER_PIO;
            host.bus(vcpu, &mut op);
        }
        if !write {
            let mask = u64::MAX >> (64 - 8 * u32::from(insn.size));
            state.gpr[0] = state.gpr[0] & !mask | op.data & mask;
        }
        state.rip += u64::from(insn.len);
        Resume::GUEST
    }
}

/// A machine of 128 MiB for an image, with a CPUID that kvm-unit-tests can live with.
pub fn spec(name: &str, bytes: Vec<u8>, vcpus: u32) -> MachineSpec {
    let leaf = |function, [eax, ebx, ecx, edx]: [u32; 4]| CpuidEntry {
        function,
        flags: if matches!(function, 7 | 0xd) { CPUID_FLAG_SIGNIFICANT_INDEX } else { 0 },
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    let features_edx = 0x0781_abfd;
    MachineSpec {
        vcpus,
        cpu: "test".into(),
        cpuid: vec![
            leaf(0, [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            leaf(1, [0x706e5, 0x10800, 0x41a0_2000, features_edx]),
            leaf(7, [0; 4]),
            leaf(0xa, [0; 4]),
            leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]),
            leaf(0x8000_0001, [0, 0, 1, 0x2c10_0800]),
            leaf(0x8000_0008, [0x3028, 0, 0, 0]),
        ],
        host: "test".into(),
        backend: "bare".into(),
        seed: 1,
        ..MachineSpec::new(
            GuestImage { name: name.to_owned(), bytes },
            Silicon {
                vendor: Vendor::INTEL,
                phys_bits: 40,
                host_levels: 4,
                ept_levels: 4,
                gbpages: false.into(),
                ept_ad: true.into(),
                ept_advanced: true.into(),
                apicv: false.into(),
                nrips: true.into(),
                decode_assists: true.into(),
                backing_shift: 21,
                rmw_reads_first: false.into(),
                encryption_bits: 0,
                vgif: false.into(),
                vls: false.into(),
                vnmi: false.into(),
            },
        )
    }
}

/// A multiboot image of 32-bit code at 1 MiB.
#[allow(dead_code, reason = "not every test file uses it")]
pub fn multiboot(code: &[u8]) -> Vec<u8> {
    let (base, header) = (0x10_0000u32, 84u32);
    let mut image = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut words = |words: &[u32]| image.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    let size = header + 12 + code.len() as u32;
    words(&[3 << 16 | 2, 1, base + header + 12, 52, 0, 0, 32 << 16 | 52, 1, 0]);
    words(&[1, 0, base, base, size, size, 7, 0x1000]);
    words(&[0x1bad_b002, 0, 0x1bad_b002u32.wrapping_neg()]);
    image.extend_from_slice(code);
    image
}
