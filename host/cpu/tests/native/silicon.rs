//! Executes one instruction on the processor that this test runs on.
//!
//! Code, context and data lie at fixed low addresses, so that the interpreter sees the same addresses and no
//! randomness of the address space reaches a register.

#![expect(unsafe_code)]
// UNSAFETY: this module maps memory at fixed addresses, catches the signals that tested instructions raise and jumps
// into generated code. Nothing outside needs to be unsafe for that.

use iced_x86::code_asm::*;
use std::{cell::UnsafeCell, ptr};

/// Where the generated code begins.
pub const CODE: u64 = 0x1000_0000;
/// The instruction under test.
pub const RIP: u64 = CODE + 0x400;
/// Where tested branches lead.
pub const TARGET: u64 = RIP + 0x40;
/// Where far branches to 16-bit code lead.
pub const TARGET16: u64 = RIP + 0x80;
/// Where the interpreter keeps what the kernel keeps natively: the LDT.
pub const LDT: u64 = 0x1003_0000;
/// Selectors that Linux gives 64-bit programs, and that of its 32-bit ones.
const USER_CS: u16 = 0x33;
const USER_DS: u16 = 0x2b;
pub const USER32_CS: u16 = 0x23;
/// Our own 16-bit segments: the first two descriptors of the LDT.
pub const CODE16: u16 = 0x07;
const DATA16: u16 = 0x0f;
const EPILOGUE: u64 = CODE + 0x800;
const CONTEXT: u64 = 0x1001_0000;
/// Two pages that tested instructions read and write.
pub const DATA: u64 = 0x1002_0000;
pub const DATA_SIZE: usize = 0x2000;
const PAGE: usize = 0x1000;
/// The limit of the 16-bit segments.
pub const LIMIT16: u32 = 0x1fff;

/// What code is executed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 16-bit protected mode: segments that begin at the code page and at the data pages.
    Bits16,
    /// Compatibility mode, flat.
    Bits32,
    Bits64,
}

impl Mode {
    pub fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }

    /// The base of the code segment.
    pub fn code_base(self) -> u64 {
        if self == Self::Bits16 { CODE } else { 0 }
    }

    /// The base of data and stack segments.
    pub fn data_base(self) -> u64 {
        if self == Self::Bits16 { DATA } else { 0 }
    }

    /// The selectors of code and data.
    pub fn selectors(self) -> (u16, u16) {
        match self {
            Self::Bits16 => (CODE16, DATA16),
            Self::Bits32 => (USER32_CS, USER_DS),
            Self::Bits64 => (USER_CS, USER_DS),
        }
    }
}

/// What the instruction starts from and leaves behind.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Context {
    /// The FXSAVE image.
    pub fx: [u8; 512],
    pub gpr: [u64; 16],
    pub rflags: u64,
    host_rsp: u64,
    /// How the instruction ended: see `Ending`, and the exception's details.
    ending: u64,
    error: u64,
    address: u64,
    host_mxcsr: u64,
    /// The far pointer to the instruction, then the selector of its data and stack.
    entry: [u8; 6],
    data_selector: u16,
    user_ds: u64,
    epilogue: u64,
    /// ES, SS and DS after the instruction.
    pub selectors: [u16; 4],
    pub ymm_hi: [[u64; 2]; 16],
}

/// Where control went after the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Next,
    Target,
    /// The target in 16-bit code.
    Target16,
    Fault(Fault),
}

/// An exception: the error code of those that push one, and what a page fault leaves in CR2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    pub error: u32,
    pub address: u64,
}

/// The vector of #PF.
pub const PAGE_FAULT: u8 = 14;

const NEXT: u32 = 1;
const JUMPED: u32 = 2;
const JUMPED16: u32 = 3;
const FAULT: u64 = 0x100;

