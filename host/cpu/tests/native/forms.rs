//! Which instruction forms are tested: every user-mode form that iced-x86 knows and the features below cover.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as K, OpKind,
    Register,
};
use iced_x86::{CpuidFeature::*, Mnemonic::*};
use rand_pcg::Pcg64;

use crate::random::{chance, pick, range};

/// One instruction form: an opcode with the kind of its operands and its prefix.
#[derive(Clone, Debug)]
pub struct Form {
    pub code: Code,
    pub memory: bool,
    pub prefix: Prefix,
}

/// The prefix that makes a form of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    None,
    Lock,
    Rep,
    Repne,
}

/// Instructions that a user-mode test cannot run, or whose result is not a function of their operands.
#[rustfmt::skip]
const EXCLUDED: &[Mnemonic] = &[
    // Privileged by CR4 or by their operands, or at the mercy of the operating system.
    Lsl, Lar, Verr, Verw, Sgdt, Sidt, Sldt, Str, Smsw, Insb, Insw, Insd, Outsb, Outsw, Outsd, In, Out, Cli, Sti, Hlt, Cpuid,
    Int, Int1, Int3, Into, Iret, Iretd, Iretq, Retf, Popf, Popfq, Lss, Lfs, Lgs, Arpl,
    // Not instructions.
    Ud0, Ud1, Ud2, Reservednop, Montmul,
    // Their images hold addresses and reserved bytes.
    Fxsave, Fxsave64, Fxrstor, Fxrstor64, Fnstenv, Fnsave,
    // Two instructions each, the first of them WAIT.
    Finit, Fclex, Fstcw, Fstsw, Fstenv, Fsave, Feni, Fdisi, Fsetpm, Fstdw, Fstsg,
    // Undocumented.
    Fstpnce,
    // Approximations: each processor has its own.
    Rcpps, Rcpss, Rsqrtps, Rsqrtss, Fsin, Fcos, Fsincos, Fptan, Fpatan, F2xm1, Fyl2x, Fyl2xp1,
];

/// They cut RIP to 16 bits on AMD, and not on Intel.
const BRANCHES_TO_16_BITS: &[Code] = &[Code::Retnw, Code::Retnw_imm16, Code::Jmp_rm16, Code::Call_rm16];

#[rustfmt::skip]
const FEATURES: &[CpuidFeature] = &[
    INTEL8086, INTEL8086_ONLY, INTEL186, INTEL286, INTEL386, INTEL486, X64, CMOV, CX8, CMPXCHG16B, BMI1, BMI2, ADX, POPCNT,
    LZCNT, MOVBE, SSE, SSE2, SSE3, SSSE3, SSE4_1, SSE4_2, MMX, FPU, FPU287, FPU387, MULTIBYTENOP, PREFETCHW, CLFSH,
    CLFLUSHOPT, CLWB, PAUSE, CET_IBT, PCLMULQDQ, AES, AVX,
];

/// All of AVX that there is.
#[rustfmt::skip]
const AVX_MOVES: &[Mnemonic] = &[
    Vmovdqa, Vmovaps, Vmovapd, Vmovntdq, Vmovntps, Vmovntpd, Vmovntdqa, Vmovdqu, Vmovups, Vmovupd, Vlddqu, Vzeroupper,
    Vzeroall,
];

/// Whether the processor at hand has what the form needs.
fn native(features: &[CpuidFeature]) -> bool {
    features.iter().all(|feature| match *feature {
        CpuidFeature::CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
        CpuidFeature::BMI1 => is_x86_feature_detected!("bmi1"),
        CpuidFeature::BMI2 => is_x86_feature_detected!("bmi2"),
        CpuidFeature::ADX => is_x86_feature_detected!("adx"),
        CpuidFeature::POPCNT => is_x86_feature_detected!("popcnt"),
        CpuidFeature::LZCNT => is_x86_feature_detected!("lzcnt"),
        CpuidFeature::MOVBE => is_x86_feature_detected!("movbe"),
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        CpuidFeature::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        CpuidFeature::AES => is_x86_feature_detected!("aes"),
        CpuidFeature::AVX => is_x86_feature_detected!("avx"),
        // No name in the standard library; every processor with AVX2 has the first, and they act as NOPs here.
        CpuidFeature::CLFLUSHOPT | CpuidFeature::CLWB => is_x86_feature_detected!("avx512f"),
        _ => true,
    })
}

/// All forms that can be tested here, in the order of iced-x86's opcode table.
pub fn all() -> Vec<Form> {
    Code::values().filter(|code| testable(*code)).flat_map(variants).collect()
}

