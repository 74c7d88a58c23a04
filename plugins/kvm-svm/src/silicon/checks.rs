//! The states that VMRUN refuses.
//!
//! Manual: AMD APM volume 2, 24593 rev. 3.42, 15.5.1 Basic Operation, Canonicalization and Consistency Checks; 15.25.4 for
//! nested paging; 15.20 for event injection.

use super::vmcb::{EventInfo, IOPM_SIZE, MSRPM_SIZE, SaveArea, Vmcb};
use vmtape_arch::{
    event::EventKind,
    exception::Vector,
    exit::SvmExitCode,
    host::Silicon,
    paging::bits,
    regs::{Cr0, Cr4, Efer},
};
use vmtape_kvm_core::msr::is_valid_pat;

/// Why VMRUN ends in VMEXIT_INVALID. Silicon does not tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    SvmeClear,
    NwWithoutCd,
    Cr0High,
    Cr3Reserved,
    Cr4Reserved,
    Dr6High,
    Dr7High,
    EferReserved,
    LongModeWithoutPae,
    LongModeWithoutProtection,
    CodeBothLongAndDefault,
    VmrunNotIntercepted,
    MsrpmBeyondMemory,
    IopmBeyondMemory,
    EventInjection,
    AsidZero,
    NestedCr3Reserved,
    GuestPat,
}

/// Upper halves that must be zero.
const HIGH: u64 = bits(32, 63);
/// CR3 holds at most 52 address bits, whatever the width: a guest's is a guest physical address.
const CR3_RESERVED: u64 = bits(52, 63);
/// EFER: SCE, LME, LMA, NXE, SVME, LMSLE, FFXSR, TCE, MCOMMIT, INTWB, UAIE, AIBRSE.
/// See: APM 3.1.7 Extended Feature Enable Register (EFER)
const EFER_DEFINED: u64 = Efer::new()
    .with_sce(true)
    .with_lme(true)
    .with_lma(true)
    .with_nxe(true)
    .with_svme(true)
    .with_lmsle(true)
    .with_ffxsr(true)
    .with_tce(true)
    .into_bits()
    | 1 << 17
    | 1 << 18
    | 1 << 20
    | 1 << 21;

/// CR4 bits that AMD's silicon has. LA57 is among them even if the host's own tables have four levels.
/// See: APM 3.1.3 CR4 Register
const CR4_DEFINED: u64 = Cr4::from_bits(bits(0, 10))
    .with_umip(true)
    .with_la57(true)
    .with_fsgsbase(true)
    .with_pcide(true)
    .with_osxsave(true)
    .with_smep(true)
    .with_smap(true)
    .with_pke(true)
    .with_cet(true)
    .into_bits();

/// The first check that this VMCB fails, in the manual's order.
pub fn check(vmcb: &Vmcb, silicon: &Silicon) -> Result<(), Invalid> {
    let require = |legal: bool, otherwise: Invalid| if legal { Ok(()) } else { Err(otherwise) };
    let (control, save) = (&vmcb.control, &vmcb.save);
    check_registers(save)?;
    require(control.intercepts.has(SvmExitCode::VMRUN), Invalid::VmrunNotIntercepted)?;
    let fits = |base: u64, size: u64| (base & !0xfff).saturating_add(size) <= 1 << silicon.phys_bits;
    require(fits(control.msrpm_base_pa, MSRPM_SIZE), Invalid::MsrpmBeyondMemory)?;
    require(fits(control.iopm_base_pa, IOPM_SIZE), Invalid::IopmBeyondMemory)?;
    require(is_legal_event(control.event_inj), Invalid::EventInjection)?;
    require(control.asid != 0, Invalid::AsidZero)?;
    if control.nested_ctl.np_enable() {
        let reserved = bits(u32::from(silicon.phys_bits), 63);
        require(control.nested_cr3 & reserved == 0, Invalid::NestedCr3Reserved)?;
        require(is_valid_pat(save.g_pat), Invalid::GuestPat)?;
    }
    Ok(())
}

fn check_registers(save: &SaveArea) -> Result<(), Invalid> {
    let require = |legal: bool, otherwise: Invalid| if legal { Ok(()) } else { Err(otherwise) };
    let (efer, cr0, cr4) = (Efer::from_bits(save.efer), Cr0::from_bits(save.cr0), Cr4::from_bits(save.cr4));
    require(efer.svme(), Invalid::SvmeClear)?;
    require(cr0.cd() || !cr0.nw(), Invalid::NwWithoutCd)?;
    require(save.cr0 & HIGH == 0, Invalid::Cr0High)?;
    require(save.cr3 & CR3_RESERVED == 0, Invalid::Cr3Reserved)?;
    require(save.cr4 & !CR4_DEFINED == 0, Invalid::Cr4Reserved)?;
    require(save.dr6 & HIGH == 0, Invalid::Dr6High)?;
    require(save.dr7 & HIGH == 0, Invalid::Dr7High)?;
    require(save.efer & !EFER_DEFINED == 0, Invalid::EferReserved)?;
    if efer.lme() && cr0.pg() {
        let code = save.cs.attr();
        require(cr4.pae(), Invalid::LongModeWithoutPae)?;
        require(cr0.pe(), Invalid::LongModeWithoutProtection)?;
        require(!(code.l() && code.db()), Invalid::CodeBothLongAndDefault)?;
    }
    Ok(())
}

