//! What every program stands on: printing, leaving, and surviving exceptions on purpose.

use crate::places::{layout, selector};
use iced_x86::{BlockEncoderOptions, IcedError, code_asm::*};

/// Gates in the IDT: the exceptions, and a few vectors for programs.
pub const VECTORS: usize = 0x50;
/// `int 0x20` brings user code back to where [`Kernel::attempt`] goes on.
pub const RETURN_VECTOR: u8 = 0x20;
/// Interrupts that programs send themselves: the handler counts them at `vars::INTERRUPTS` and ends them at the APIC.
pub const IPI_VECTOR: u8 = 0x40;
pub const NMI: u8 = 2;

/// The vector that [`Kernel::attempt`] leaves in `vars::VECTOR` where nothing happened.
pub const NO_VECTOR: u32 = 0xff;

/// Variables at fixed addresses.
pub mod vars {
    use crate::places::layout::VARS;
    /// Where to go on after an exception, and with which stack; zero: exceptions are not expected.
    pub const FIXUP_RIP: u64 = VARS;
    pub const FIXUP_RSP: u64 = VARS + 0x08;
    /// The last exception: vector, error code, CR2.
    pub const VECTOR: u64 = VARS + 0x10;
    pub const ERROR: u64 = VARS + 0x18;
    pub const CR2: u64 = VARS + 0x20;
    /// Processors that reached 64-bit code.
    pub const PROCESSORS: u64 = VARS + 0x28;
    pub const INTERRUPTS: u64 = VARS + 0x30;
    /// From here on a program keeps what it likes.
    pub const PROGRAM: u64 = VARS + 0x100;
}

pub const SERIAL_PORT: u32 = 0x3f8;
const DEBUG_EXIT_PORT: u8 = 0xf4;
/// Status for an exception that nobody expected; kvm-unit-tests' code for an abort.
const ABORTED: u32 = 63;

/// The assembled program.
pub struct Code {
    pub bytes: Vec<u8>,
    /// Entry points of the exception and interrupt handlers.
    pub stubs: [u64; VECTORS],
}

/// An assembler with a small runtime around it. A program's code starts as `main` on the boot processor.
pub struct Kernel {
    pub a: CodeAssembler,
    puts: CodeLabel,
    put_hex: CodeLabel,
    put_dec: CodeLabel,
    strings: Vec<(CodeLabel, String)>,
    /// Where further processors start.
    pub ap_main: CodeLabel,
    ap_defined: bool,
}

