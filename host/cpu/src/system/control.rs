//! What may be written to the control registers, as pure functions of the vCPU state.
//!
//! See: SDM vol. 3A 2.5 Control Registers, 4.10.4 Invalidation of TLBs and Paging-Structure Caches

use super::model::Model;
use vmtape_arch::{
    exception::Exception,
    paging::{PagingMode, bits},
    regs::{Cr0, Cr4, Efer, SegAttr},
    vcpu::{VcpuState, seg},
};

/// Which cached translations a register write makes stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flush {
    Nothing,
    NonGlobal,
    All,
}

/// CR3's no-flush bit in the operand of MOV to CR3 with CR4.PCIDE=1.
const CR3_NO_FLUSH: u64 = 1 << 63;
/// The process-context identifier in CR3.
const CR3_PCID: u64 = 0xfff;

const GP0: Exception = Exception::gp(0);

fn gp_if(condition: bool) -> Result<(), Exception> {
    if condition { Err(GP0) } else { Ok(()) }
}

/// Whether paging with 8-byte entries but without IA-32e mode is on.
pub fn is_pae_paging(cr0: Cr0, cr4: Cr4, efer: Efer) -> bool {
    PagingMode::of(cr0, cr4, efer) == PagingMode::Pae
}

/// The value that MOV to CR0 (CLTS, LMSW) gives CR0, or #GP. `true`: PDPTEs have to be loaded.
pub fn check_cr0(state: &VcpuState, value: u64) -> Result<(Cr0, bool), Exception> {
    gp_if(value >> 32 != 0)?;
    let (old, cr4, efer) = (state.cr0(), state.cr4(), state.efer());
    let new = Cr0::from_bits(value & WRITABLE_CR0.into_bits()).with_et(true);
    gp_if(new.pg() && !new.pe())?;
    gp_if(new.nw() && !new.cd())?;
    gp_if(!new.wp() && cr4.cet())?;
    let cs = state.seg[seg::CS].attr;
    if new.pg() && !old.pg() && efer.lme() {
        gp_if(!cr4.pae() || cs.l() || is_16bit_tss(state.seg[seg::TR].attr))?;
    }
    if !new.pg() && old.pg() {
        gp_if(cr4.pcide() || (efer.lma() && cs.l()))?;
    }
    let changed = Cr0::from_bits(new.into_bits() ^ old.into_bits());
    let lma = efer.lme() && new.pg();
    let pdptes =
        is_pae_paging(new, cr4, efer.with_lma(lma)) && (changed.pg() || changed.cd() || changed.nw());
    Ok((new, pdptes))
}

/// The bits of CR0 that are not reserved; those below bit 32 that are reserved ignore what is written.
const WRITABLE_CR0: Cr0 = Cr0::new()
    .with_pe(true)
    .with_mp(true)
    .with_em(true)
    .with_ts(true)
    .with_ne(true)
    .with_wp(true)
    .with_am(true)
    .with_nw(true)
    .with_cd(true)
    .with_pg(true);

/// Types 1 and 3 are the 16-bit task-state segments.
fn is_16bit_tss(tr: SegAttr) -> bool {
    tr.present() && tr.typ() & 8 == 0
}

/// The value that MOV to CR4 gives CR4, or #GP. `true`: PDPTEs have to be loaded.
pub fn check_cr4(state: &VcpuState, model: &Model, value: u64) -> Result<(Cr4, bool), Exception> {
    gp_if(value & !model.cr4.into_bits() != 0)?;
    let (old, cr0, efer) = (state.cr4(), state.cr0(), state.efer());
    let new = Cr4::from_bits(value);
    let changed = Cr4::from_bits(new.into_bits() ^ old.into_bits());
    if efer.lma() {
        gp_if(!new.pae() || changed.la57())?;
    }
    if new.pcide() && !old.pcide() {
        gp_if(!efer.lma() || state.cr3 & CR3_PCID != 0)?;
    }
    gp_if(new.cet() && !cr0.wp())?;
    let pdptes =
        is_pae_paging(cr0, new, efer) && (changed.pae() || changed.pse() || changed.pge() || changed.smep());
    Ok((new, pdptes))
}

/// What a change of CR0 makes stale. Permissions are cached too, so every bit that a walk looks at counts.
pub fn cr0_flush(old: Cr0, new: Cr0) -> Flush {
    if old.pg() != new.pg() || old.wp() != new.wp() { Flush::All } else { Flush::Nothing }
}

/// What a change of CR4 makes stale.
pub fn cr4_flush(old: Cr4, new: Cr4) -> Flush {
    let walk = |cr4: Cr4| {
        (cr4.pae(), cr4.pse(), cr4.pge(), cr4.la57(), cr4.smep(), cr4.smap(), cr4.pke(), cr4.pks())
    };
    if walk(old) != walk(new) || (old.pcide() && !new.pcide()) { Flush::All } else { Flush::Nothing }
}

/// The value that MOV to CR3 gives CR3, or #GP for bits that the silicon's MAXPHYADDR reserves.
///
/// With CR4.PCIDE=1 an operand with bit 63 set keeps cached translations of the PCID; they are not told apart here, so
/// the flush happens all the same, as the architecture allows.
pub fn check_cr3(state: &VcpuState, model: &Model, value: u64) -> Result<u64, Exception> {
    if !state.efer().lma() {
        return Ok(value & bits(0, 31));
    }
    let value = if state.cr4().pcide() { value & !CR3_NO_FLUSH } else { value };
    gp_if(value & bits(model.phys_bits as u32, 63) != 0)?;
    Ok(value)
}

