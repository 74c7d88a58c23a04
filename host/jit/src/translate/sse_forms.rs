//! Which SSE instructions are compiled, and what is peculiar to each.

use iced_x86::{
    Code, CpuidFeature, Instruction,
    Mnemonic::{self, *},
    OpKind,
};

/// What an instruction does besides changing its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Nothing.
    Integer,
    /// Is governed by MXCSR, and leaves flags there.
    Float,
    /// The same, and sets status flags instead.
    Compare,
    /// Sets status flags instead.
    Test,
}

impl Class {
    pub(super) fn is_float(self) -> bool {
        matches!(self, Self::Float | Self::Compare)
    }

    pub(super) fn sets_flags(self) -> bool {
        matches!(self, Self::Compare | Self::Test)
    }

    /// Whether an XMM register that is its first operand is changed.
    pub(super) fn writes(self) -> bool {
        !self.sets_flags()
    }
}

/// The class of an instruction that is compiled.
pub(super) fn class(i: &Instruction) -> Option<Class> {
    let xmm = |n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_xmm();
    let mmx = |n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm();
    let any = |is: &dyn Fn(u32) -> bool| (0..i.op_count()).any(is);
    if !any(&xmm) || any(&mmx) || !i.cpuid_features().iter().all(host_has) {
        return None;
    }
    match i.mnemonic() {
        Comiss | Comisd | Ucomiss | Ucomisd => Some(Class::Compare),
        Ptest => Some(Class::Test),
        op if is_float(op) => Some(Class::Float),
        op if is_move(op) || is_integer(op) || is_shuffle(op) => Some(Class::Integer),
        _ => None,
    }
}

/// Whether this host has what an instruction needs. AVX, AES and the like are not compiled.
fn host_has(feature: &CpuidFeature) -> bool {
    match feature {
        CpuidFeature::SSE | CpuidFeature::SSE2 => true,
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        _ => false,
    }
}

#[rustfmt::skip]
fn is_move(op: Mnemonic) -> bool {
    matches!(op,
        Movaps | Movapd | Movdqa | Movntps | Movntpd | Movntdq | Movups | Movupd | Movdqu | Movss | Movsd | Movd | Movq
        | Movhps | Movhpd | Movlps | Movlpd | Movlhps | Movhlps | Movddup | Movsldup | Movshdup | Movmskps | Movmskpd
        | Pmovmskb)
}

#[rustfmt::skip]
fn is_integer(op: Mnemonic) -> bool {
    matches!(op,
        Pand | Pandn | Por | Pxor | Andps | Andpd | Andnps | Andnpd | Orps | Orpd | Xorps | Xorpd
        | Psllw | Pslld | Psllq | Psrlw | Psrld | Psrlq | Psraw | Psrad | Pslldq | Psrldq
        | Paddb | Paddw | Paddd | Paddq | Psubb | Psubw | Psubd | Psubq
        | Paddsb | Paddsw | Psubsb | Psubsw | Paddusb | Paddusw | Psubusb | Psubusw
        | Pavgb | Pavgw | Pabsb | Pabsw | Pabsd | Psignb | Psignw | Psignd
        | Pcmpeqb | Pcmpeqw | Pcmpeqd | Pcmpeqq | Pcmpgtb | Pcmpgtw | Pcmpgtd | Pcmpgtq
        | Pminub | Pminuw | Pminud | Pmaxub | Pmaxuw | Pmaxud | Pminsb | Pminsw | Pminsd | Pmaxsb | Pmaxsw | Pmaxsd
        | Pmullw | Pmulld | Pmulhw | Pmulhuw | Pmulhrsw | Pmuludq | Pmuldq | Pmaddwd | Pmaddubsw | Psadbw
        | Phaddw | Phaddd | Phaddsw | Phsubw | Phsubd | Phsubsw | Phminposuw)
}

#[rustfmt::skip]
fn is_shuffle(op: Mnemonic) -> bool {
    matches!(op,
        Punpcklbw | Punpcklwd | Punpckldq | Punpcklqdq | Punpckhbw | Punpckhwd | Punpckhdq | Punpckhqdq
        | Unpcklps | Unpcklpd | Unpckhps | Unpckhpd | Packsswb | Packssdw | Packuswb | Packusdw
        | Pshufb | Pshufd | Pshuflw | Pshufhw | Shufps | Shufpd | Blendps | Blendpd | Pblendw | Palignr
        | Pmovsxbw | Pmovsxbd | Pmovsxbq | Pmovsxwd | Pmovsxwq | Pmovsxdq
        | Pmovzxbw | Pmovzxbd | Pmovzxbq | Pmovzxwd | Pmovzxwq | Pmovzxdq
        | Pinsrb | Pinsrw | Pinsrd | Pinsrq | Pextrb | Pextrw | Pextrd | Pextrq | Insertps | Extractps)
}

#[rustfmt::skip]
fn is_float(op: Mnemonic) -> bool {
    matches!(op,
        Addps | Addpd | Addss | Addsd | Subps | Subpd | Subss | Subsd | Mulps | Mulpd | Mulss | Mulsd
        | Divps | Divpd | Divss | Divsd | Minps | Minpd | Minss | Minsd | Maxps | Maxpd | Maxss | Maxsd
        | Sqrtps | Sqrtpd | Sqrtss | Sqrtsd | Cmpps | Cmppd | Cmpss | Cmpsd
        | Haddps | Haddpd | Hsubps | Hsubpd | Addsubps | Addsubpd | Roundps | Roundpd | Roundss | Roundsd
        | Cvtsi2ss | Cvtsi2sd | Cvtss2si | Cvttss2si | Cvtsd2si | Cvttsd2si | Cvtss2sd | Cvtsd2ss
        | Cvtps2pd | Cvtdq2pd | Cvtpd2ps | Cvtpd2dq | Cvttpd2dq | Cvtdq2ps | Cvtps2dq | Cvttps2dq)
}

/// Whether a memory operand of 16 bytes may lie anywhere.
pub(super) fn is_unaligned(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Movups | Movupd | Movdqu)
}

/// Whether the destination's old value does not matter; not said of all that it is true of.
pub(super) fn replaces_all(i: &Instruction) -> bool {
    let from_memory = i.op_count() == 2 && i.op1_kind() == OpKind::Memory;
    match i.mnemonic() {
        Movaps | Movapd | Movdqa | Movups | Movupd | Movdqu | Movd | Movq | Pshufd => true,
        Movss | Movsd => from_memory,
        _ => false,
    }
}

/// Whether it clears its destination, whatever was there.
pub(super) fn is_zero(i: &Instruction) -> bool {
    let alike = i.op_count() == 2 && i.op1_kind() == OpKind::Register && i.op0_register() == i.op1_register();
    alike && matches!(i.mnemonic(), Pxor | Xorps | Xorpd)
}

/// For a store that bypasses the caches, which has a form with a memory operand only, one that has both.
pub(super) fn with_register(code: Code) -> Option<Code> {
    match code {
        Code::Movntps_m128_xmm | Code::Movntpd_m128_xmm | Code::Movntdq_m128_xmm => {
            Some(Code::Movups_xmmm128_xmm)
        }
        _ => None,
    }
}
