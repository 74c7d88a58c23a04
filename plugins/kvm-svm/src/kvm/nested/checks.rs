//! What KVM refuses to run L2 with, in its order.
//!
//! See: KVM arch/x86/kvm/svm/nested.c __nested_vmcb_check_save(), __nested_vmcb_check_controls(); the table by release is that of
//! the registry's switches.

use super::patches::L1;
use crate::silicon::vmcb::{ControlArea, EventInfo, IOPM_SIZE, MSRPM_SIZE, SaveArea, Vmcb};
pub use vmtape_arch::vmrun_check::VmrunCheck as Check;
use vmtape_arch::{
    event::EventKind,
    exit::SvmExitCode as C,
    paging::bits,
    regs::{Cr0, Cr4, Efer},
};
use vmtape_kvm_core::{cpuid::feature, cr, msr::is_valid_pat, profile::Switch};

/// A check in the words of this release.
pub fn worded(check: Check, l1: &L1<'_>) -> Check {
    match check {
        Check::CR3_ILLEGAL if !l1.on(Switch::NESTED_CR3_WITHOUT_LAM) => Check::CR3_ILLEGAL_GPA,
        Check::NCR3_ILLEGAL if l1.on(Switch::NESTED_SANITIZED) => Check::NCR3_ILLEGAL_MISC_CTL,
        check => check,
    }
}

/// Upper halves that must be zero.
const HIGH: u64 = bits(32, 63);

fn require(legal: bool, otherwise: Check) -> Result<(), Check> {
    if legal { Ok(()) } else { Err(otherwise) }
}

/// `nested_svm_check_cached_vmcb12`: the save area first.
pub fn check(l1: &L1<'_>, npt: bool, vmcb12: &Vmcb) -> Result<(), Check> {
    let gpat = super::pat::is_checked(l1, &vmcb12.control);
    check_save(l1, &vmcb12.save, gpat)?;
    check_controls(l1, npt, &vmcb12.control)
}

/// `__nested_vmcb_check_save`; `gpat`: G_PAT is L2's own.
pub fn check_save(l1: &L1<'_>, save: &SaveArea, gpat: bool) -> Result<(), Check> {
    let (efer, cr0, cr4) = (Efer::from_bits(save.efer), Cr0::from_bits(save.cr0), Cr4::from_bits(save.cr4));
    require(efer.svme(), Check::SVME_CLEAR)?;
    require(cr0.cd() || !cr0.nw(), Check::NW_WITHOUT_CD)?;
    require(save.cr0 & HIGH == 0 || !l1.on(Switch::NESTED_CHECK_CR0_HIGH), Check::CR0_HIGH)?;
    require(save.dr6 & HIGH == 0, Check::DR6_HIGH)?;
    require(save.dr7 & HIGH == 0, Check::DR7_HIGH)?;
    if efer.lme() && cr0.pg() {
        let code = save.cs.attr();
        require(cr4.pae(), Check::LONG_MODE_WITHOUT_PAE)?;
        require(cr0.pe(), Check::LONG_MODE_WITHOUT_PE)?;
        require(l1.is_legal_gpa(save.cr3), Check::CR3_ILLEGAL)?;
        let both = code.l() && code.db() && l1.on(Switch::NESTED_CHECK_CS);
        require(!both, Check::CS_LONG_AND_DEFAULT)?;
    }
    require(save.cr4 & cr::cr4_reserved(l1.cpuid) == 0, Check::CR4_INVALID)?;
    require(is_valid_efer(l1, efer) || !l1.on(Switch::NESTED_CHECK_EFER), Check::EFER_INVALID)?;
    require(!gpat || is_valid_pat(save.g_pat), Check::G_PAT_INVALID)
}

/// `kvm_valid_efer`. LMSLE is allowed to whoever may have SVM.
fn is_valid_efer(l1: &L1<'_>, efer: Efer) -> bool {
    let has = |f| l1.cpuid.has(f);
    let allowed = Efer::new()
        .with_sce(true)
        .with_lmsle(true)
        .with_svme(has(feature::SVM))
        .with_nxe(has(feature::NX))
        .with_ffxsr(has(feature::FXSR_OPT))
        .with_lme(has(feature::LM))
        .with_lma(has(feature::LM));
    let automatic_ibrs = if has(feature::AUTOIBRS) { EFER_AUTOIBRS } else { 0 };
    efer.into_bits() & !(allowed.into_bits() | automatic_ibrs) == 0
}

/// AIBRSE. See: APM 3.1.7 Extended Feature Enable Register (EFER)
const EFER_AUTOIBRS: u64 = 1 << 21;

/// `__nested_vmcb_check_controls`; `npt`: the module's parameter.
pub fn check_controls(l1: &L1<'_>, npt: bool, control: &ControlArea) -> Result<(), Check> {
    let np = control.nested_ctl.np_enable();
    let intercepts = &control.intercepts;
    require(intercepts.has(C::VMRUN), Check::VMRUN_NOT_INTERCEPTED)?;
    require(control.asid != 0, Check::ASID_ZERO)?;
    require(!np || npt, Check::NP_WITHOUT_NPT)?;
    let ncr3 = np && l1.on(Switch::NESTED_CHECK_NCR3);
    require(!ncr3 || l1.is_legal_gpa(control.nested_cr3), Check::NCR3_ILLEGAL)?;
    require(!l1.on(Switch::NESTED_CHECK_TLB_CTL) || control.tlb_ctl <= 1, Check::TLB_CTL_RESERVED)?;
    // Whether or not MSR and I/O accesses are intercepted.
    let fits = |base, size| !l1.on(Switch::NESTED_CHECK_MAPS) || is_legal_map(l1, base, size);
    require(fits(control.msrpm_base_pa, MSRPM_SIZE), Check::MSRPM_ILLEGAL)?;
    require(fits(control.iopm_base_pa, IOPM_SIZE), Check::IOPM_ILLEGAL)?;
    let vnmi = control.int_ctl.v_nmi_enable() && l1.on(Switch::NESTED_VNMI);
    require(!vnmi || intercepts.has(C::NMI), Check::VNMI_WITHOUT_NMI)?;
    let event = control.event_inj;
    require(!l1.on(Switch::NESTED_CHECK_EVENT_INJ) || is_legal_event(l1, event), Check::EVENT_INJ_INVALID)
}

/// `nested_svm_check_bitmap_pa`: of a map that begins on a page.
fn is_legal_map(l1: &L1<'_>, base: u64, size: u64) -> bool {
    l1.is_legal_gpa(base) && l1.is_legal_gpa(base.wrapping_add(size - 1))
}

/// Vectors of exceptions that every guest has; #CP comes with shadow stacks.
const EXCEPTIONS: [u8; 19] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 28, 30];
const CONTROL_PROTECTION: u8 = 21;

/// `nested_svm_check_event_inj`.
fn is_legal_event(l1: &L1<'_>, event: EventInfo) -> bool {
    let vector = event.vector();
    !event.valid()
        || match EventKind(event.kind()) {
            EventKind::EXTERNAL_INTERRUPT | EventKind::NMI | EventKind::SOFTWARE_INTERRUPT => true,
            EventKind::HARDWARE_EXCEPTION => {
                EXCEPTIONS.contains(&vector) || vector == CONTROL_PROTECTION && l1.cpuid.has(feature::SHSTK)
            }
            _ => false,
        }
}
