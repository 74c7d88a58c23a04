//! The AVX moves that system tests use to look at YMM state; no AVX arithmetic, so AVX is not advertised by default.
// See: SDM vol. 1 14.3 Detection of AVX Instructions; vol. 2 2.4 AVX and SSE Instruction Exception Classification

use super::Done;
use crate::{
    core::{Core, fault, ud},
    env::Interrupted,
    insn::{Handler, Insn, Kind},
};
use iced_x86::{
    CpuidFeature, EncodingKind, Instruction,
    Mnemonic::{self, *},
    OpKind,
};
use vmtape_arch::exception::Vector;

const SSE_AND_AVX: u64 = 6;

pub fn handler(i: &Instruction) -> Option<Handler> {
    if i.encoding() != EncodingKind::VEX
        || !i.cpuid_features().contains(&CpuidFeature::AVX) && i.mnemonic() != Vmovntdqa
    {
        return None;
    }
    let wide = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_ymm());
    Some(match i.mnemonic() {
        Vmovdqa | Vmovaps | Vmovapd | Vmovntdq | Vmovntps | Vmovntpd | Vmovntdqa | Vmovdqu | Vmovups
        | Vmovupd | Vlddqu => {
            if wide {
                move_ymm
            } else {
                move_xmm
            }
        }
        Vzeroupper | Vzeroall => zero,
        Vldmxcsr | Vstmxcsr => return None,
        _ => return None,
    })
}

fn is_aligned(op: Mnemonic) -> bool {
    !matches!(op, Vmovdqu | Vmovups | Vmovupd | Vlddqu)
}

impl Core<'_> {
    fn check_avx(&self) -> Done {
        let state = &self.state;
        if self.in_real_mode() || !state.cr4().osxsave() || state.xcr0 & SSE_AND_AVX != SSE_AND_AVX {
            return ud();
        }
        if state.cr0().ts() { fault(Vector::NM) } else { Ok(()) }
    }

    fn ymm_hi(&self, n: u8) -> u128 {
        let [low, high] = self.state.fpu.ymm_hi[(n & 15) as usize];
        low as u128 | (high as u128) << 64
    }

    fn set_ymm(&mut self, n: u8, low: u128, high: u128) {
        self.set_xmm(n, low);
        self.state.fpu.ymm_hi[(n & 15) as usize] = [high as u64, (high >> 64) as u64];
    }

    fn check_avx_alignment(&self, insn: &Insn, bytes: u64) -> Done {
        if is_aligned(insn.code.mnemonic()) { self.check_boundary(insn, bytes) } else { Ok(()) }
    }
}

fn move_xmm(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_avx()?;
    if insn.is_mem(0) {
        core.check_avx_alignment(insn, 16)?;
        return core.write(insn.seg, insn.address(core), core.xmm(insn.regs[1]));
    }
    let value = match insn.kinds[1] {
        Kind::Reg => core.xmm(insn.regs[1]),
        _ => {
            core.check_avx_alignment(insn, 16)?;
            core.read(insn.seg, insn.address(core))?
        }
    };
    core.set_ymm(insn.regs[0], value, 0);
    Ok(())
}

fn move_ymm(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_avx()?;
    if insn.is_mem(0) {
        core.check_avx_alignment(insn, 32)?;
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&core.xmm(insn.regs[1]).to_le_bytes());
        bytes[16..].copy_from_slice(&core.ymm_hi(insn.regs[1]).to_le_bytes());
        return core.write_bytes(insn.seg, insn.address(core), &bytes);
    }
    let (low, high) = match insn.kinds[1] {
        Kind::Reg => (core.xmm(insn.regs[1]), core.ymm_hi(insn.regs[1])),
        _ => read_ymm(core, insn)?,
    };
    core.set_ymm(insn.regs[0], low, high);
    Ok(())
}

fn read_ymm(core: &mut Core<'_>, insn: &Insn) -> Result<(u128, u128), Interrupted> {
    core.check_avx_alignment(insn, 32)?;
    let mut bytes = [[0; 16]; 2];
    core.read_bytes(insn.seg, insn.address(core), bytes.as_flattened_mut())?;
    Ok((u128::from_le_bytes(bytes[0]), u128::from_le_bytes(bytes[1])))
}

/// VZEROUPPER and VZEROALL.
fn zero(core: &mut Core<'_>, insn: &Insn) -> Done {
    core.check_avx()?;
    let count = if core.state.is_64bit_code() { 16 } else { 8 };
    core.state.fpu.ymm_hi[..count].fill([0, 0]);
    if insn.code.mnemonic() == Vzeroall {
        core.state.fpu.xmm[..count].fill([0, 0]);
    }
    Ok(())
}