fn testable(code: Code) -> bool {
    let info = code.op_code();
    let features = code.cpuid_features();
    info.is_instruction()
        && info.mode64()
        && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && !code.is_privileged()
        && !EXCLUDED.contains(&code.mnemonic())
        && !BRANCHES_TO_16_BITS.contains(&code)
        && (!features.contains(&AVX) || AVX_MOVES.contains(&code.mnemonic()))
        && features.iter().all(|feature| FEATURES.contains(feature))
        && native(features)
        && !info.op_kinds().iter().any(|kind| unsupported(*kind))
}

fn unsupported(kind: K) -> bool {
    matches!(
        kind,
        K::seg_reg
            | K::es
            | K::cs
            | K::ss
            | K::ds
            | K::fs
            | K::gs
            | K::cr_reg
            | K::dr_reg
            | K::tr_reg
            | K::farbr2_2
            | K::farbr4_2
            | K::br16_1
            | K::br16_2
            | K::br32_1
            | K::br32_4
            | K::brdisp_2
            | K::brdisp_4
            | K::xbegin_2
            | K::xbegin_4
    )
}

fn variants(code: Code) -> Vec<Form> {
    let info = code.op_code();
    let form = |memory, prefix| Form { code, memory, prefix };
    let kinds = info.op_kinds();
    let mut forms = Vec::new();
    if !kinds.iter().any(|kind| is_memory_only(*kind)) {
        forms.push(form(false, Prefix::None));
    }
    if kinds.iter().any(|kind| is_memory_only(*kind) || may_be_memory(*kind)) {
        forms.push(form(true, Prefix::None));
        if info.can_use_lock_prefix() {
            forms.push(form(true, Prefix::Lock));
        }
    }
    if kinds.iter().any(|kind| matches!(kind, K::seg_rSI | K::es_rDI)) {
        forms.push(form(true, Prefix::Rep));
        forms.push(form(true, Prefix::Repne));
    }
    forms
}

fn is_memory_only(kind: K) -> bool {
    matches!(kind, K::mem | K::mem_offs | K::seg_rSI | K::es_rDI | K::seg_rDI | K::seg_rBX_al)
}

fn may_be_memory(kind: K) -> bool {
    matches!(
        kind,
        K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
    )
}

impl Form {
    pub fn name(&self) -> String {
        let prefix = match self.prefix {
            Prefix::None => "",
            Prefix::Lock => "LOCK ",
            Prefix::Rep => "REP ",
            Prefix::Repne => "REPNE ",
        };
        let operand = if self.memory { " [memory]" } else { "" };
        format!("{prefix}{}{operand}", self.code.op_code().instruction_string())
    }

    pub fn mnemonic(&self) -> Mnemonic {
        self.code.mnemonic()
    }

    /// An instruction of this form with random operands; `None` if they cannot be encoded together.
    pub fn instruction(&self, rng: &mut Pcg64, address: u64) -> Option<Instruction> {
        let mut instruction = Instruction::default();
        instruction.set_code(self.code);
        match self.prefix {
            Prefix::None => {}
            Prefix::Lock => instruction.set_has_lock_prefix(true),
            Prefix::Rep => instruction.set_has_rep_prefix(true),
            Prefix::Repne => instruction.set_has_repne_prefix(true),
        }
        for (index, kind) in self.code.op_code().op_kinds().iter().enumerate() {
            self.operand(rng, &mut instruction, index as u32, *kind, address)?;
        }
        Some(instruction)
    }

    fn operand(
        &self,
        rng: &mut Pcg64,
        to: &mut Instruction,
        index: u32,
        kind: K,
        address: u64,
    ) -> Option<()> {
        if self.memory && (kind == K::mem || may_be_memory(kind)) {
            let operand = memory(rng, address);
            return set_memory(to, index, &operand);
        }
        let immediate = crate::random::value(rng);
        match kind {
            // A frame of up to 31 levels must fit the data pages.
            K::imm16 if self.mnemonic() == Mnemonic::Enter => {
                set_immediate(to, index, OpKind::Immediate16, immediate & 0x38)
            }
            K::imm8 if index == 1 && self.mnemonic() == Mnemonic::Enter => {
                set_immediate(to, index, OpKind::Immediate8_2nd, immediate & 0xff)
            }
            K::imm8 => set_immediate(to, index, OpKind::Immediate8, immediate as u8 as u64),
            K::imm8_const_1 => set_immediate(to, index, OpKind::Immediate8, 1),
            K::imm8sex16 => set_immediate(to, index, OpKind::Immediate8to16, immediate as i8 as u64),
            K::imm8sex32 => set_immediate(to, index, OpKind::Immediate8to32, immediate as i8 as u64),
            K::imm8sex64 => set_immediate(to, index, OpKind::Immediate8to64, immediate as i8 as u64),
            K::imm16 => set_immediate(to, index, OpKind::Immediate16, immediate as u16 as u64),
            K::imm32 => set_immediate(to, index, OpKind::Immediate32, immediate as u32 as u64),
            K::imm32sex64 => set_immediate(to, index, OpKind::Immediate32to64, immediate as i32 as u64),
            K::imm64 => set_immediate(to, index, OpKind::Immediate64, immediate),
            K::br64_1 | K::br64_4 => {
                to.set_op_kind(index, OpKind::NearBranch64);
                to.set_near_branch64(crate::silicon::TARGET);
                Some(())
            }
            K::mem_offs => set_memory(to, index, &absolute(address)),
            K::seg_rSI => set_kind(to, index, OpKind::MemorySegRSI),
            K::es_rDI => set_kind(to, index, OpKind::MemoryESRDI),
            K::seg_rDI => set_kind(to, index, OpKind::MemorySegRDI),
            K::seg_rBX_al => {
                set_memory(to, index, &MemoryOperand::with_base_index(Register::RBX, Register::AL))
            }
            _ => {
                let register = register(rng, kind)?;
                let branches = matches!(self.mnemonic(), Mnemonic::Jmp | Mnemonic::Call);
                if register == Register::RSP && branches {
                    return None;
                }
                to.set_op_kind(index, OpKind::Register);
                to.try_set_op_register(index, register).ok()
            }
        }
    }
}

