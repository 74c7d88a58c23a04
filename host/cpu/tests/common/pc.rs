//! A bare PC without virtualization, enough for kvm-unit-tests: the architectural page walk, a serial port that counts
//! as the console, a local APIC with a one-shot timer, fw_cfg's processor count, and the debug-exit port.

use std::collections::BTreeMap;
use vmtape_arch::{
    access::{Access, AccessKind, Mapping, MappingKind},
    cpuid::{CPUID_FLAG_SIGNIFICANT_INDEX, CpuidEntry, find},
    exception::{Exception, PageFaultError},
    msr::Msr,
    paging::{Pte, bits},
    regs::{Cr0, SegAttr},
    sensitive::Sensitive,
    vcpu::{Activity, Segment, VcpuState, gpr, seg},
};
use vmtape_cpu::{Cpu, CpuConfig, Decision, Env, Features, Interrupted, Model, Ram, Stop};

const MEMORY: usize = 256 << 20;
const APIC: u64 = 0xfee0_0000;
const TEST_MEMORY: u64 = 0xff00_0000;
const MULTIBOOT_INFO: u64 = 0x9_0000;
const COMMAND_LINE: u64 = 0x9_1000;
/// Local APIC registers.
mod apic {
    pub const ID: u64 = 0x20;
    pub const VERSION: u64 = 0x30;
    pub const TPR: u64 = 0x80;
    pub const EOI: u64 = 0xb0;
    pub const ICR: u64 = 0x300;
    pub const LVT_TIMER: u64 = 0x320;
    pub const TIMER_INITIAL: u64 = 0x380;
}

pub struct Pc {
    ram: Ram,
    cpuid: Vec<CpuidEntry>,
    phys_bits: u32,
    pub serial: Vec<u8>,
    /// What was written to the debug-exit port.
    pub exit: Option<u32>,
    fw_cfg: Vec<u8>,
    registers: BTreeMap<u64, u32>,
    apic_base: u64,
    timer: Option<u64>,
    pending: Option<u8>,
    /// The timer was set or the guest left.
    kick: bool,
    misc_enable: u64,
    /// pc-testdev's memory and port latch.
    test_memory: Vec<u8>,
    test_port: u32,
}

fn entry(function: u32, index: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    let flags = if index.is_some() { CPUID_FLAG_SIGNIFICANT_INDEX } else { 0 };
    CpuidEntry { function, index: index.unwrap_or(0), flags, eax, ebx, ecx, edx, pad: 0 }
}

/// A recent processor with `phys_bits` physical address bits.
fn cpuid_table(vendor: &[u8; 12], phys_bits: u32) -> Vec<CpuidEntry> {
    let word = |n: usize| u32::from_le_bytes(vendor[n..n + 4].try_into().expect("four bytes"));
    let set = |list: &[u32]| list.iter().fold(0u32, |bits, bit| bits | 1 << bit);
    vec![
        entry(0, None, [0xd, word(0), word(8), word(4)]),
        entry(1, None, [0x806c1, 0x800, set(&[0, 9, 13, 17, 19, 20, 22, 23, 26, 30]), 0x078b_fbff]),
        entry(7, Some(0), [0, set(&[0, 3, 7, 8, 10, 18, 19, 20, 23, 24]), set(&[2, 3, 16, 22]), 0]),
        entry(0xd, Some(0), [7, 0x340, 0x340, 0]),
        entry(0x8000_0000, None, [0x8000_0008, 0, 0, 0]),
        entry(0x8000_0001, None, [0, 0, set(&[0, 5]), set(&[11, 20, 26, 27, 29])]),
        entry(0x8000_0008, None, [phys_bits | 57 << 8, 0, 0, 0]),
    ]
}

/// How a guest ended.
#[derive(Debug)]
pub struct Ended {
    pub status: Option<u32>,
    pub console: String,
    pub instructions: u64,
    pub stop: Stop,
}

