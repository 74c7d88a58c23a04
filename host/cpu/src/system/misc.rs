//! CPUID, time, random numbers, TLB and cache maintenance, halting, and the instructions of virtualization.

use super::{control::Flush, descriptor::Mode};
use crate::{
    core::{Core, ud},
    env::Interrupted,
    insn::{Insn, Kind},
    tlb,
};
use iced_x86::Code;
use vmtape_arch::{
    regs::Rflags,
    sensitive::{Sensitive, SensitiveKind, svm},
    vcpu::{Activity, gpr},
};

impl Core<'_> {
    /// The common part of what is told of a sensitive instruction.
    pub(super) fn describe(&self, insn: &Insn, kind: SensitiveKind) -> Sensitive {
        let memory = insn.kinds.contains(&Kind::Mem);
        let address = if memory { self.operand_gva(insn) } else { 0 };
        Sensitive {
            kind,
            len: insn.len,
            memory: memory.into(),
            address,
            address_size: insn.address_bytes(),
            segment: insn.seg,
            ..Sensitive::default()
        }
    }

    /// Offers an instruction without operands, before anything else is looked at.
    #[inline]
    pub(super) fn offer(&mut self, insn: &Insn, kind: SensitiveKind) -> Result<(), Interrupted> {
        if self.state.intercepts.wants(kind) { self.sensitive(&self.describe(insn, kind)) } else { Ok(()) }
    }

    /// The linear address of the memory operand, unchecked.
    fn operand_gva(&self, insn: &Insn) -> u64 {
        let base = self.segments[(insn.seg & 7) as usize].base;
        insn.address(self).wrapping_add(base) & self.linear_mask
    }

    pub(super) fn edx_eax(&self) -> u64 {
        (self.state.gpr[gpr::RAX] & 0xffff_ffff) | self.state.gpr[gpr::RDX] << 32
    }

    pub(super) fn set_edx_eax(&mut self, value: u64) {
        self.state.gpr[gpr::RAX] = value & 0xffff_ffff;
        self.state.gpr[gpr::RDX] = value >> 32;
    }

    /// An operand of the mode's own size: 64 bits in 64-bit mode, else 32.
    pub(super) fn get_native(&mut self, insn: &Insn, n: usize) -> Result<u64, Interrupted> {
        if insn.is_64bit() { self.get::<u64>(insn, n) } else { Ok(self.get::<u32>(insn, n)? as u64) }
    }

    pub(super) fn put_native(&mut self, insn: &Insn, n: usize, value: u64) -> Result<(), Interrupted> {
        if insn.is_64bit() { self.put(insn, n, value) } else { self.put(insn, n, value as u32) }
    }
}

pub(super) fn cpuid(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let (function, index) = (core.state.gpr[gpr::RAX] as u32, core.state.gpr[gpr::RCX] as u32);
    let what = core.describe(insn, SensitiveKind::CPUID);
    core.sensitive(&Sensitive { number: function, value: index as u64, ..what })?;
    let [eax, ebx, ecx, edx] = core.env.cpuid(core.state, function, index);
    for (register, value) in [(gpr::RAX, eax), (gpr::RBX, ebx), (gpr::RCX, ecx), (gpr::RDX, edx)] {
        core.state.gpr[register] = value as u64;
    }
    Ok(())
}

/// CR4.TSD and CR4.PCE decide outside level 0.
fn require_level(core: &Core<'_>, open: bool) -> Result<(), Interrupted> {
    core.require_gp0(open || core.cpl() == 0 || core.mode() == Mode::Real)
}

/// RDTSC and RDTSCP.
pub(super) fn rdtsc(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let with_aux = insn.code == Code::Rdtscp;
    require_level(core, !core.state.cr4().tsd())?;
    let kind = if with_aux { SensitiveKind::RDTSCP } else { SensitiveKind::RDTSC };
    core.sensitive(&core.describe(insn, kind))?;
    let tsc = core.guest_tsc();
    core.set_edx_eax(tsc);
    if with_aux {
        core.state.gpr[gpr::RCX] = core.state.tsc_aux & 0xffff_ffff;
    }
    Ok(())
}

/// No performance counters exist.
pub(super) fn rdpmc(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let number = core.state.gpr[gpr::RCX] as u32;
    require_level(core, core.state.cr4().pce() || core.env.opens_counter(number))?;
    core.sensitive(&Sensitive { number, ..core.describe(insn, SensitiveKind::RDPMC) })?;
    core.require_gp0(false)
}

pub(super) fn rdpid(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.put_native(insn, 0, core.state.tsc_aux)
}

/// RDRAND and RDSEED: a number every time, so CF is set and the other status flags are clear.
pub(super) fn random(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    use Code::*;
    let seed = matches!(insn.code, Rdseed_r16 | Rdseed_r32 | Rdseed_r64);
    let kind = if seed { SensitiveKind::RDSEED } else { SensitiveKind::RDRAND };
    core.sensitive(&Sensitive { gpr: insn.regs[0], ..core.describe(insn, kind) })?;
    let value = core.env.random();
    core.set_status(Rflags::new().with_cf(true).into_bits());
    match insn.code {
        Rdrand_r16 | Rdseed_r16 => core.put(insn, 0, value as u16),
        Rdrand_r32 | Rdseed_r32 => core.put(insn, 0, value as u32),
        _ => core.put(insn, 0, value),
    }
}

pub(super) fn hlt(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.require_cpl0()?;
    core.sensitive(&core.describe(insn, SensitiveKind::HLT))?;
    // A single step ends the halt at once.
    if !core.single_step {
        core.state.activity = Activity::HLT;
    }
    Ok(())
}

