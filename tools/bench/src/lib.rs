//! What the benchmarks share: small guests, and an environment that costs nothing.

use iced_x86::{IcedError, code_asm::*};
use vmtape_arch::{
    access::{Access, Mapping},
    exception::Exception,
    regs::{Cr0, Cr4, Efer, SegAttr},
    vcpu::{Segment, VcpuState, seg},
};
use vmtape_cpu::{Cpu, CpuConfig, Env, Interrupted, Ram, Stop};

const RAM_SIZE: usize = 0x100_0000;
const CODE: u64 = 0x1000;
const STACK: u64 = 0x9000;
const DATA: u64 = 0x10_0000;

/// Linear addresses are host physical ones, and nothing is virtualized.
struct Identity {
    ram: Ram,
}

impl Env for Identity {
    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn access(&mut self, _: &mut VcpuState, access: &Access) -> Result<Mapping, Interrupted> {
        let page = access.gva & !0xfff;
        Ok(Mapping {
            gpa: page,
            hpa: page,
            read: true.into(),
            write: true.into(),
            fetch: true.into(),
            ..Mapping::default()
        })
    }

    fn exception(&mut self, _: &mut VcpuState, _: &Exception) -> Option<()> {
        Some(())
    }
}

/// A guest of a few instructions in 64-bit mode, running in circles.
pub struct Micro {
    cpu: Cpu,
    state: VcpuState,
    env: Identity,
}

impl Micro {
    fn new(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Result<Self, IcedError> {
        let mut asm = CodeAssembler::new(64)?;
        write(&mut asm)?;
        let ram = Ram::leaked(RAM_SIZE);
        ram.write(CODE, &asm.assemble(CODE)?);
        let cpu = Cpu::new(CpuConfig::default());
        Ok(Self { cpu, state: long_mode(), env: Identity { ram } })
    }

    /// Runs `count` instructions. False: something stopped the guest.
    pub fn run(&mut self, count: u64) -> bool {
        let until = self.state.icount + count;
        self.cpu.run(&mut self.state, &mut self.env, until) == Stop::Budget
    }

    /// The sieve of Eratosthenes over a million bytes, as a compiler would write it.
    pub fn sieve() -> Result<Self, IcedError> {
        const SIZE: i32 = 1_000_000;
        Self::new(|a| {
            let [mut again, mut clear, mut outer, mut inner, mut next] =
                std::array::from_fn(|_| a.create_label());
            a.mov(rbx, DATA)?;
            a.set_label(&mut again)?;
            a.xor(eax, eax)?;
            a.set_label(&mut clear)?;
            a.mov(byte_ptr(rbx + rax), 1)?;
            a.inc(rax)?;
            a.cmp(rax, SIZE)?;
            a.jne(clear)?;
            a.mov(ecx, 2)?;
            a.set_label(&mut outer)?;
            a.cmp(byte_ptr(rbx + rcx), 0)?;
            a.je(next)?;
            a.lea(rax, ptr(rcx + rcx))?;
            a.set_label(&mut inner)?;
            a.cmp(rax, SIZE)?;
            a.jae(next)?;
            a.mov(byte_ptr(rbx + rax), 0)?;
            a.add(rax, rcx)?;
            a.jmp(inner)?;
            a.set_label(&mut next)?;
            a.inc(rcx)?;
            a.cmp(rcx, SIZE)?;
            a.jb(outer)?;
            a.jmp(again)
        })
    }

    /// Calls, a stack frame, loads and stores of all kinds.
    pub fn calls() -> Result<Self, IcedError> {
        Self::new(|a| {
            let [mut again, mut function, mut skip] = std::array::from_fn(|_| a.create_label());
            a.mov(rbx, DATA)?;
            a.set_label(&mut again)?;
            a.mov(rdi, rbx)?;
            a.mov(esi, 16)?;
            a.call(function)?;
            a.add(qword_ptr(rbx + 8), rax)?;
            a.test(al, 1)?;
            a.je(skip)?;
            a.shr(eax, 3)?;
            a.set_label(&mut skip)?;
            a.jmp(again)?;
            a.set_label(&mut function)?;
            a.push(rbp)?;
            a.mov(rbp, rsp)?;
            a.sub(rsp, 32)?;
            a.mov(qword_ptr(rbp - 8), rdi)?;
            a.movzx(eax, byte_ptr(rdi + rsi * 4))?;
            a.imul_3(eax, eax, 37)?;
            a.add(eax, dword_ptr(rdi + 4))?;
            a.mov(byte_ptr(rdi + rsi * 4), al)?;
            a.mov(rdi, qword_ptr(rbp - 8))?;
            a.mov(dword_ptr(rdi + 4), eax)?;
            a.leave()?;
            a.ret()
        })
    }

    /// Registers only.
    pub fn registers() -> Result<Self, IcedError> {
        Self::new(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.add(rax, rcx)?;
            a.xor(rdx, rax)?;
            a.shl(rdx, 3)?;
            a.lea(rcx, ptr(rcx + rdx * 2 + 5))?;
            a.mov(rsi, rcx)?;
            a.dec(r8)?;
            a.jmp(again)
        })
    }
}

fn long_mode() -> VcpuState {
    let mut state = VcpuState::reset();
    let data = SegAttr::new().with_typ(3).with_s(true).with_present(true).with_g(true);
    state.seg[..6].fill(Segment { base: 0, limit: u32::MAX, selector: 16, attr: data });
    state.seg[seg::CS].attr = data.with_typ(11).with_l(true);
    state.cr0 = Cr0::new().with_pe(true).with_pg(true).into_bits();
    state.cr4 = Cr4::new().with_pae(true).into_bits();
    state.efer = Efer::new().with_lme(true).with_lma(true).into_bits();
    state.rip = CODE;
    state.gpr[4] = STACK;
    state.intercepts.exceptions = u32::MAX;
    state
}
