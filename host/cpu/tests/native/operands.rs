//! Random operands for a form.

use crate::{
    forms::{Form, Prefix, may_be_memory},
    random::{chance, pick, range, value},
    silicon::{Mode, TARGET},
};
use iced_x86::{Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as K, OpKind, Register};
use rand_pcg::Pcg64;

impl Form {
    /// An instruction of this form whose memory operand, if it is absolute, lies at offset `address` of its segment;
    /// `None` if the operands cannot be encoded together.
    pub fn instruction(&self, rng: &mut Pcg64, address: u64) -> Option<Instruction> {
        let mut instruction = Instruction::default();
        instruction.set_code(self.code);
        match self.prefix {
            Prefix::None => {}
            Prefix::Lock => instruction.set_has_lock_prefix(true),
            Prefix::Rep => instruction.set_has_rep_prefix(true),
            Prefix::Repne => instruction.set_has_repne_prefix(true),
        }
        let narrow = chance(rng, 20);
        for (index, kind) in self.code.op_code().op_kinds().iter().enumerate() {
            let (index, to) = (index as u32, &mut instruction);
            if self.memory && (*kind == K::mem || may_be_memory(*kind)) {
                set_memory(to, &memory(rng, self.mode, address))?;
                to.set_op_kind(index, OpKind::Memory);
            } else if let Some(operand) = self.implied(*kind, narrow, address) {
                operand(to, index)?;
            } else if let Some((kind, value)) = self.immediate(rng, index, *kind) {
                to.set_op_kind(index, kind);
                to.try_set_immediate_u64(index, value).ok()?;
            } else {
                to.set_op_kind(index, OpKind::Register);
                to.try_set_op_register(index, self.register(rng, *kind)?).ok()?;
            }
        }
        Some(instruction)
    }

    /// Branch targets and memory operands without a ModRM byte.
    fn implied(&self, kind: K, narrow: bool, address: u64) -> Option<Box<Implied>> {
        let string = |kinds: [OpKind; 3]| -> Box<Implied> {
            let chosen = match (self.mode, narrow) {
                (Mode::Bits64, false) => kinds[2],
                (Mode::Bits16, false) => kinds[0],
                _ => kinds[1],
            };
            Box::new(move |to, index| {
                to.set_op_kind(index, chosen);
                Some(())
            })
        };
        let target = TARGET - self.mode.code_base();
        Some(match kind {
            K::br64_1 | K::br64_4 => branch(OpKind::NearBranch64, target),
            K::br32_1 | K::br32_4 => branch(OpKind::NearBranch32, target),
            K::br16_1 | K::br16_2 => branch(OpKind::NearBranch16, target),
            K::seg_rSI => string([OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI]),
            K::es_rDI => string([OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI]),
            K::seg_rDI => string([OpKind::MemorySegDI, OpKind::MemorySegEDI, OpKind::MemorySegRDI]),
            K::mem_offs => {
                let bytes = self.mode.bits() / 8;
                in_memory(MemoryOperand::with_displ(address, bytes))
            }
            K::seg_rBX_al => {
                let base = [Register::BX, Register::EBX, Register::RBX][self.mode.bits() as usize / 32];
                in_memory(MemoryOperand::with_base_index(base, Register::AL))
            }
            _ => return None,
        })
    }

    fn immediate(&self, rng: &mut Pcg64, index: u32, kind: K) -> Option<(OpKind, u64)> {
        let immediate = value(rng);
        let enter = self.mnemonic() == Mnemonic::Enter;
        Some(match kind {
            // A frame of up to 31 levels must fit the data pages.
            K::imm16 if enter => (OpKind::Immediate16, immediate & 0x38),
            K::imm8 if enter && index == 1 => (OpKind::Immediate8_2nd, immediate & 0xff),
            K::imm8 => (OpKind::Immediate8, immediate as u8 as u64),
            K::imm8_const_1 => (OpKind::Immediate8, 1),
            K::imm8sex16 => (OpKind::Immediate8to16, immediate as i8 as u64),
            K::imm8sex32 => (OpKind::Immediate8to32, immediate as i8 as u64),
            K::imm8sex64 => (OpKind::Immediate8to64, immediate as i8 as u64),
            K::imm16 => (OpKind::Immediate16, immediate as u16 as u64),
            K::imm32 => (OpKind::Immediate32, immediate as u32 as u64),
            K::imm32sex64 => (OpKind::Immediate32to64, immediate as i32 as u64),
            K::imm64 => (OpKind::Immediate64, immediate),
            _ => return None,
        })
    }