const FX: usize = 0;
const GPR: usize = 512;
const RFLAGS: usize = GPR + 128;
const HOST_RSP: usize = RFLAGS + 8;
const ENDING: usize = RFLAGS + 16;
const HOST_MXCSR: usize = RFLAGS + 40;
const ENTRY: usize = HOST_MXCSR + 8;
const DATA_SELECTOR: usize = ENTRY + 6;
const USER_DS_AT: usize = ENTRY + 8;
const EPILOGUE_AT: usize = ENTRY + 16;
const SELECTORS: usize = ENTRY + 24;
const YMM_HI: usize = ENTRY + 32;

const YMM: [AsmRegisterYmm; 16] =
    [ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15];

/// The mapped pages. One per process: the addresses are fixed.
pub struct Silicon {
    mode: Mode,
    signal_stack: UnsafeCell<Vec<u8>>,
}

impl Silicon {
    /// Maps the pages, writes prologue and epilogue, and takes over the signals.
    pub fn new(mode: Mode) -> Self {
        map(CODE, PAGE, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
        map(CONTEXT, PAGE, libc::PROT_READ | libc::PROT_WRITE);
        map(DATA, DATA_SIZE, libc::PROT_READ | libc::PROT_WRITE);
        let silicon = Self { mode, signal_stack: UnsafeCell::new(vec![0; 1 << 17]) };
        store(CODE, &prologue().expect("the prologue assembles"));
        store(EPILOGUE, &epilogue().expect("the epilogue assembles"));
        store(TARGET, &landing(mode, JUMPED));
        store(TARGET16, &landing(Mode::Bits16, JUMPED16));
        for (n, descriptor) in crate::segments::DESCRIPTORS.iter().enumerate() {
            set_descriptor(n as u32, descriptor);
        }
        silicon.catch_signals();
        silicon
    }

    /// Puts the instruction in place.
    pub fn load(&self, instruction: &[u8]) {
        assert!(instruction.len() <= 32, "code and landing pad fit before the target");
        let next = RIP + instruction.len() as u64;
        store(RIP, instruction);
        store(next, &landing(self.mode, NEXT));
    }

    /// The code page, for the interpreter to execute the same bytes.
    pub fn code(&self) -> Vec<u8> {
        fetch(CODE, PAGE)
    }

    /// Runs the loaded instruction from `context` and `data` (at `offset` in the data pages), and updates both.
    pub fn run(&self, context: &mut Context, offset: usize, data: &mut [u8]) -> Ending {
        assert!(offset + data.len() <= DATA_SIZE);
        store(DATA + offset as u64, data);
        let (code, data_selector) = self.mode.selectors();
        context.ending = 0;
        context.entry[..4].copy_from_slice(&((RIP - self.mode.code_base()) as u32).to_le_bytes());
        context.entry[4..].copy_from_slice(&code.to_le_bytes());
        context.data_selector = data_selector;
        // SAFETY: `CONTEXT` is a mapped page, larger than a `Context` and aligned for it; nothing else refers to it.
        let shared = unsafe { &mut *(CONTEXT as *mut Context) };
        shared.clone_from(context);
        // SAFETY: the prologue at `CODE` saves what the calling convention asks to be kept, and every way out of the
        // instruction (next, branch target, signal) leads to the epilogue, which restores it. The instruction itself
        // was chosen by the caller to write memory in the data pages only.
        let enter: extern "C" fn() = unsafe { std::mem::transmute(CODE as *const ()) };
        enter();
        context.clone_from(shared);
        data.copy_from_slice(&fetch(DATA + offset as u64, data.len()));
        match context.ending {
            1 => Ending::Next,
            2 => Ending::Target,
            3 => Ending::Target16,
            other => {
                let vector = (other - FAULT) as u8;
                let address = if vector == PAGE_FAULT { context.address } else { 0 };
                Ending::Fault(Fault { vector, error: context.error as u32, address })
            }
        }
    }

    /// Replaces the data pages.
    pub fn set_data(&self, data: &[u8; DATA_SIZE]) {
        store(DATA, data);
    }

    /// The data pages.
    pub fn data(&self) -> Vec<u8> {
        fetch(DATA, DATA_SIZE)
    }

    fn catch_signals(&self) {
        let stack = self.signal_stack.get();
        // SAFETY: the stack lives as long as `self`, which lives as long as the test; the handler is async-signal-safe
        // (it only changes the saved registers and the context page).
        unsafe {
            let alternate = libc::stack_t {
                ss_sp: (*stack).as_mut_ptr().cast(),
                ss_flags: 0,
                ss_size: (&(*stack)).len(),
            };
            assert_eq!(libc::sigaltstack(&alternate, ptr::null_mut()), 0);
            for signal in [libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGBUS, libc::SIGTRAP] {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as extern "C" fn(_, _, _) as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
            }
        }
    }
}

/// Sends a fault of the tested instruction to the epilogue, its vector noted; any other signal ends the process.
extern "C" fn handler(signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `ucontext_t` to a handler installed with SA_SIGINFO.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize] as u64;
    let segments = registers[libc::REG_CSGSFS as usize] as u64;
    if segments as u16 == USER_CS && !(RIP..EPILOGUE).contains(&rip) {
        // SAFETY: restoring the default action and returning re-executes the faulting instruction, which ends us.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let value = |register: libc::c_int| registers[register as usize] as u64;
    let (vector, error, address) = (value(libc::REG_TRAPNO), value(libc::REG_ERR), value(libc::REG_CR2));
    for (n, value) in [FAULT + vector, error, address].into_iter().enumerate() {
        // SAFETY: the context page is mapped, and the interrupted code does not touch these fields before the epilogue.
        unsafe { ptr::write_volatile((CONTEXT as usize + ENDING + 8 * n) as *mut u64, value) };
    }
    registers[libc::REG_RIP as usize] = EPILOGUE as i64;
    let selectors = segments & 0x0000_ffff_ffff_0000 | u64::from(USER_DS) << 48 | u64::from(USER_CS);
    registers[libc::REG_CSGSFS as usize] = selectors as i64;
}

impl Drop for Silicon {
    fn drop(&mut self) {
        for (address, size) in [(CODE, PAGE), (CONTEXT, PAGE), (DATA, DATA_SIZE)] {
            // SAFETY: mapped by `new`, and nothing refers to the pages once `self` is gone.
            unsafe { libc::munmap(address as *mut _, size) };
        }
    }
}

fn map(address: u64, size: usize, protection: libc::c_int) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE never takes memory that is in use.
    let got = unsafe { libc::mmap(address as *mut _, size, protection, flags, -1, 0) };
    assert_eq!(got as u64, address, "cannot map {address:#x}: {}", std::io::Error::last_os_error());
}

