//! A processor with sixteen pages: code that can be written, a page that is absent, one that is read-only, one of a device.

use crate::code::Registers;
use iced_x86::{Decoder, DecoderOptions};
use vmtape_arch::{
    access::{Access, AccessKind, Mapping, MappingKind},
    exception::{Exception, PageFaultError},
    regs::{Cr0, Cr4, Efer, SegAttr},
    vcpu::{Segment, VcpuState, seg},
};
use vmtape_cpu::{Cpu, CpuConfig, Engine, Env, Interrupted, Ram, Stop};

pub const RAM_SIZE: u64 = 0x1_0000;
pub const CODE: u64 = 0x1000;
/// Bytes of the code.
pub const CODE_SIZE: usize = 256;
const ABSENT: u64 = 0xc;
const READ_ONLY: u64 = 0xd;
const DEVICE: u64 = 0xe;

/// What is around the processor.
pub struct Around {
    ram: Ram,
    fault: Option<Exception>,
    /// A digest of what the device was asked, and answers.
    device: u64,
}

impl Env for Around {
    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn access(&mut self, _: &mut VcpuState, access: &Access) -> Result<Mapping, Interrupted> {
        let page = access.gva >> 12;
        let writes = access.kind == AccessKind::WRITE;
        if page >= RAM_SIZE >> 12 || page == ABSENT || (page == READ_ONLY && writes) {
            let error = PageFaultError::new().with_w(writes).with_p(page == READ_ONLY);
            return Err(Interrupted::Fault(Exception::pf(access.gva, error)));
        }
        Ok(Mapping {
            gpa: page << 12,
            hpa: page << 12,
            read: true.into(),
            write: (page != READ_ONLY).into(),
            fetch: true.into(),
            kind: if page == DEVICE { MappingKind::DEVICE } else { MappingKind::RAM },
            guest_page_shift: 12,
            ..Mapping::default()
        })
    }

    fn exception(&mut self, _: &mut VcpuState, exception: &Exception) -> Option<()> {
        self.fault = Some(*exception);
        Some(())
    }

    fn device(
        &mut self,
        _: &mut VcpuState,
        gpa: u64,
        size: u8,
        write: Option<u64>,
    ) -> Result<u64, Interrupted> {
        let asked = gpa << 8 | u64::from(size) | write.unwrap_or(1 << 50);
        self.device = (self.device ^ asked).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        Ok(self.device)
    }
}

pub struct World {
    pub cpu: Cpu,
    pub state: VcpuState,
    around: Around,
    pub fault: Option<Exception>,
}

impl World {
    /// `counts`: changes of memory are counted.
    pub fn new(engine: Engine, counts: bool) -> Self {
        let around = Around { ram: Ram::leaked(RAM_SIZE as usize), fault: None, device: 0 };
        if counts {
            around.ram.keep_changes();
        }
        let cpu = Cpu::new(CpuConfig { engine, ..CpuConfig::default() });
        Self { cpu, state: state(), around, fault: None }
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert!(self.around.ram.write(at, bytes));
    }

    pub fn begin(&mut self, start: &Registers) {
        self.state = state();
        self.state.gpr = start.gpr;
        self.state.rflags = start.rflags;
        self.state.seg[seg::FS].base = start.bases[0];
        self.state.seg[seg::GS].base = start.bases[1];
        self.state.fpu.xmm = start.xmm;
        self.state.fpu.mxcsr = start.mxcsr;
        self.state.cr0 = self.state.cr0().with_ts(start.ts).into_bits();
        (self.around.fault, self.fault) = (None, None);
    }

    /// After a fault, elsewhere, and with other registers.
    pub fn go_on(&mut self, rip: u64, start: &Registers) {
        let icount = self.state.icount;
        self.begin(start);
        (self.state.icount, self.state.rip) = (icount + 1, rip);
    }

    pub fn run(&mut self, until: u64, chains: bool) -> Stop {
        let (cpu, state, around) = (&mut self.cpu, &mut self.state, &mut self.around);
        let stop = if chains { cpu.run(state, around, until) } else { cpu.run_block(state, around, until) };
        self.fault = self.around.fault;
        stop
    }

    /// The digest of all changes of memory.
    pub fn changes(&self) -> u128 {
        self.around.ram.changes()
    }

    /// The first byte of memory that differs.
    pub fn first_difference(&self, other: &Self) -> Option<u64> {
        let all = |world: &Self| {
            let mut bytes = vec![0; RAM_SIZE as usize];
            assert!(world.around.ram.read(0, &mut bytes));
            bytes
        };
        let (ours, theirs) = (all(self), all(other));
        if ours == theirs && self.around.device == other.around.device {
            return None;
        }
        (0..)
            .zip(ours.iter().zip(&theirs))
            .find(|(_, (a, b))| a != b)
            .map_or(Some(RAM_SIZE), |(at, _)| Some(at))
    }

    /// The bytes at an address, and what they mean.
    pub fn at(&self, rip: u64) -> Option<(Vec<u8>, String)> {
        let mut bytes = vec![0; 15];
        self.around.ram.read(rip, &mut bytes).then(|| {
            let insn = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE).decode();
            (bytes[..insn.len()].to_vec(), format!("{:?}", insn.code()))
        })
    }

    /// The code.
    pub fn listing(&self) -> String {
        let mut bytes = vec![0; CODE_SIZE];
        assert!(self.around.ram.read(CODE, &mut bytes));
        let decoder = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE);
        decoder.into_iter().map(|i| format!("{:x} {} {:?}\n", i.ip(), i.len(), i.code())).collect()
    }
}

fn state() -> VcpuState {
    let mut state = VcpuState::reset();
    let data = SegAttr::new().with_typ(3).with_s(true).with_present(true).with_g(true);
    state.seg[..6].fill(Segment { base: 0, limit: u32::MAX, selector: 16, attr: data });
    state.seg[seg::CS].attr = data.with_typ(11).with_l(true);
    state.cr0 = Cr0::new().with_pe(true).with_pg(true).with_et(true).into_bits();
    state.cr4 = Cr4::new().with_pae(true).with_osfxsr(true).into_bits();
    state.efer = Efer::new().with_lme(true).with_lma(true).into_bits();
    state.rip = CODE;
    state.intercepts.exceptions = u32::MAX;
    state
}
