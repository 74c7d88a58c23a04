//! The interpreter, set up as a user program on the same addresses.

use crate::silicon::{
    CODE, Context, DATA, DATA_SIZE, Ending, Fault, LDT, LIMIT16, Mode, PAGE_FAULT, RIP, TARGET, TARGET16,
};
use vmtape_arch::{
    access::{Access, AccessKind, Mapping},
    exception::{Exception, PageFaultError},
    host::Vendor,
    regs::{Cr0, Cr4, Efer, SegAttr},
    vcpu::{Segment, VcpuState, seg},
};
use vmtape_cpu::{Cpu, CpuConfig, Engine, Env, Interrupted, Model, Ram, Stop};

const PAGE: u64 = 0x1000;
/// Host physical addresses.
const CODE_AT: u64 = 0;
const DATA_AT: u64 = PAGE;
const LDT_AT: u64 = DATA_AT + DATA_SIZE as u64;

/// The vendor whose rules the interpreter follows: that of the processor that the test runs on, by CPUID. To see how far
/// the other vendor's rules lie from this processor, set VMTAPE_NATIVE_VENDOR.
fn vendor() -> Vendor {
    if let Ok(name) = std::env::var("VMTAPE_NATIVE_VENDOR") {
        return Vendor::from_name(&name).expect("VMTAPE_NATIVE_VENDOR is intel or amd");
    }
    let ebx = std::arch::x86_64::__cpuid(0).ebx;
    if ebx == u32::from_le_bytes(*b"Auth") { Vendor::AMD } else { Vendor::INTEL }
}

/// Two mapped ranges and no device.
struct World {
    ram: Ram,
    exception: Option<Exception>,
}

impl Env for World {
    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn access(&mut self, _: &mut VcpuState, access: &Access) -> Result<Mapping, Interrupted> {
        let page = access.gva & !(PAGE - 1);
        let (hpa, write) = match page {
            CODE => (CODE_AT, false),
            LDT if access.implicit.is_set() => (LDT_AT, true),
            DATA.. if access.kind == AccessKind::FETCH && page < DATA + DATA_SIZE as u64 => {
                let error = PageFaultError::new().with_p(true).with_u(true).with_i(true);
                return Err(Interrupted::Fault(Exception::pf(access.gva, error)));
            }
            DATA.. if page < DATA + DATA_SIZE as u64 => (DATA_AT + page - DATA, true),
            _ => {
                let error = PageFaultError::new()
                    .with_u(access.user.is_set())
                    .with_w(access.kind == AccessKind::WRITE)
                    .with_i(access.kind == AccessKind::FETCH);
                return Err(Interrupted::Fault(Exception::pf(access.gva, error)));
            }
        };
        Ok(Mapping {
            gpa: hpa,
            hpa,
            read: true.into(),
            write: write.into(),
            fetch: (!write).into(),
            guest_page_shift: 12,
            ..Mapping::default()
        })
    }

    fn exception(&mut self, _: &mut VcpuState, exception: &Exception) -> Option<()> {
        self.exception = Some(*exception);
        Some(())
    }
}

/// A CPU in user mode.
pub struct Interpreter {
    cpu: Cpu,
    world: World,
    start: VcpuState,
    next: u64,
    /// What a step is: compiled code needs room for a whole block.
    step: u64,
}

impl Interpreter {
    pub fn new(mode: Mode) -> Self {
        Self::of(mode, vendor())
    }

    /// By the rules of a vendor.
    pub fn of(mode: Mode, vendor: Vendor) -> Self {
        let config = CpuConfig { model: Model::of(vendor), ..CpuConfig::default() };
        let world = World { ram: Ram::leaked(2 * PAGE as usize + DATA_SIZE), exception: None };
        assert!(world.ram.write(LDT_AT, &crate::segments::ldt()));
        Self { cpu: Cpu::new(config), world, start: user_mode(mode), next: RIP, step: 1 }
    }

    /// With the compiler: each instruction is a block with a jump that stays where it is.
    pub fn compiled(mode: Mode) -> Self {
        let config =
            CpuConfig { model: Model::of(vendor()), engine: Engine::Compiler, ..CpuConfig::default() };
        Self { cpu: Cpu::new(config), step: 2, ..Self::new(mode) }
    }

    /// Times that compiled code was entered.
    pub fn entered(&self) -> u64 {
        self.cpu.compiled().1
    }

    /// Puts the code page in place.
    pub fn load(&mut self, code: &[u8], len: usize) {
        assert!(self.world.ram.write(CODE_AT, code));
        self.next = RIP + len as u64;
        if self.step > 1 {
            const STAY: [u8; 2] = [0xeb, 0xfe];
            for pad in [self.next, TARGET] {
                assert!(self.world.ram.write(CODE_AT + pad - CODE, &STAY));
            }
        }
    }