fn set_kind(to: &mut Instruction, index: u32, kind: OpKind) -> Option<()> {
    to.set_op_kind(index, kind);
    Some(())
}

fn set_immediate(to: &mut Instruction, index: u32, kind: OpKind, value: u64) -> Option<()> {
    to.set_op_kind(index, kind);
    to.try_set_immediate_u64(index, value).ok()
}

fn set_memory(to: &mut Instruction, index: u32, operand: &MemoryOperand) -> Option<()> {
    to.set_op_kind(index, OpKind::Memory);
    to.set_memory_base(operand.base);
    to.set_memory_index(operand.index);
    to.set_memory_index_scale(operand.scale);
    to.set_memory_displacement64(operand.displacement as u64);
    to.set_memory_displ_size(operand.displ_size);
    to.set_segment_prefix(operand.segment_prefix);
    Some(())
}

/// A memory operand by an absolute 64-bit address.
fn absolute(address: u64) -> MemoryOperand {
    MemoryOperand::new(Register::None, Register::None, 1, address as i64, 8, false, Register::None)
}

/// A memory operand of any addressing mode. What registers must hold for it is the caller's to arrange.
fn memory(rng: &mut Pcg64, address: u64) -> MemoryOperand {
    let segment = pick(rng, &[Register::None, Register::None, Register::None, Register::DS, Register::ES]);
    let (near, far) = (range(rng, 256) as i8 as i64, range(rng, 1 << 20) as i64 - 0x8_0000);
    let (displacement, size) = pick(rng, &[(0, 0), (near, 1), (far, 4)]);
    let narrow = chance(rng, 15);
    let first = if narrow { Register::EAX } else { Register::RAX };
    let base = first + range(rng, 16) as u32;
    let index = first + range(rng, 16) as u32;
    let scale = 1 << range(rng, 4);
    match range(rng, 8) {
        0 => MemoryOperand::new(Register::RIP, Register::None, 1, address as i64, 8, false, segment),
        1 => MemoryOperand::new(Register::None, Register::None, 1, address as i64, 4, false, segment),
        2..5 if index.number() != 4 && index != base => {
            MemoryOperand::new(base, index, scale, displacement, size, false, segment)
        }
        _ => MemoryOperand::new(base, Register::None, 1, displacement, size, false, segment),
    }
}

/// A register of the kind.
fn register(rng: &mut Pcg64, kind: K) -> Option<Register> {
    let any = |rng: &mut Pcg64, first: Register, count: u64| first + range(rng, count) as u32;
    Some(match kind {
        // AL to R15L, and AH to BH.
        K::r8_or_mem | K::r8_reg | K::r8_opcode => any(rng, Register::AL, 20),
        K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => any(rng, Register::AX, 16),
        K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv => any(rng, Register::EAX, 16),
        K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv => any(rng, Register::RAX, 16),
        K::mm_or_mem | K::mm_reg | K::mm_rm => any(rng, Register::MM0, 8),
        K::xmm_or_mem | K::xmm_reg | K::xmm_rm => any(rng, Register::XMM0, 16),
        K::ymm_or_mem | K::ymm_reg | K::ymm_rm => any(rng, Register::YMM0, 16),
        K::al => Register::AL,
        K::cl => Register::CL,
        K::ax => Register::AX,
        K::dx => Register::DX,
        K::eax => Register::EAX,
        K::rax => Register::RAX,
        K::st0 => Register::ST0,
        K::sti_opcode => any(rng, Register::ST0, 8),
        _ => return None,
    })
}
