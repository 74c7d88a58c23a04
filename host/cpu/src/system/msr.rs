//! RDMSR and WRMSR: the registers that the vCPU state holds; others are the environment's.
//!
//! See: SDM vol. 4, APM vol. 2 appendix A

use super::control::{self, Flush};
use crate::{core::Core, env::Interrupted, insn::Insn};
use vmtape_arch::{
    exception::Exception,
    msr::Msr,
    sensitive::{Sensitive, SensitiveKind},
    vcpu::{gpr, seg},
};

pub(super) fn rdmsr(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.require_cpl0()?;
    let number = core.state.gpr[gpr::RCX] as u32;
    core.sensitive(&Sensitive { number, ..core.describe(insn, SensitiveKind::RDMSR) })?;
    let value = match core.held_msr(Msr(number)) {
        Some(value) => value,
        None => core.env.msr(core.state, number, None).map_err(Interrupted::Fault)?,
    };
    core.set_edx_eax(value);
    Ok(())
}

pub(super) fn wrmsr(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.require_cpl0()?;
    let number = core.state.gpr[gpr::RCX] as u32;
    let value = core.edx_eax();
    core.sensitive(&Sensitive { number, value, ..core.describe(insn, SensitiveKind::WRMSR) })?;
    if !core.write_held_msr(Msr(number), value).map_err(Interrupted::Fault)? {
        core.env.msr(core.state, number, Some(value)).map_err(Interrupted::Fault)?;
    }
    Ok(())
}

impl Core<'_> {
    /// The time-stamp counter as the guest reads it.
    pub(super) fn guest_tsc(&mut self) -> u64 {
        let host = self.env.tsc(self.state);
        self.state.guest_tsc(host)
    }

    /// The value of an MSR that the vCPU state holds.
    fn held_msr(&mut self, msr: Msr) -> Option<u64> {
        if msr == Msr::IA32_TSC {
            return Some(self.guest_tsc());
        }
        let state = &*self.state;
        Some(match msr {
            Msr::FS_BASE => state.seg[seg::FS].base,
            Msr::GS_BASE => state.seg[seg::GS].base,
            Msr::KERNEL_GS_BASE => state.kernel_gs_base,
            Msr::IA32_SYSENTER_CS => state.sysenter_cs,
            Msr::IA32_SYSENTER_ESP => state.sysenter_esp,
            Msr::IA32_SYSENTER_EIP => state.sysenter_eip,
            Msr::STAR => state.star,
            Msr::LSTAR => state.lstar,
            Msr::CSTAR => state.cstar,
            Msr::SYSCALL_MASK => state.sfmask,
            Msr::EFER => state.efer,
            Msr::IA32_PAT => state.pat,
            Msr::TSC_AUX => state.tsc_aux,
            Msr::IA32_TSC_ADJUST => state.tsc_adjust,
            Msr::IA32_XSS => state.xss,
            Msr::IA32_SPEC_CTRL if self.model.spec_ctrl => state.spec_ctrl,
            Msr::IA32_DEBUGCTL => state.debugctl,
            Msr::LASTBRANCHFROMIP => state.last_branch[0],
            Msr::LASTBRANCHTOIP => state.last_branch[1],
            Msr::LASTINTFROMIP => state.last_exception[0],
            Msr::LASTINTTOIP => state.last_exception[1],
            _ => return None,
        })
    }

    /// Writes an MSR that the vCPU state holds. `false`: it does not.
    fn write_held_msr(&mut self, msr: Msr, value: u64) -> Result<bool, Exception> {
        let model = self.model;
        match msr {
            Msr::EFER => {
                let (old, new) = (self.state.efer(), control::check_efer(self.state, &model, value)?);
                self.state.efer = new.into_bits();
                if old.nxe() != new.nxe() {
                    self.flush(Flush::All);
                }
                return Ok(true);
            }
            Msr::IA32_TSC => {
                let delta = value.wrapping_sub(self.guest_tsc());
                self.shift_tsc(delta);
                return Ok(true);
            }
            Msr::IA32_TSC_ADJUST => {
                let delta = value.wrapping_sub(self.state.tsc_adjust);
                self.shift_tsc(delta);
                return Ok(true);
            }
            // A barrier, in a processor that predicts nothing.
            Msr::IA32_PRED_CMD if model.pred_cmd && value & !IBPB == 0 => return Ok(true),
            _ => {}
        }
        let state = &mut *self.state;
        let (register, rule) = match msr {
            Msr::FS_BASE => (&mut state.seg[seg::FS].base, Rule::Canonical),
            Msr::GS_BASE => (&mut state.seg[seg::GS].base, Rule::Canonical),
            Msr::KERNEL_GS_BASE => (&mut state.kernel_gs_base, Rule::Canonical),
            Msr::LSTAR => (&mut state.lstar, Rule::Canonical),
            Msr::CSTAR => (&mut state.cstar, Rule::Canonical),
            Msr::IA32_SYSENTER_ESP => (&mut state.sysenter_esp, Rule::Canonical),
            Msr::IA32_SYSENTER_EIP => (&mut state.sysenter_eip, Rule::Canonical),
            Msr::IA32_SYSENTER_CS => (&mut state.sysenter_cs, Rule::Any),
            Msr::STAR => (&mut state.star, Rule::Any),
            Msr::SYSCALL_MASK => (&mut state.sfmask, Rule::Low32),
            Msr::TSC_AUX => (&mut state.tsc_aux, Rule::Low32),
            Msr::IA32_PAT => (&mut state.pat, Rule::MemoryTypes),
            Msr::IA32_XSS => (&mut state.xss, Rule::Zero),
            Msr::IA32_SPEC_CTRL if model.spec_ctrl => (&mut state.spec_ctrl, Rule::Low32),
            Msr::IA32_DEBUGCTL => (&mut state.debugctl, Rule::Low32),
            Msr::LASTBRANCHFROMIP => (&mut state.last_branch[0], Rule::Any),
            Msr::LASTBRANCHTOIP => (&mut state.last_branch[1], Rule::Any),
            Msr::LASTINTFROMIP => (&mut state.last_exception[0], Rule::Any),
            Msr::LASTINTTOIP => (&mut state.last_exception[1], Rule::Any),
            _ => return Ok(false),
        };
        let fine = match rule {
            Rule::Any => true,
            Rule::Canonical => model.canonical(value),
            Rule::Low32 => value >> 32 == 0,
            Rule::MemoryTypes => control::is_pat_valid(value),
            Rule::Zero => value == 0,
        };
        if !fine {
            return Err(Exception::gp(0));
        }
        *register = value;
        Ok(true)
    }

    /// Writing the counter moves TSC_ADJUST along, and the other way round.
    /// See: SDM vol. 3B 18.17.3 Time-Stamp Counter Adjustment
    fn shift_tsc(&mut self, delta: u64) {
        self.state.tsc_offset = self.state.tsc_offset.wrapping_add(delta);
        self.state.tsc_adjust = self.state.tsc_adjust.wrapping_add(delta);
    }
}

/// IA32_PRED_CMD: the indirect-branch prediction barrier.
const IBPB: u64 = 1;

/// What an MSR accepts.
enum Rule {
    Any,
    Canonical,
    Low32,
    MemoryTypes,
    Zero,
}