impl Kernel {
    /// Emits the 64-bit entry. Programs append their code, then `finish` appends the runtime.
    pub fn new() -> Result<Self, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let (puts, put_hex, put_dec, ap_main) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        let mut main = a.create_label();
        let mut idtr = a.create_label();
        a.mov(eax, u32::from(selector::DATA))?;
        for segment in [ds, es, ss, fs, gs] {
            a.mov(segment, eax)?;
        }
        a.lidt(tbyte_ptr(idtr))?;
        a.mov(eax, 1)?;
        a.lock().xadd(dword_ptr(vars::PROCESSORS), eax)?;
        a.test(eax, eax)?;
        a.jz(main)?;
        a.mov(esp, layout::AP_STACK_TOP as u32)?;
        a.jmp(ap_main)?;
        a.set_label(&mut idtr)?;
        let mut pseudo_descriptor = (VECTORS as u16 * 16 - 1).to_le_bytes().to_vec();
        pseudo_descriptor.extend_from_slice(&layout::IDT.to_le_bytes());
        a.db(&pseudo_descriptor)?;
        a.set_label(&mut main)?;
        a.mov(esp, layout::STACK_TOP as u32)?;
        a.mov(eax, u32::from(selector::TSS))?;
        a.ltr(ax)?;
        Ok(Self { a, puts, put_hex, put_dec, strings: Vec::new(), ap_main, ap_defined: false })
    }

    /// Puts a label here. Any number of labels may share a place.
    pub fn here(&mut self, label: &mut CodeLabel) -> Result<(), IcedError> {
        self.a.set_label(label)?;
        self.a.zero_bytes()
    }

    /// Prints text. Keeps all registers.
    pub fn print(&mut self, text: &str) -> Result<(), IcedError> {
        let label = self.a.create_label();
        self.strings.push((label, text.to_owned()));
        self.a.push(rsi)?;
        self.a.lea(rsi, ptr(label))?;
        self.a.call(self.puts)?;
        self.a.pop(rsi)
    }

    /// Prints RAX in hexadecimal without leading zeroes. Keeps all registers.
    pub fn print_hex(&mut self) -> Result<(), IcedError> {
        self.a.call(self.put_hex)
    }

    /// Prints RAX in decimal. Keeps all registers.
    pub fn print_dec(&mut self) -> Result<(), IcedError> {
        self.a.call(self.put_dec)
    }

    /// Prints a variable in hexadecimal.
    pub fn print_variable(&mut self, address: u64) -> Result<(), IcedError> {
        self.a.push(rax)?;
        self.a.mov(rax, qword_ptr(address))?;
        self.print_hex()?;
        self.a.pop(rax)
    }

    /// A string for [`Self::print_rsi`].
    pub fn string(&mut self, text: &str) -> CodeLabel {
        let label = self.a.create_label();
        self.strings.push((label, text.to_owned()));
        label
    }

    /// Runs code that may take an exception or, from user mode, return by `int 0x20`; `vars::VECTOR` says what happened.
    /// Clobbers RAX.
    pub fn attempt(
        &mut self,
        body: impl FnOnce(&mut Self) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        let mut after = self.a.create_label();
        self.a.lea(rax, ptr(after))?;
        self.a.mov(qword_ptr(vars::FIXUP_RIP), rax)?;
        self.a.mov(qword_ptr(vars::FIXUP_RSP), rsp)?;
        self.a.mov(qword_ptr(vars::VECTOR), NO_VECTOR as i32)?;
        body(self)?;
        self.here(&mut after)?;
        self.a.mov(qword_ptr(vars::FIXUP_RIP), 0)
    }

    /// Gives a vector a handler of the program's own. Clobbers RAX and RBX.
    pub fn set_gate(&mut self, vector: u8, handler: CodeLabel) -> Result<(), IcedError> {
        self.a.lea(rax, ptr(handler))?;
        self.a.mov(rbx, layout::IDT + u64::from(vector) * 16)?;
        self.a.mov(word_ptr(rbx), ax)?;
        self.a.shr(rax, 16)?;
        self.a.mov(word_ptr(rbx + 6), ax)
    }

    /// Leaves the guest with the status in EAX. Does not come back.
    pub fn exit(&mut self) -> Result<(), IcedError> {
        let mut forever = self.a.create_label();
        self.a.out(u32::from(DEBUG_EXIT_PORT), eax)?;
        self.a.cli()?;
        self.a.set_label(&mut forever)?;
        self.a.hlt()?;
        self.a.jmp(forever)
    }

    /// Starts the code of further processors.
    pub fn define_ap_main(&mut self) -> Result<(), IcedError> {
        self.ap_defined = true;
        self.a.set_label(&mut self.ap_main)?;
        self.a.zero_bytes()
    }

    /// Appends the runtime and the strings, and assembles.
    pub fn finish(mut self) -> Result<Code, IcedError> {
        if !self.ap_defined {
            self.define_ap_main()?;
            self.a.cli()?;
            self.a.hlt()?;
        }
        self.emit_puts()?;
        self.emit_put_hex()?;
        self.emit_put_dec()?;
        let stubs = self.emit_stubs()?;
        for (mut label, text) in std::mem::take(&mut self.strings) {
            self.a.set_label(&mut label)?;
            let mut bytes = text.into_bytes();
            bytes.push(0);
            self.a.db(&bytes)?;
        }
        let result =
            self.a.assemble_options(layout::CODE64, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let mut addresses = [0; VECTORS];
        for (address, label) in addresses.iter_mut().zip(&stubs) {
            *address = result.label_ip(label)?;
        }
        Ok(Code { bytes: result.inner.code_buffer, stubs: addresses })
    }

    fn emit_puts(&mut self) -> Result<(), IcedError> {
        let a = &mut self.a;
        a.set_label(&mut self.puts)?;
        for register in [rax, rdx, rsi] {
            a.push(register)?;
        }
        emit_characters(a)?;
        for register in [rsi, rdx, rax] {
            a.pop(register)?;
        }
        a.ret()
    }

    fn emit_put_hex(&mut self) -> Result<(), IcedError> {
        let a = &mut self.a;
        let (mut digit, mut letter, mut emit) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut self.put_hex)?;
        for register in [rax, rbx, rcx, rdx] {
            a.push(register)?;
        }
        a.mov(rbx, rax)?;
        // Digits that are not leading zeroes: 16 - lzcnt/4, at least one.
        a.mov(ecx, 4)?;
        a.mov(rdx, rbx)?;
        a.or(rdx, 1)?;
        a.bsr(rcx, rdx)?;
        a.and(ecx, !3i32)?;
        a.set_label(&mut digit)?;
        a.mov(rax, rbx)?;
        a.shr(rax, cl)?;
        a.and(eax, 15)?;
        a.cmp(eax, 10)?;
        a.jae(letter)?;
        a.add(eax, i32::from(b'0'))?;
        a.jmp(emit)?;
        a.set_label(&mut letter)?;
        a.add(eax, i32::from(b'a') - 10)?;
        a.set_label(&mut emit)?;
        a.mov(edx, SERIAL_PORT)?;
        a.out(dx, al)?;
        a.sub(ecx, 4)?;
        a.jns(digit)?;
        for register in [rdx, rcx, rbx, rax] {
            a.pop(register)?;
        }
        a.ret()
    }

    fn emit_put_dec(&mut self) -> Result<(), IcedError> {
        let a = &mut self.a;
        let (mut divide, mut emit) = (a.create_label(), a.create_label());
        a.set_label(&mut self.put_dec)?;
        for register in [rax, rbx, rcx, rdx] {
            a.push(register)?;
        }
        a.mov(ebx, 10)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut divide)?;
        a.xor(edx, edx)?;
        a.div(rbx)?;
        a.push(rdx)?;
        a.inc(ecx)?;
        a.test(rax, rax)?;
        a.jnz(divide)?;
        a.mov(edx, SERIAL_PORT)?;
        a.set_label(&mut emit)?;
        a.pop(rax)?;
        a.add(eax, i32::from(b'0'))?;
        a.out(dx, al)?;
        a.dec(ecx)?;
        a.jnz(emit)?;
        for register in [rdx, rcx, rbx, rax] {
            a.pop(register)?;
        }
        a.ret()
    }

    /// One stub per vector, and the handlers behind them.
    fn emit_stubs(&mut self) -> Result<Vec<CodeLabel>, IcedError> {
        let mut common = self.a.create_label();
        let mut interrupt = self.a.create_label();
        let mut stubs = Vec::new();
        for vector in 0..VECTORS as u32 {
            let mut stub = self.a.create_label();
            self.a.set_label(&mut stub)?;
            stubs.push(stub);
            if vector == u32::from(IPI_VECTOR) {
                self.a.jmp(interrupt)?;
                continue;
            }
            if !pushes_error_code(vector) {
                self.a.push(0)?;
            }
            self.a.push(vector as i32)?;
            self.a.jmp(common)?;
        }
        self.a.set_label(&mut interrupt)?;
        self.a.lock().inc(qword_ptr(vars::INTERRUPTS))?;
        self.a.push(rax)?;
        self.a.mov(eax, crate::apic::EOI)?;
        self.a.mov(dword_ptr(rax), 0)?;
        self.a.pop(rax)?;
        self.a.iretq()?;
        self.a.set_label(&mut common)?;
        self.emit_handler()?;
        Ok(stubs)
    }

    /// Notes the exception and goes on at the fixup, in the kernel whatever the mode was; without one, says what
    /// happened and gives up.
    fn emit_handler(&mut self) -> Result<(), IcedError> {
        let mut unexpected = self.a.create_label();
        self.a.mov(rax, qword_ptr(rsp))?;
        self.a.mov(qword_ptr(vars::VECTOR), rax)?;
        self.a.mov(rax, qword_ptr(rsp + 8))?;
        self.a.mov(qword_ptr(vars::ERROR), rax)?;
        self.a.mov(rax, cr2)?;
        self.a.mov(qword_ptr(vars::CR2), rax)?;
        self.a.cmp(qword_ptr(vars::FIXUP_RIP), 0)?;
        self.a.je(unexpected)?;
        self.a.mov(rsp, qword_ptr(vars::FIXUP_RSP))?;
        self.a.jmp(qword_ptr(vars::FIXUP_RIP))?;
        self.a.set_label(&mut unexpected)?;
        self.print("unexpected exception, vector ")?;
        self.print_variable(vars::VECTOR)?;
        self.print(" error ")?;
        self.print_variable(vars::ERROR)?;
        self.print(" cr2 ")?;
        self.print_variable(vars::CR2)?;
        self.print(" rip ")?;
        self.a.mov(rax, qword_ptr(rsp + 16))?;
        self.print_hex()?;
        self.print("\n")?;
        self.a.mov(eax, ABORTED)?;
        self.exit()
    }
}

/// Whether silicon pushes an error code. See: SDM vol. 3A Table 6-1
fn pushes_error_code(vector: u32) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// Sends the characters at RSI (ESI in 32-bit code) up to a zero byte. Clobbers AL and EDX.
pub fn emit_characters(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut next, mut done) = (a.create_label(), a.create_label());
    a.mov(edx, SERIAL_PORT)?;
    a.set_label(&mut next)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.jz(done)?;
    a.out(dx, al)?;
    a.jmp(next)?;
    a.set_label(&mut done)
}
