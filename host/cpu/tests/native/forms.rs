//! Which instruction forms are tested: every user-mode form that iced-x86 knows and the features below cover.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind as K};
use iced_x86::{CpuidFeature::*, Mnemonic::*};

use crate::silicon::Mode;

/// One instruction form: an opcode with the kind of its operands and its prefix.
#[derive(Clone, Debug)]
pub struct Form {
    pub mode: Mode,
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
    Int, Int1, Int3, Into, Iret, Iretd, Iretq, Retf, Popf, Popfd, Popfq, Lds, Les, Lss, Lfs, Lgs, Arpl,
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

/// Far pointers of 80 bits, which AMD does not have, and a load of 16 bits for which it reads 32.
const INTEL_ONLY: &[Code] = &[Code::Jmp_m1664, Code::Call_m1664, Code::Movsxd_r16_rm16];

/// What 16-bit and 32-bit code is tested with.
#[rustfmt::skip]
const INTEGER: &[CpuidFeature] = &[
    INTEL8086, INTEL8086_ONLY, INTEL186, INTEL286, INTEL386, INTEL486, CMOV, CX8, BMI1, BMI2, ADX, POPCNT, LZCNT, MOVBE,
    MULTIBYTENOP,
];

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

/// All forms that can be tested in a mode, in the order of iced-x86's opcode table. Vector and floating-point
/// instructions differ from mode to mode in their addresses only, so they are tested in 64-bit mode.
pub fn all(mode: Mode) -> Vec<Form> {
    Code::values().filter(|code| testable(mode, *code)).flat_map(|code| variants(mode, code)).collect()
}

fn testable(mode: Mode, code: Code) -> bool {
    let info = code.op_code();
    let features = code.cpuid_features();
    let (exists, wanted) = match mode {
        Mode::Bits16 => (info.mode16(), INTEGER),
        Mode::Bits32 => (info.mode32(), INTEGER),
        Mode::Bits64 => (info.mode64(), FEATURES),
    };
    info.is_instruction()
        && exists
        && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && !code.is_privileged()
        && !EXCLUDED.contains(&code.mnemonic())
        && !INTEL_ONLY.contains(&code)
        && (mode == Mode::Bits16 || !BRANCHES_TO_16_BITS.contains(&code))
        && (!features.contains(&AVX) || AVX_MOVES.contains(&code.mnemonic()))
        && features.iter().all(|feature| wanted.contains(feature))
        && native(features)
        && !info.op_kinds().iter().any(|kind| unsupported(mode, *kind))
}

/// Operands that need segments, system registers, or branches that leave the code page.
fn unsupported(mode: Mode, kind: K) -> bool {
    match kind {
        K::seg_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs | K::cr_reg | K::dr_reg | K::tr_reg => {
            true
        }
        K::farbr2_2 | K::farbr4_2 | K::brdisp_2 | K::brdisp_4 | K::xbegin_2 | K::xbegin_4 => true,
        K::br16_1 | K::br16_2 => mode != Mode::Bits16,
        K::br32_1 | K::br32_4 => mode == Mode::Bits64,
        _ => false,
    }
}

fn variants(mode: Mode, code: Code) -> Vec<Form> {
    let info = code.op_code();
    let form = |memory, prefix| Form { mode, code, memory, prefix };
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

pub fn may_be_memory(kind: K) -> bool {
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
        let mode = match self.mode {
            Mode::Bits16 => " in 16-bit code",
            Mode::Bits32 => " in 32-bit code",
            Mode::Bits64 => "",
        };
        format!("{prefix}{}{operand}{mode}", self.code.op_code().instruction_string())
    }

    pub fn mnemonic(&self) -> Mnemonic {
        self.code.mnemonic()
    }
}