fn store(address: u64, bytes: &[u8]) {
    // SAFETY: only called with ranges inside the pages mapped in `Silicon::new`.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) }
}

fn fetch(address: u64, size: usize) -> Vec<u8> {
    // SAFETY: only called with ranges inside the pages mapped in `Silicon::new`.
    unsafe { std::slice::from_raw_parts(address as *const u8, size) }.to_vec()
}

/// The registers other than RAX and RSP, with their slots in the context.
fn plain_registers() -> [(AsmRegister64, usize); 14] {
    [rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]
        .map(|r| (r, GPR + 8 * iced_x86::Register::from(r).number()))
}

fn prologue() -> Result<Vec<u8>, iced_x86::IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for register in [rbx, rbp, r12, r13, r14, r15] {
        a.push(register)?;
    }
    a.mov(eax, CONTEXT as u32)?;
    a.mov(qword_ptr(rax + HOST_RSP), rsp)?;
    a.stmxcsr(dword_ptr(rax + HOST_MXCSR))?;
    a.fxrstor64(ptr(rax + FX))?;
    if is_x86_feature_detected!("avx") {
        for (n, register) in YMM.into_iter().enumerate() {
            a.vinsertf128(register, register, xmmword_ptr(rax + YMM_HI + 16 * n), 1)?;
        }
    }
    for (register, slot) in plain_registers() {
        a.mov(register, qword_ptr(rax + slot))?;
    }
    a.push(qword_ptr(rax + RFLAGS))?;
    a.popfq()?;
    // Data segments matter outside 64-bit mode only. GS stays flat, for the landing pads; FS belongs to Rust.
    a.mov(gs, word_ptr(rax + USER_DS_AT))?;
    for segment in [ds, es, ss] {
        a.mov(segment, word_ptr(rax + DATA_SELECTOR))?;
    }
    a.mov(rsp, qword_ptr(rax + GPR + 8 * 4))?;
    a.mov(rax, qword_ptr(rax + GPR))?;
    a.jmp(fword_ptr(CONTEXT + ENTRY as u64))?;
    a.assemble(CODE)
}

