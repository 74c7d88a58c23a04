//! MOV to and from control registers, CLTS, LMSW, SMSW, XGETBV and XSETBV.
//!
//! See: SDM vol. 2B MOV - Move to/from Control Registers; vol. 3C 26.1.1 Relative Priority of Faults and VM Exits

use super::control::{self, Flush};
use crate::{
    core::{Core, ud},
    env::Interrupted,
    insn::{Insn, Kind},
    mem::Privilege,
    tlb,
};
use iced_x86::Code;
use vmtape_arch::{
    regs::{Cr0, Cr4, Efer},
    sensitive::{Sensitive, SensitiveKind},
    vcpu::gpr,
};

/// Reads of CR0-CR15 in `Intercepts::cr`; writes are the low half.
const CR_READS: u32 = 16;

/// MOV r, CRn.
pub(super) fn mov_from(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let number = insn.regs[1] as u32;
    check_number(number)?;
    core.require_cpl0()?;
    let state = &core.state;
    let value = match number {
        0 => state.cr0,
        2 => state.cr2,
        3 => state.cr3,
        4 => state.cr4,
        _ => state.cr8,
    };
    let intercepted = state.intercepts.cr >> (CR_READS + number) & 1 != 0;
    core.tell_outcome();
    if intercepted {
        let what = core.describe(insn, SensitiveKind::CR_READ);
        core.sensitive(&Sensitive { number, gpr: insn.regs[0], value, ..what })?;
    }
    core.put_native(insn, 0, value)
}

/// MOV CRn, r.
pub(super) fn mov_to(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let number = insn.regs[0] as u32;
    check_number(number)?;
    core.require_cpl0()?;
    let value = core.get_native(insn, 1)?;
    core.tell_outcome();
    if core.state.intercepts.cr >> number & 1 != 0 {
        let what = core.describe(insn, SensitiveKind::CR_WRITE);
        core.sensitive(&Sensitive { number, gpr: insn.regs[1], value, ..what })?;
    }
    match number {
        0 => core.write_cr0(value),
        2 => {
            core.state.cr2 = value;
            Ok(())
        }
        3 => core.write_cr3(value),
        4 => core.write_cr4(value),
        _ => core.write_cr8(value),
    }
}

fn check_number(number: u32) -> Result<(), Interrupted> {
    if matches!(number, 0 | 2 | 3 | 4 | 8) { Ok(()) } else { ud() }
}

