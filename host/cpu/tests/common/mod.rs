//! A trivial environment: linear addresses are host physical ones, a range of pages may be made absent.

use iced_x86::code_asm::CodeAssembler;
use vmtape_arch::{
    access::{Access, AccessKind, Mapping, MappingKind},
    event::Event,
    exception::{Exception, PageFaultError},
    regs::{Cr0, Cr4, Efer, SegAttr},
    sensitive::Sensitive,
    vcpu::{Segment, VcpuState, seg},
};
use vmtape_cpu::{Cpu, CpuConfig, Decision, Env, Interrupted, Ram, Stop};

pub const RAM_SIZE: usize = 0x40_0000;
pub const CODE: u64 = 0x1000;
pub const STACK: u64 = 0x9000;
pub const DATA: u64 = 0x10_0000;

pub struct Identity {
    pub ram: Ram,
    /// Pages that are not present: page number and what is refused.
    pub absent: Vec<(u64, AccessKind)>,
    pub fault: Option<Exception>,
    /// Pages whose access exits, and the event that was in delivery then.
    pub exits: Vec<u64>,
    pub delivering: Option<Event>,
    /// The last instruction that was offered.
    pub asked: Option<Sensitive>,
}

impl Env for Identity {
    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn access(&mut self, _: &mut VcpuState, access: &Access) -> Result<Mapping, Interrupted> {
        let page = access.gva >> 12;
        if self.exits.contains(&page) {
            self.delivering = Some(access.delivering);
            return Err(Interrupted::Exit);
        }
        let refused = |kind| self.absent.iter().any(|(p, k)| *p == page && *k == kind);
        if access.gva >= RAM_SIZE as u64 || refused(access.kind) {
            let error =
                PageFaultError::new().with_w(access.kind == AccessKind::WRITE).with_u(access.user.is_set());
            return Err(Interrupted::Fault(Exception::pf(access.gva, error)));
        }
        Ok(Mapping {
            gpa: page << 12,
            hpa: page << 12,
            read: (!refused(AccessKind::READ)).into(),
            write: (!refused(AccessKind::WRITE)).into(),
            fetch: (!refused(AccessKind::FETCH)).into(),
            global: false.into(),
            kind: MappingKind::RAM,
            guest_page_shift: 12,
            memory_type: Default::default(),
            guest_memory_type: Default::default(),
        })
    }

    fn sensitive(&mut self, _: &mut VcpuState, insn: &Sensitive) -> Decision {
        self.asked = Some(*insn);
        Decision::Native
    }

    /// Takes every exception: a test looks at it.
    fn exception(&mut self, _: &mut VcpuState, exception: &Exception) -> Option<()> {
        self.fault = Some(*exception);
        Some(())
    }
}

/// Flat segments for 16-, 32- or 64-bit code at CPL 0, with every exception intercepted.
pub fn state(bits: u32) -> VcpuState {
    let mut state = VcpuState::reset();
    let data = SegAttr::new().with_typ(3).with_s(true).with_present(true).with_g(true).with_db(bits == 32);
    for n in 0..6 {
        state.seg[n] = Segment { base: 0, limit: u32::MAX, selector: 16, attr: data };
    }
    state.seg[seg::CS].attr = data.with_typ(11).with_l(bits == 64);
    state.cr0 = Cr0::new().with_pe(true).with_pg(bits == 64).with_et(true).into_bits();
    if bits == 64 {
        state.cr4 = Cr4::new().with_pae(true).into_bits();
        state.efer = Efer::new().with_lme(true).with_lma(true).into_bits();
    }
    state.rip = CODE;
    state.gpr[4] = STACK;
    state.intercepts.exceptions = u32::MAX;
    state
}

pub struct Machine {
    pub cpu: Cpu,
    pub state: VcpuState,
    pub env: Identity,
}

impl Machine {
    pub fn new(bits: u32, code: &[u8]) -> Self {
        let ram = Ram::leaked(RAM_SIZE);
        assert!(ram.write(CODE, code));
        let env = Identity {
            ram,
            absent: Vec::new(),
            fault: None,
            exits: Vec::new(),
            delivering: None,
            asked: None,
        };
        Self { cpu: Cpu::new(CpuConfig::default()), state: state(bits), env }
    }

    /// Assembles at `CODE`.
    pub fn assemble(
        bits: u32,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) -> Self {
        let mut asm = CodeAssembler::new(bits).expect("bitness");
        write(&mut asm).expect("instructions");
        Self::new(bits, &asm.assemble(CODE).expect("encodable"))
    }

    /// Runs `count` instructions.
    pub fn run(&mut self, count: u64) -> Stop {
        let until = self.state.icount + count;
        self.cpu.run(&mut self.state, &mut self.env, until)
    }

    pub fn read_u64(&self, hpa: u64) -> u64 {
        let mut bytes = [0; 8];
        assert!(self.env.ram.read(hpa, &mut bytes));
        u64::from_le_bytes(bytes)
    }
}