/// Runs a kvm-unit-tests image until it leaves through the debug-exit port or `budget` instructions have retired.
pub fn run(image: &[u8], arguments: &str, vendor: &[u8; 12], budget: u64) -> Ended {
    let cpuid = cpuid_table(vendor, 46);
    let (features, model) = (Features::from_cpuid(&cpuid), Model::from_cpuid(&cpuid));
    let mut cpu = Cpu::new(CpuConfig { features, model, ..CpuConfig::default() });
    let mut pc = Pc {
        ram: Ram::leaked(MEMORY),
        cpuid,
        phys_bits: 46,
        serial: Vec::new(),
        exit: None,
        fw_cfg: Vec::new(),
        registers: BTreeMap::from([(apic::VERSION, 0x5_0014)]),
        apic_base: APIC | 0x900,
        timer: None,
        pending: None,
        kick: false,
        misc_enable: 0x1880,
        test_memory: vec![0; 0x1_0000],
        test_port: 0,
    };
    let entry = load(&pc.ram, image, arguments);
    let mut state = multiboot_state(entry);
    let mut stop = Stop::Budget;
    while pc.exit.is_none() && state.icount < budget {
        let until = pc.timer.map_or(budget, |due| due.max(state.icount)).min(budget);
        stop = cpu.run(&mut state, &mut pc, until);
        match stop {
            Stop::Halted if pc.pending.is_some() => state.activity = Activity::ACTIVE,
            Stop::Halted if state.activity == Activity::HLT => match pc.timer {
                Some(due) => state.icount = state.icount.max(due),
                None => break,
            },
            Stop::Halted | Stop::TripleFault => break,
            Stop::Budget | Stop::Exit => {}
        }
        if pc.timer.is_some_and(|due| due <= state.icount) {
            pc.timer = None;
            pc.pending = Some(pc.registers.get(&apic::LVT_TIMER).copied().unwrap_or(0) as u8);
            if state.rflags().intr() {
                state.activity = Activity::ACTIVE;
            }
        }
    }
    let console = String::from_utf8_lossy(&pc.serial).into_owned();
    Ended { status: pc.exit, console, instructions: state.icount, stop }
}

/// Loads an ELF32 multiboot image; the entry point.
fn load(ram: &Ram, image: &[u8], arguments: &str) -> u32 {
    let half = |at: usize| u16::from_le_bytes(image[at..at + 2].try_into().expect("two bytes"));
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().expect("four bytes"));
    for n in 0..half(44) as usize {
        let header = word(28) as usize + n * half(42) as usize;
        let (typ, offset, paddr, size) =
            (word(header), word(header + 4) as usize, word(header + 12), word(header + 16) as usize);
        if typ == 1 {
            assert!(ram.write(paddr as u64, &image[offset..offset + size]));
        }
    }
    let mut info = [0u8; 120];
    info[8..12].copy_from_slice(&((MEMORY as u32 >> 10) - 1024).to_le_bytes());
    info[16..20].copy_from_slice(&(COMMAND_LINE as u32).to_le_bytes());
    assert!(ram.write(MULTIBOOT_INFO, &info));
    assert!(ram.write(COMMAND_LINE, format!("guest {arguments}\0").as_bytes()));
    word(24)
}

fn multiboot_state(entry: u32) -> VcpuState {
    let mut state = VcpuState::reset();
    let data = SegAttr::new().with_typ(3).with_s(true).with_present(true).with_g(true).with_db(true);
    for n in 0..6 {
        state.seg[n] = Segment { base: 0, limit: u32::MAX, selector: 0x10, attr: data };
    }
    state.seg[seg::CS] = Segment { selector: 8, attr: data.with_typ(11), ..state.seg[seg::CS] };
    state.cr0 = Cr0::new().with_pe(true).with_et(true).into_bits();
    state.rip = entry as u64;
    state.gpr[gpr::RAX] = 0x2bad_b002;
    state.gpr[gpr::RBX] = MULTIBOOT_INFO;
    state.intercepts.virtual_interrupts = true.into();
    state
}

impl Pc {
    fn fw_cfg_select(&mut self, index: u32) {
        const NB_CPUS: u32 = 5;
        self.fw_cfg = if index == NB_CPUS { vec![0, 1] } else { Vec::new() };
    }