impl Core<'_> {
    pub(super) fn flush(&mut self, what: Flush) {
        match what {
            Flush::Nothing => {}
            Flush::NonGlobal => self.tlb.flush(tlb::Flush::NonGlobal),
            Flush::All => self.tlb.flush(tlb::Flush::All),
        }
    }

    fn write_cr0(&mut self, value: u64) -> Result<(), Interrupted> {
        let (new, pdptes) = control::check_cr0(self.state, value).map_err(Interrupted::Fault)?;
        let old = self.state.cr0();
        let efer = self.state.efer();
        let efer = efer.with_lma(efer.lme() && new.pg());
        if pdptes {
            self.load_pdptes(self.state.cr3)?;
        }
        self.state.cr0 = new.into_bits();
        self.state.efer = efer.into_bits();
        self.flush(control::cr0_flush(old, new));
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Result<(), Interrupted> {
        let new = control::check_cr3(self.state, &self.model, value).map_err(Interrupted::Fault)?;
        if control::is_pae_paging(self.state.cr0(), self.state.cr4(), self.state.efer()) {
            self.load_pdptes(new)?;
        }
        self.state.cr3 = new;
        self.flush(Flush::NonGlobal);
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Interrupted> {
        let (new, pdptes) = control::check_cr4(self.state, &self.model, value).map_err(Interrupted::Fault)?;
        let old = self.state.cr4();
        if pdptes {
            self.load_pdptes(self.state.cr3)?;
        }
        self.state.cr4 = new.into_bits();
        self.flush(control::cr4_flush(old, new));
        Ok(())
    }

    fn write_cr8(&mut self, value: u64) -> Result<(), Interrupted> {
        self.require_gp0(value >> 4 == 0)?;
        self.state.cr8 = value;
        self.env.tpr_changed(self.state);
        Ok(())
    }

    /// Reads the four page-directory pointers of PAE paging: the only place where the processor reads guest physical
    /// memory outside a walk, so it is asked for with paging off.
    fn load_pdptes(&mut self, cr3: u64) -> Result<(), Interrupted> {
        const TABLE: u64 = 0xffff_ffe0;
        let (cr0, efer) = (self.state.cr0, self.state.efer);
        self.state.cr0 = Cr0::from_bits(cr0).with_pg(false).into_bits();
        self.state.efer = Efer::from_bits(efer).with_lma(false).into_bits();
        self.tlb.flush(tlb::Flush::All);
        let mut pdptes = [0; 4];
        let mut done = Ok(());
        for (n, pdpte) in pdptes.iter_mut().enumerate() {
            match self.read_linear::<u64>((cr3 & TABLE) + 8 * n as u64, Privilege::Implicit) {
                Ok(value) => *pdpte = value,
                Err(why) => done = Err(why),
            }
        }
        self.tlb.flush(tlb::Flush::All);
        self.state.cr0 = cr0;
        self.state.efer = efer;
        done?;
        let valid = pdptes.iter().all(|pdpte| control::is_pdpte_valid(*pdpte, &self.model));
        self.require_gp0(valid)?;
        self.state.pdptr = pdptes;
        Ok(())
    }
}

pub(super) fn clts(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.require_cpl0()?;
    core.sensitive(&core.describe(insn, SensitiveKind::CLTS))?;
    core.state.cr0 = core.state.cr0().with_ts(false).into_bits();
    Ok(())
}

/// Changes PE (to one only), MP, EM and TS.
pub(super) fn lmsw(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.require_cpl0()?;
    let word: u16 = core.get(insn, 0)?;
    let what = core.describe(insn, SensitiveKind::LMSW);
    core.sensitive(&Sensitive { value: word as u64, ..what })?;
    let (old, new) = (core.state.cr0(), Cr0::from_bits(word as u64));
    let cr0 = old.with_pe(old.pe() || new.pe()).with_mp(new.mp()).with_em(new.em()).with_ts(new.ts());
    core.write_cr0(cr0.into_bits())
}

/// Stores 16 bits of CR0 in memory, and as much of it as fits in a register.
pub(super) fn smsw(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    core.check_umip()?;
    core.sensitive(&core.describe(insn, SensitiveKind::SMSW))?;
    let cr0 = core.state.cr0;
    match (insn.kinds[0], insn.code) {
        (Kind::Mem, _) | (_, Code::Smsw_rm16) => core.put(insn, 0, cr0 as u16),
        (_, Code::Smsw_r32m16) => core.put(insn, 0, cr0 as u32),
        _ => core.put(insn, 0, cr0),
    }
}

pub(super) fn xgetbv(core: &mut Core<'_>, _: &Insn) -> Result<(), Interrupted> {
    if !core.state.cr4().osxsave() {
        return ud();
    }
    core.require_gp0(core.state.gpr[gpr::RCX] as u32 == 0)?;
    core.set_edx_eax(core.state.xcr0);
    Ok(())
}

pub(super) fn xsetbv(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    if !core.state.cr4().osxsave() {
        return ud();
    }
    core.require_cpl0()?;
    let (number, value) = (core.state.gpr[gpr::RCX] as u32, core.edx_eax());
    let what = core.describe(insn, SensitiveKind::XSETBV);
    core.sensitive(&Sensitive { number, value, ..what })?;
    core.require_gp0(number == 0)?;
    core.state.xcr0 = control::check_xcr0(&core.model, value).map_err(Interrupted::Fault)?;
    Ok(())
}

/// The bits of CR4 that a guest sees in CPUID leaves elsewhere are the backend's; here only PKE guards PKRU.
pub(super) fn pkru(core: &mut Core<'_>, insn: &Insn) -> Result<(), Interrupted> {
    let cr4: Cr4 = core.state.cr4();
    if !cr4.pke() {
        return ud();
    }
    core.require_gp0(core.state.gpr[gpr::RCX] as u32 == 0)?;
    if insn.code == Code::Rdpkru {
        core.set_edx_eax(core.state.pkru as u64);
        return Ok(());
    }
    core.require_gp0(core.state.gpr[gpr::RDX] as u32 == 0)?;
    core.state.pkru = core.state.gpr[gpr::RAX] as u32;
    // Cached permissions include what PKRU allows.
    core.flush(Flush::All);
    Ok(())
}