    /// Runs the instruction from `context` and `data` (at `offset` in the data pages), and updates both.
    pub fn run(&mut self, context: &mut Context, offset: usize, data: &mut [u8]) -> Ending {
        let at = DATA_AT + offset as u64;
        assert!(self.world.ram.write(at, data));
        self.world.exception = None;
        let mut state = self.start;
        enter(&mut state, context);
        let stop = self.go(&mut state);
        leave(&state, context);
        assert!(self.world.ram.read(at, data));
        match (stop, self.world.exception, state.seg[seg::CS].base + state.rip) {
            (_, Some(exception), _) => {
                let vector = exception.vector.0;
                let address = if vector == PAGE_FAULT { exception.payload } else { 0 };
                Ending::Fault(Fault { vector, error: exception.error_code, address })
            }
            (Stop::Budget, None, TARGET) => Ending::Target,
            (Stop::Budget, None, TARGET16) => Ending::Target16,
            (Stop::Budget, None, rip) if rip == self.next => Ending::Next,
            (stop, None, rip) => panic!("{stop:?} at {rip:#x}"),
        }
    }

    /// Replaces the data pages.
    pub fn set_data(&mut self, data: &[u8; DATA_SIZE]) {
        assert!(self.world.ram.write(DATA_AT, data));
    }

    /// The data pages.
    pub fn data(&self) -> Vec<u8> {
        let mut data = vec![0; DATA_SIZE];
        assert!(self.world.ram.read(DATA_AT, &mut data));
        data
    }

    /// Goes on until a landing pad or a fault: the code may be two instructions, and repeated ones may retire several
    /// times.
    fn go(&mut self, state: &mut VcpuState) -> Stop {
        for _ in 0..1000 {
            let until = state.icount + self.step;
            let stop = self.cpu.run(state, &mut self.world, until);
            let landed = [self.next, TARGET, TARGET16].contains(&(state.seg[seg::CS].base + state.rip));
            if stop != Stop::Budget || landed {
                return stop;
            }
        }
        panic!("the instruction does not end");
    }
}

fn user_mode(mode: Mode) -> VcpuState {
    let mut state = VcpuState::reset();
    state.cr0 = Cr0::new()
        .with_pe(true)
        .with_mp(true)
        .with_et(true)
        .with_ne(true)
        .with_wp(true)
        .with_am(true)
        .with_pg(true)
        .into_bits();
    let cr4 = Cr4::new().with_pae(true).with_osfxsr(true).with_osxmmexcpt(true).with_osxsave(true);
    state.cr4 = cr4.into_bits();
    state.efer = Efer::new().with_sce(true).with_lme(true).with_lma(true).with_nxe(true).into_bits();
    state.xcr0 = 7;
    state.cpl = 3;
    let (cs, data) = mode.selectors();
    let user = SegAttr::new().with_s(true).with_present(true).with_dpl(3);
    let limit = if mode == Mode::Bits16 { LIMIT16 } else { u32::MAX };
    let attr = user.with_g(mode != Mode::Bits16).with_db(mode != Mode::Bits16);
    for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        state.seg[n] = Segment { base: mode.data_base(), limit, selector: data, attr: attr.with_typ(3) };
    }
    let code = user.with_g(mode != Mode::Bits16).with_db(mode == Mode::Bits32).with_l(mode == Mode::Bits64);
    state.seg[seg::CS] = Segment { base: mode.code_base(), limit, selector: cs, attr: code.with_typ(0xb) };
    // Of the GDT only what random selectors natively find of it: nothing.
    state.gdtr.limit = 0;
    let table = SegAttr::new().with_typ(2).with_present(true);
    let limit = crate::segments::ldt().len() as u32 - 1;
    state.seg[seg::LDTR] = Segment { base: LDT, limit, selector: 0, attr: table };
    state.rip = RIP - mode.code_base();
    state.intercepts.exceptions = u32::MAX;
    state
}

fn enter(state: &mut VcpuState, context: &Context) {
    state.gpr = context.gpr;
    state.rflags = context.rflags | 0x200;
    let fx = &context.fx;
    let word = |at: usize| u16::from_le_bytes([fx[at], fx[at + 1]]);
    state.fpu.fcw = word(0);
    state.fpu.fsw = word(2);
    state.fpu.ftw = fx[4];
    state.fpu.mxcsr = context.mxcsr();
    let top = usize::from(state.fpu.fsw >> 11 & 7);
    for n in 0..8 {
        state.fpu.st[(top + n) % 8] = context.st(n);
    }
    for n in 0..16 {
        state.fpu.xmm[n] = context.xmm(n);
    }
    state.fpu.ymm_hi = context.ymm_hi;
    // FXRSTOR recomputes ES from flags and masks, as the control word's own instructions do.
    let pending = state.fpu.fsw & !state.fpu.fcw & 0x3f != 0;
    state.fpu.fsw = state.fpu.fsw & !0x8080 | if pending { 0x8080 } else { 0 };
}

fn leave(state: &VcpuState, context: &mut Context) {
    context.gpr = state.gpr;
    context.rflags = state.rflags;
    context.selectors = [seg::ES, seg::SS, seg::DS, seg::DS].map(|n| state.seg[n].selector);
    context.selectors[3] = 0;
    context.fx[0..2].copy_from_slice(&state.fpu.fcw.to_le_bytes());
    context.fx[2..4].copy_from_slice(&state.fpu.fsw.to_le_bytes());
    context.fx[4] = state.fpu.ftw;
    context.set_mxcsr(state.fpu.mxcsr);
    let top = usize::from(state.fpu.fsw >> 11 & 7);
    for n in 0..8 {
        context.set_st(n, state.fpu.st[(top + n) % 8]);
    }
    for n in 0..16 {
        context.set_xmm(n, state.fpu.xmm[n]);
    }
    context.ymm_hi = state.fpu.ymm_hi;
}