    /// See: SDM vol. 3A 4.5 4-Level Paging and 5-Level Paging, 4.6 Access Rights
    fn walk(&mut self, state: &VcpuState, access: &Access) -> Result<(u64, u8, Pte), PageFaultError> {
        let (cr0, cr4) = (state.cr0(), state.cr4());
        let (write, fetch) = (access.kind == AccessKind::WRITE, access.kind == AccessKind::FETCH);
        let error = PageFaultError::new()
            .with_w(write)
            .with_u(access.user.is_set())
            .with_i(fetch && (state.efer().nxe() || cr4.smep()));
        let mut table = state.cr3 & bits(12, 51);
        let (mut w, mut u, mut nx) = (true, true, false);
        let mut path = Vec::new();
        for level in (1..=if cr4.la57() { 5 } else { 4 }).rev() {
            let shift = 12 + 9 * (level - 1);
            let at = table + 8 * (access.gva >> shift & 0x1ff);
            let mut raw = [0; 8];
            if !self.ram.read(at, &mut raw) {
                return Err(error.with_p(true).with_rsvd(true));
            }
            let pte = Pte::from_bits(u64::from_le_bytes(raw));
            if !pte.p() {
                return Err(error);
            }
            let leaf = level == 1 || (level < 4 && pte.ps());
            let low = if leaf && level > 1 { bits(13, shift - 1) } else { 0 };
            let large = if level > 3 { bits(7, 7) } else { 0 };
            let nx_reserved = if state.efer().nxe() { 0 } else { bits(63, 63) };
            if pte.into_bits() & (bits(self.phys_bits, 51) | low | large | nx_reserved) != 0 {
                return Err(error.with_p(true).with_rsvd(true));
            }
            (w, u, nx) = (w && pte.w(), u && pte.u(), nx || pte.nx());
            path.push((at, pte));
            if leaf {
                let rights = Rights { w, u, nx, pkey: if u { pte.pkey() } else { 0 } };
                rights.check(state, access, error.with_p(true))?;
                let last = path.len() - 1;
                for (n, (at, pte)) in path.into_iter().enumerate() {
                    let marked = pte.with_a(true).with_d(pte.d() || (write && n == last));
                    if marked != pte {
                        self.ram.write(at, &marked.into_bits().to_le_bytes());
                    }
                }
                let page = pte.into_bits() & bits(shift, 51);
                let offset = access.gva & bits(0, shift - 1) & !0xfff;
                let dirty = pte.with_d(pte.d() || write).with_w(w || (!cr0.wp() && !access.user));
                return Ok((page | offset, shift as u8, dirty));
            }
            table = pte.address();
        }
        unreachable!("level 1 is a leaf")
    }
}

struct Rights {
    w: bool,
    u: bool,
    nx: bool,
    pkey: u8,
}

impl Rights {
    fn check(&self, state: &VcpuState, access: &Access, error: PageFaultError) -> Result<(), PageFaultError> {
        let (cr0, cr4) = (state.cr0(), state.cr4());
        let write = access.kind == AccessKind::WRITE;
        let ac = state.rflags().ac() && !access.implicit;
        let refused = if access.kind == AccessKind::FETCH {
            self.nx || (access.user.is_set() && !self.u) || (!access.user && self.u && cr4.smep())
        } else {
            (access.user.is_set() && !self.u)
                || (!access.user && self.u && cr4.smap() && !ac)
                || (write && !self.w && (access.user.is_set() || cr0.wp()))
        };
        if refused {
            return Err(error);
        }
        if cr4.pke() && self.u && access.kind != AccessKind::FETCH {
            let key = state.pkru >> (2 * self.pkey);
            if key & 1 != 0 || (key & 2 != 0 && write && (access.user.is_set() || cr0.wp())) {
                return Err(error.with_pk(true));
            }
        }
        Ok(())
    }
}

impl Env for Pc {
    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn access(&mut self, state: &mut VcpuState, access: &Access) -> Result<Mapping, Interrupted> {
        let (gpa, shift, writable) = if state.cr0().pg() {
            let fault = |error| Interrupted::Fault(Exception::pf(access.gva, error));
            let (gpa, shift, pte) = self.walk(state, access).map_err(fault)?;
            (gpa, shift, pte.w() && pte.d())
        } else {
            (access.gva & !0xfff, 12, true)
        };
        let ram = gpa < MEMORY as u64;
        Ok(Mapping {
            gpa,
            hpa: gpa,
            read: (access.kind != AccessKind::FETCH).into(),
            write: (writable && access.kind != AccessKind::FETCH).into(),
            fetch: (access.kind == AccessKind::FETCH).into(),
            global: false.into(),
            kind: if ram { MappingKind::RAM } else { MappingKind::DEVICE },
            guest_page_shift: shift,
            memory_type: Default::default(),
            guest_memory_type: Default::default(),
        })
    }