    /// A register of the kind.
    fn register(&self, rng: &mut Pcg64, kind: K) -> Option<Register> {
        let wide = self.mode == Mode::Bits64;
        let count = if wide { 16 } else { 8 };
        let mut any = |first: Register, count: u64| first + range(rng, count) as u32;
        let register = match kind {
            // AL to BL, AH to BH, and in 64-bit mode SPL to R15L.
            K::r8_or_mem | K::r8_reg | K::r8_opcode => any(Register::AL, if wide { 20 } else { 8 }),
            K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => any(Register::AX, count),
            K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv => any(Register::EAX, count),
            K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv => any(Register::RAX, count),
            K::mm_or_mem | K::mm_reg | K::mm_rm => any(Register::MM0, 8),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm => any(Register::XMM0, count),
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm => any(Register::YMM0, count),
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            K::sti_opcode => any(Register::ST0, 8),
            _ => return None,
        };
        // A branch target in the stack pointer would be pushed to.
        let branches = matches!(self.mnemonic(), Mnemonic::Jmp | Mnemonic::Call);
        (!branches || register.full_register() != Register::RSP).then_some(register)
    }
}

/// Sets an operand that the opcode implies.
type Implied = dyn Fn(&mut Instruction, u32) -> Option<()>;

fn branch(kind: OpKind, target: u64) -> Box<Implied> {
    Box::new(move |to, index| {
        to.set_op_kind(index, kind);
        match kind {
            OpKind::NearBranch16 => to.set_near_branch16(target as u16),
            OpKind::NearBranch32 => to.set_near_branch32(target as u32),
            _ => to.set_near_branch64(target),
        }
        Some(())
    })
}

fn in_memory(operand: MemoryOperand) -> Box<Implied> {
    Box::new(move |to, index| {
        to.set_op_kind(index, OpKind::Memory);
        set_memory(to, &operand)
    })
}

fn set_memory(to: &mut Instruction, operand: &MemoryOperand) -> Option<()> {
    to.set_memory_base(operand.base);
    to.set_memory_index(operand.index);
    to.set_memory_index_scale(operand.scale);
    to.set_memory_displacement64(operand.displacement as u64);
    to.set_memory_displ_size(operand.displ_size);
    to.set_segment_prefix(operand.segment_prefix);
    Some(())
}

/// A memory operand of any addressing mode. What registers must hold for it is the caller's to arrange.
fn memory(rng: &mut Pcg64, mode: Mode, address: u64) -> MemoryOperand {
    let segment = pick(rng, &[Register::None, Register::None, Register::None, Register::DS, Register::ES]);
    let narrow = chance(rng, 15);
    match (mode, narrow) {
        (Mode::Bits16, false) => memory16(rng, segment, address),
        (Mode::Bits64, false) => memory_wide(rng, segment, Register::RAX, 16, Some(Register::RIP), address),
        (Mode::Bits64, true) => memory_wide(rng, segment, Register::EAX, 16, None, address),
        // 16-bit addresses do not reach the data pages from a flat segment.
        _ => memory_wide(rng, segment, Register::EAX, 8, None, address),
    }
}

/// 32-bit and 64-bit addressing.
fn memory_wide(
    rng: &mut Pcg64,
    segment: Register,
    first: Register,
    count: u64,
    rip: Option<Register>,
    address: u64,
) -> MemoryOperand {
    let (near, far) = (range(rng, 256) as i8 as i64, range(rng, 1 << 20) as i64 - 0x8_0000);
    let (displacement, size) = pick(rng, &[(0, 0), (near, 1), (far, 4)]);
    let base = first + range(rng, count) as u32;
    let index = first + range(rng, count) as u32;
    let scale = 1 << range(rng, 4);
    let absolute =
        |base, size| MemoryOperand::new(base, Register::None, 1, address as i64, size, false, segment);
    match (range(rng, 8), rip) {
        (0, Some(rip)) => absolute(rip, 8),
        (1, _) => absolute(Register::None, 4),
        (2..5, _) if index.number() != 4 && index != base => {
            MemoryOperand::new(base, index, scale, displacement, size, false, segment)
        }
        _ => MemoryOperand::new(base, Register::None, 1, displacement, size, false, segment),
    }
}

/// See: SDM vol. 2A Table 2-1. 16-Bit Addressing Forms with the ModR/M Byte
fn memory16(rng: &mut Pcg64, segment: Register, address: u64) -> MemoryOperand {
    use Register::{BP, BX, DI, None, SI};
    let (near, far) = (range(rng, 256) as i8 as i64, range(rng, 0x1000) as i64 - 0x800);
    let (displacement, size) = pick(rng, &[(0, 0), (near, 1), (far, 2)]);
    let forms = [
        (BX, SI),
        (BX, DI),
        (BP, SI),
        (BP, DI),
        (SI, None),
        (DI, None),
        (BP, None),
        (BX, None),
        (None, None),
    ];
    match pick(rng, &forms) {
        (None, None) => MemoryOperand::new(None, None, 1, address as i64, 2, false, segment),
        // BP alone always has a displacement.
        (BP, None) if size == 0 => MemoryOperand::new(BP, None, 1, 0, 1, false, segment),
        (base, index) => MemoryOperand::new(base, index, 1, displacement, size, false, segment),
    }
}