pub(super) fn pause(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.sensitive(&core.describe(insn, SensitiveKind::PAUSE))
}

/// MONITOR checks its operand like a read; nothing is armed, because MWAIT does not wait.
pub(super) fn monitor(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    if core.cpl() != 0 {
        return ud();
    }
    core.sensitive(&core.describe(insn, SensitiveKind::MONITOR))?;
    core.require_gp0(core.state.gpr[gpr::RCX] as u32 == 0)?;
    let mask = match insn.code {
        Code::Monitorq => u64::MAX,
        Code::Monitord => 0xffff_ffff,
        _ => 0xffff,
    };
    core.read::<u8>(insn.seg, core.state.gpr[gpr::RAX] & mask)?;
    Ok(())
}

/// May wake up at any time, so it does at once.
pub(super) fn mwait(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    if core.cpl() != 0 {
        return ud();
    }
    core.sensitive(&core.describe(insn, SensitiveKind::MWAIT))
}

/// WBINVD, WBNOINVD and INVD.
pub(super) fn cache(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.require_cpl0()?;
    let kind = if insn.code == Code::Invd { SensitiveKind::INVD } else { SensitiveKind::WBINVD };
    core.sensitive(&core.describe(insn, kind))
}

/// CLFLUSH, CLFLUSHOPT, CLWB: the checks of a byte read.
pub(super) fn cache_line(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.read::<u8>(insn.seg, insn.address(core))?;
    Ok(())
}

pub(super) fn invlpg(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.require_cpl0()?;
    let what = core.describe(insn, SensitiveKind::INVLPG);
    core.sensitive(&what)?;
    // Not canonical: nothing to do, and no fault.
    if !insn.is_64bit() || core.is_canonical(what.address) {
        core.tlb.flush(tlb::Flush::Page(what.address));
    }
    Ok(())
}

/// See: SDM vol. 2A INVPCID
pub(super) fn invpcid(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    const ADDRESS: u64 = 0;
    const SINGLE_CONTEXT: u64 = 1;
    const LAST_TYPE: u64 = 3;
    const PCID: u64 = 0xfff;
    if core.mode() == Mode::Virtual8086 {
        return core.require_gp0(false);
    }
    core.require_cpl0()?;
    let value = core.get_native(insn, 0)?;
    let at = insn.address(core);
    let what = core.describe(insn, SensitiveKind::INVPCID);
    let descriptor: u128 = core.read(insn.seg, at)?;
    let (pcid, gva) = (descriptor as u64, (descriptor >> 64) as u64);
    core.sensitive(&Sensitive { value, gpr: insn.regs[0], aux: pcid, aux2: gva, ..what })?;
    core.require_gp0(value <= LAST_TYPE && pcid & !PCID == 0)?;
    if value <= SINGLE_CONTEXT {
        core.require_gp0(core.state.cr4().pcide() || pcid == 0)?;
    }
    if value == ADDRESS {
        core.require_gp0(core.model.canonical(gva))?;
    }
    core.flush(Flush::All);
    Ok(())
}

/// Instructions of SVM. Silicon on which no backend asks for them has none: #UD. Elsewhere mode and CPL come before an exit;
/// whether EFER.SVME is set for the guest is KVM's question, whose own is always set.
/// See: APM vol. 2 (24593, revision 3.42) 15.9 Instruction Intercepts; vol. 3 VMRUN
pub(super) fn svm(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    use Code::*;
    if !core.state.intercepts.wants(SensitiveKind::SVM) || core.in_real_mode() {
        return ud();
    }
    core.require_cpl0()?;
    // The operand's address size is part of the code.
    let (number, size) = match insn.code {
        Vmrunw => (svm::VMRUN, 2),
        Vmrund => (svm::VMRUN, 4),
        Vmrunq => (svm::VMRUN, 8),
        Vmloadw => (svm::VMLOAD, 2),
        Vmloadd => (svm::VMLOAD, 4),
        Vmloadq => (svm::VMLOAD, 8),
        Vmsavew => (svm::VMSAVE, 2),
        Vmsaved => (svm::VMSAVE, 4),
        Vmsaveq => (svm::VMSAVE, 8),
        Invlpgaw => (svm::INVLPGA, 2),
        Invlpgad => (svm::INVLPGA, 4),
        Invlpgaq => (svm::INVLPGA, 8),
        Stgi => (svm::STGI, 8),
        Clgi => (svm::CLGI, 8),
        _ => (svm::SKINIT, 4),
    };
    let value = core.state.gpr[gpr::RAX] & (u64::MAX >> (64 - 8 * size));
    let asid = core.state.gpr[gpr::RCX] & 0xffff_ffff;
    let what = core.describe(insn, SensitiveKind::SVM);
    core.sensitive(&Sensitive { number, value, aux: asid, address_size: size, ..what })
}

/// VMCALL, VMMCALL, and the instructions of VMX, SMX and SGX: #UD unless the backend takes them.
pub(super) fn virtualization(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    use Code::*;
    let (kind, number) = match insn.code {
        Vmcall => (SensitiveKind::VMCALL, 0),
        Vmmcall => (SensitiveKind::VMMCALL, 0),
        Rsm => (SensitiveKind::RSM, 0),
        Getsecd | Getsecq => (SensitiveKind::GETSEC, 0),
        Encls => (SensitiveKind::ENCLS, 0),
        Rdpru => (SensitiveKind::RDPRU, 0),
        code => (SensitiveKind::VMX, code as u32),
    };
    let what = core.describe(insn, kind);
    core.sensitive(&Sensitive { number, gpr: insn.regs[0], ..what })?;
    ud()
}