    fn sensitive(&mut self, _: &mut VcpuState, _: &Sensitive) -> Decision {
        Decision::Native
    }

    fn exception(&mut self, _: &mut VcpuState, _: &Exception) -> Option<()> {
        None
    }

    fn device(
        &mut self,
        state: &mut VcpuState,
        gpa: u64,
        size: u8,
        write: Option<u64>,
    ) -> Result<u64, Interrupted> {
        if gpa & !0xffff == TEST_MEMORY {
            let at = (gpa & 0xffff) as usize;
            let bytes = &mut self.test_memory[at..at + size as usize];
            let mut value = [0; 8];
            match write {
                Some(value) => bytes.copy_from_slice(&value.to_le_bytes()[..size as usize]),
                None => value[..size as usize].copy_from_slice(bytes),
            }
            return Ok(u64::from_le_bytes(value));
        }
        let register = gpa & 0xff0;
        if gpa & !0xfff != APIC {
            return Ok(u64::MAX);
        }
        let Some(value) = write else {
            return Ok(self.registers.get(&register).copied().unwrap_or(0) as u64);
        };
        match register {
            apic::ID | apic::VERSION | apic::EOI | apic::ICR => {}
            apic::TIMER_INITIAL => {
                self.timer = (value != 0).then(|| state.icount + value);
                self.kick = true;
            }
            apic::TPR => state.cr8 = value >> 4,
            _ => {
                self.registers.insert(register, value as u32);
            }
        }
        Ok(0)
    }

    fn port(&mut self, _: &mut VcpuState, port: u16, _: u8, write: Option<u32>) -> u32 {
        match (port, write) {
            (0x3f8, Some(value)) => self.serial.push(value as u8),
            (0x3fd, None) => return 0x20,
            (0xf4, Some(value)) => {
                self.exit = Some(value);
                self.kick = true;
            }
            (0x510, Some(index)) => self.fw_cfg_select(index),
            (0x511, None) => return self.fw_cfg.pop().unwrap_or(0) as u32,
            (0xe0..=0xe3, Some(value)) => self.test_port = value,
            (0xe0..=0xe3, None) => return self.test_port,
            // The second interrupt controller's lines, with the vectors that firmware gives them.
            (0x2008..=0x200f, Some(1)) => {
                self.pending = Some((port - 0x2008) as u8 + 0x70);
                self.kick = true;
            }
            (_, None) => return u32::MAX,
            _ => {}
        }
        0
    }

    fn cpuid(&mut self, state: &mut VcpuState, function: u32, index: u32) -> [u32; 4] {
        let Some(e) = find(&self.cpuid, function, index) else { return [0; 4] };
        let (osxsave, ospke) = (state.cr4().osxsave() as u32, state.cr4().pke() as u32);
        match function {
            1 => [e.eax, e.ebx, e.ecx | osxsave << 27, e.edx],
            7 => [e.eax, e.ebx, e.ecx | ospke << 4, e.edx],
            _ => [e.eax, e.ebx, e.ecx, e.edx],
        }
    }

    fn msr(&mut self, _: &mut VcpuState, index: u32, write: Option<u64>) -> Result<u64, Exception> {
        match (Msr(index), write) {
            (Msr::IA32_APIC_BASE, Some(value)) => {
                self.apic_base = value;
                Ok(0)
            }
            (Msr::IA32_APIC_BASE, None) => Ok(self.apic_base),
            (Msr::IA32_MISC_ENABLE, Some(value)) => {
                self.misc_enable = value;
                Ok(0)
            }
            (Msr::IA32_MISC_ENABLE, None) => Ok(self.misc_enable),
            (Msr::IA32_MCG_CAP, None) => Ok(0),
            // AMD's performance counters.
            _ if matches!(index, 0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b) => Ok(0),
            _ => Err(Exception::gp(0)),
        }
    }

    fn tsc(&mut self, state: &VcpuState) -> u64 {
        state.icount
    }

    fn random(&mut self) -> u64 {
        4
    }

    fn tpr_changed(&mut self, _: &mut VcpuState) {}

    fn virtual_interrupt(&mut self, _: &mut VcpuState) -> Option<u8> {
        self.pending.take()
    }

    fn kicked(&mut self) -> bool {
        std::mem::take(&mut self.kick)
    }
}