/// Whether a PDPTE of PAE paging may be loaded. See: SDM vol. 3A Table 4-8
pub fn is_pdpte_valid(pdpte: u64, model: &Model) -> bool {
    let reserved = bits(1, 2) | bits(5, 8) | bits(model.phys_bits as u32, 63);
    pdpte & 1 == 0 || pdpte & reserved == 0
}

/// The value that WRMSR gives EFER, or #GP. LMA is the processor's.
pub fn check_efer(state: &VcpuState, model: &Model, value: u64) -> Result<Efer, Exception> {
    gp_if(value & !model.efer.into_bits() != 0)?;
    let new = Efer::from_bits(value).with_lma(state.efer().lma());
    gp_if(state.cr0().pg() && new.lme() != state.efer().lme())?;
    Ok(new)
}

/// Whether each byte of a PAT names a memory type. See: SDM vol. 3A Table 12-10. Memory Types That Can Be Encoded With PAT
pub fn is_pat_valid(value: u64) -> bool {
    value.to_le_bytes().iter().all(|byte| matches!(byte, 0 | 1 | 4..=7))
}

/// The value that XSETBV gives XCR0, or #GP. See: SDM vol. 1 13.3 Enabling the XSAVE Feature Set
pub fn check_xcr0(model: &Model, value: u64) -> Result<u64, Exception> {
    const X87: u64 = 1 << 0;
    const SSE: u64 = 1 << 1;
    const AVX: u64 = 1 << 2;
    const BNDREGS: u64 = 1 << 3;
    const BNDCSR: u64 = 1 << 4;
    const AVX512: u64 = bits(5, 7);
    const AMX: u64 = bits(17, 18);
    gp_if(value & !model.xcr0 != 0 || value & X87 == 0)?;
    gp_if(value & AVX != 0 && value & SSE == 0)?;
    gp_if((value & BNDREGS != 0) != (value & BNDCSR != 0))?;
    gp_if(value & AVX512 != 0 && (value & AVX512 != AVX512 || value & AVX == 0))?;
    gp_if(value & AMX != 0 && value & AMX != AMX)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long_mode() -> VcpuState {
        let mut state = VcpuState::reset();
        state.cr0 = Cr0::new().with_pe(true).with_pg(true).with_et(true).into_bits();
        state.cr4 = Cr4::new().with_pae(true).into_bits();
        state.efer = Efer::new().with_lme(true).with_lma(true).into_bits();
        state.seg[seg::CS].attr = state.seg[seg::CS].attr.with_l(true);
        state
    }

    #[test]
    fn cr0_rules() {
        let mut state = VcpuState::reset();
        let pg = Cr0::new().with_pg(true);
        assert!(check_cr0(&state, pg.into_bits()).is_err(), "PG without PE");
        assert!(check_cr0(&state, Cr0::new().with_nw(true).into_bits()).is_err(), "NW without CD");
        assert!(check_cr0(&state, 1 << 32).is_err(), "high half");
        assert_eq!(
            check_cr0(&state, 1 << 6).unwrap().0,
            Cr0::new().with_et(true),
            "reserved low bits are ignored"
        );
        state.efer = Efer::new().with_lme(true).into_bits();
        assert!(check_cr0(&state, pg.with_pe(true).into_bits()).is_err(), "LME without PAE");
        state.cr4 = Cr4::new().with_pae(true).into_bits();
        assert!(check_cr0(&state, pg.with_pe(true).into_bits()).is_ok());
    }

    #[test]
    fn paging_stays_on_in_64bit_mode() {
        let mut state = long_mode();
        assert!(check_cr0(&state, Cr0::new().with_pe(true).into_bits()).is_err());
        state.seg[seg::CS].attr = state.seg[seg::CS].attr.with_l(false);
        assert!(check_cr0(&state, Cr0::new().with_pe(true).into_bits()).is_ok());
        state.cr4 |= Cr4::new().with_pcide(true).into_bits();
        assert!(check_cr0(&state, Cr0::new().with_pe(true).into_bits()).is_err());
    }

    #[test]
    fn cr4_rules() {
        let (model, mut state) = (Model::default(), long_mode());
        let pae = Cr4::new().with_pae(true);
        assert!(check_cr4(&state, &model, 0).is_err(), "PAE stays on in long mode");
        assert!(check_cr4(&state, &model, pae.with_la57(true).into_bits()).is_err(), "LA57 in long mode");
        assert!(check_cr4(&state, &model, 1 << 15).is_err(), "reserved");
        assert!(check_cr4(&state, &model, pae.with_pcide(true).into_bits()).is_ok());
        state.cr3 = 0x1001;
        assert!(check_cr4(&state, &model, pae.with_pcide(true).into_bits()).is_err(), "PCID in use");
    }

    #[test]
    fn cr3_rules() {
        let (mut model, mut state) = (Model::default(), long_mode());
        model.phys_bits = 46;
        assert!(check_cr3(&state, &model, 1 << 46).is_err());
        assert!(check_cr3(&state, &model, CR3_NO_FLUSH).is_err());
        state.cr4 |= Cr4::new().with_pcide(true).into_bits();
        assert_eq!(check_cr3(&state, &model, CR3_NO_FLUSH | 0x1001), Ok(0x1001));
    }

    #[test]
    fn xcr0_rules() {
        let model = Model::default();
        assert!(check_xcr0(&model, 0).is_err());
        assert!(check_xcr0(&model, 5).is_err());
        assert!(check_xcr0(&model, 7).is_ok());
        assert!(check_xcr0(&model, 1 << 63 | 1).is_err());
    }
}