fn epilogue() -> Result<Vec<u8>, iced_x86::IcedError> {
    let mut a = CodeAssembler::new(64)?;
    // Neither flags nor other registers change until all are saved: an absolute address needs no base.
    a.mov(qword_ptr(CONTEXT + GPR as u64), rax)?;
    a.mov(eax, CONTEXT as u32)?;
    for (register, slot) in plain_registers() {
        a.mov(qword_ptr(rax + slot), register)?;
    }
    a.mov(qword_ptr(rax + GPR + 8 * 4), rsp)?;
    for (n, segment) in [es, ss, ds].into_iter().enumerate() {
        a.mov(word_ptr(rax + SELECTORS + 2 * n), segment)?;
        a.mov(segment, word_ptr(rax + USER_DS_AT))?;
    }
    a.mov(rsp, qword_ptr(rax + HOST_RSP))?;
    a.pushfq()?;
    a.pop(qword_ptr(rax + RFLAGS))?;
    // A test with RFLAGS.AC or DF set must not leak either into Rust code.
    a.push(2)?;
    a.popfq()?;
    a.fxsave64(ptr(rax + FX))?;
    if is_x86_feature_detected!("avx") {
        for (n, register) in YMM.into_iter().enumerate() {
            a.vextractf128(xmmword_ptr(rax + YMM_HI + 16 * n), register, 1)?;
        }
        a.vzeroupper()?;
    }
    a.fninit()?;
    a.ldmxcsr(dword_ptr(rax + HOST_MXCSR))?;
    for register in [r15, r14, r13, r12, rbp, rbx] {
        a.pop(register)?;
    }
    a.ret()?;
    a.assemble(EPILOGUE)
}

/// Notes how the instruction ended and goes to the epilogue. In bytes: assemblers do not jump between modes.
fn landing(mode: Mode, ending: u32) -> Vec<u8> {
    // MOV DWORD PTR GS:[ending], imm32 with a 32-bit address, then JMP FAR USER_CS:EPILOGUE.
    let (operand_prefix, address_prefix): (&[u8], &[u8]) = match mode {
        Mode::Bits16 => (&[0x66], &[0x67]),
        Mode::Bits32 => (&[], &[]),
        // Without a base, 64-bit code needs a SIB byte; and it has no direct far jump.
        Mode::Bits64 => return landing64(ending).expect("the landing pad assembles"),
    };
    let address = (CONTEXT as u32 + ENDING as u32).to_le_bytes();
    let parts: [&[u8]; 9] = [
        operand_prefix,
        address_prefix,
        &[0x65, 0xc7, 0x05],
        &address,
        &ending.to_le_bytes(),
        operand_prefix,
        &[0xea],
        &(EPILOGUE as u32).to_le_bytes(),
        &USER_CS.to_le_bytes(),
    ];
    parts.concat()
}