/// See: APM 15.20 Event Injection: reserved types, and an exception that is none.
pub fn is_legal_event(event: EventInfo) -> bool {
    if !event.valid() {
        return true;
    }
    match EventKind(event.kind()) {
        EventKind::EXTERNAL_INTERRUPT | EventKind::NMI | EventKind::SOFTWARE_INTERRUPT => true,
        // The vector of NMI, and those above 31, are no exceptions.
        EventKind::HARDWARE_EXCEPTION => event.vector() != Vector::NMI.0 && event.vector() < 32,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::bench::silicon;

    /// A VMCB of a guest in long mode under nested paging.
    fn legal() -> Vmcb {
        let mut vmcb = Vmcb::default();
        let (control, save) = (&mut vmcb.control, &mut vmcb.save);
        control.intercepts.set(SvmExitCode::VMRUN, true);
        control.asid = 1;
        control.nested_ctl.set_np_enable(true);
        control.iopm_base_pa = (1 << 46) - IOPM_SIZE;
        control.msrpm_base_pa = (1 << 46) - MSRPM_SIZE;
        save.efer = Efer::new().with_svme(true).with_lme(true).with_lma(true).into_bits();
        save.cr0 = Cr0::new().with_pe(true).with_pg(true).into_bits();
        save.cr4 = Cr4::new().with_pae(true).into_bits();
        save.cs.attrib = 0x29b;
        vmcb
    }

    /// A legal VMCB with one change.
    fn with(edit: fn(&mut Vmcb)) -> Result<(), Invalid> {
        let mut vmcb = legal();
        edit(&mut vmcb);
        check(&vmcb, &silicon(46))
    }

    fn inject(kind: u8, vector: u8) -> EventInfo {
        EventInfo::new().with_valid(true).with_kind(kind).with_vector(vector)
    }

    #[test]
    fn each_illegal_state() {
        for (edit, expected) in [
            ((|v| v.save.efer &= !(1 << 12)) as fn(&mut Vmcb), Invalid::SvmeClear),
            (|v| v.save.cr0 |= 1 << 29, Invalid::NwWithoutCd),
            (|v| v.save.cr0 |= 1 << 32, Invalid::Cr0High),
            (|v| v.save.cr3 = 1 << 52, Invalid::Cr3Reserved),
            (|v| v.save.cr4 |= 1 << 13, Invalid::Cr4Reserved),
            (|v| v.save.cr4 |= 1 << 24, Invalid::Cr4Reserved),
            (|v| v.save.dr6 = 1 << 32, Invalid::Dr6High),
            (|v| v.save.dr7 = 1 << 63, Invalid::Dr7High),
            (|v| v.save.efer |= 1 << 9, Invalid::EferReserved),
            (|v| v.save.cr4 = 0, Invalid::LongModeWithoutPae),
            (|v| v.save.cr0 = 1 << 31, Invalid::LongModeWithoutProtection),
            (|v| v.save.cs.attrib = 0x69b, Invalid::CodeBothLongAndDefault),
            (|v| v.control.intercepts = Default::default(), Invalid::VmrunNotIntercepted),
            (|v| v.control.msrpm_base_pa += 0x1000, Invalid::MsrpmBeyondMemory),
            (|v| v.control.iopm_base_pa += 0x1000, Invalid::IopmBeyondMemory),
            (|v| v.control.event_inj = inject(1, 0), Invalid::EventInjection),
            (|v| v.control.event_inj = inject(3, 2), Invalid::EventInjection),
            (|v| v.control.event_inj = inject(3, 32), Invalid::EventInjection),
            (|v| v.control.asid = 0, Invalid::AsidZero),
            (|v| v.control.nested_cr3 = 1 << 46, Invalid::NestedCr3Reserved),
            (|v| v.save.g_pat = 2, Invalid::GuestPat),
        ] {
            assert_eq!(with(edit), Err(expected));
        }
    }

    /// What the checks must let through.
    #[test]
    fn legal_states() {
        for edit in [
            (|_| {}) as fn(&mut Vmcb),
            // A guest narrower than its tables' addresses, real mode with paging, both caches off.
            |v| v.save.cr3 = 1 << 51,
            |v| (v.save.efer, v.save.cr0) = (1 << 12, 1 << 31),
            |v| v.save.cr0 |= 3 << 29,
            // Long mode is checked only with paging on.
            |v| (v.save.cr0, v.save.cr4) = (1, 0),
            |v| v.control.event_inj = inject(3, 14),
            |v| v.control.event_inj = inject(4, 0x80),
            |v| v.control.event_inj = inject(1, 0).with_valid(false),
            // Without nested paging neither nCR3 nor G_PAT matters.
            |v| {
                v.control.nested_ctl.set_np_enable(false);
                (v.control.nested_cr3, v.save.g_pat) = (u64::MAX, u64::MAX);
            },
        ] {
            assert_eq!(with(edit), Ok(()));
        }
    }
}