/// The jump is absolute through memory, so that the pad works wherever it lies.
fn landing64(ending: u32) -> Result<Vec<u8>, iced_x86::IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(dword_ptr(CONTEXT + ENDING as u64), ending)?;
    a.jmp(qword_ptr(CONTEXT + EPILOGUE_AT as u64))?;
    a.assemble(RIP)
}

/// A segment descriptor in the terms of `modify_ldt`. All have privilege level 3 and are marked as accessed.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub base: u32,
    pub limit: u32,
    /// 32-bit code, or a 32-bit stack pointer or upper bound.
    pub big: bool,
    /// 0 data, 1 expand-down data, 2 code.
    pub contents: u32,
    pub read_exec_only: bool,
    pub pages: bool,
    pub absent: bool,
}

impl Descriptor {
    /// As it lies in the table. See: SDM vol. 3A Figure 3-8. Segment Descriptor
    pub fn encoded(&self) -> u64 {
        let (base, limit) = (u64::from(self.base), u64::from(self.limit));
        let kind = u64::from(self.contents) << 2 | u64::from(!self.read_exec_only) << 1 | 1;
        let attributes = kind | 1 << 4 | 3 << 5 | u64::from(!self.absent) << 7;
        let size = u64::from(self.big) << 2 | u64::from(self.pages) << 3;
        let low = limit & 0xffff | (base & 0xff_ffff) << 16;
        low | attributes << 40 | (limit >> 16) << 48 | size << 52 | (base >> 24) << 56
    }
}

/// Writes an LDT descriptor.
fn set_descriptor(number: u32, descriptor: &Descriptor) {
    const WRITE: libc::c_long = 0x11;
    let flags = u32::from(descriptor.big)
        | descriptor.contents << 1
        | u32::from(descriptor.read_exec_only) << 3
        | u32::from(descriptor.pages) << 4
        | u32::from(descriptor.absent) << 5;
    let entry = [number, descriptor.base, descriptor.limit, flags];
    // SAFETY: the kernel reads one `struct user_desc` of sixteen bytes.
    let done = unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, entry.as_ptr(), size_of_val(&entry)) };
    assert_eq!(done, 0, "modify_ldt: {}", std::io::Error::last_os_error());
}

impl Context {
    /// All zero, with the FPU as after FNINIT.
    pub fn new() -> Self {
        let mut context = Self {
            fx: [0; 512],
            gpr: [0; 16],
            rflags: 2,
            host_rsp: 0,
            ending: 0,
            error: 0,
            address: 0,
            host_mxcsr: 0x1f80,
            entry: [0; 6],
            data_selector: 0,
            user_ds: USER_DS.into(),
            epilogue: EPILOGUE,
            selectors: [0; 4],
            ymm_hi: [[0; 2]; 16],
        };
        context.fx[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        context.set_mxcsr(0x1f80);
        context
    }

    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.fx[24..28].try_into().expect("four bytes"))
    }

    pub fn set_mxcsr(&mut self, value: u32) {
        self.fx[24..28].copy_from_slice(&value.to_le_bytes());
    }

    pub fn xmm(&self, index: usize) -> [u64; 2] {
        let at = 160 + 16 * index;
        let half = |at: usize| u64::from_le_bytes(self.fx[at..at + 8].try_into().expect("eight bytes"));
        [half(at), half(at + 8)]
    }

    pub fn set_xmm(&mut self, index: usize, value: [u64; 2]) {
        let at = 160 + 16 * index;
        self.fx[at..at + 8].copy_from_slice(&value[0].to_le_bytes());
        self.fx[at + 8..at + 16].copy_from_slice(&value[1].to_le_bytes());
    }

    /// Physical x87 register ST(`index`) as FXSAVE stores it.
    pub fn st(&self, index: usize) -> [u8; 16] {
        self.fx[32 + 16 * index..48 + 16 * index].try_into().expect("sixteen bytes")
    }

    pub fn set_st(&mut self, index: usize, value: [u8; 16]) {
        self.fx[32 + 16 * index..48 + 16 * index].copy_from_slice(&value);
    }
}
