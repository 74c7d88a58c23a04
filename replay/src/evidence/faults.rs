//! What a fault of a trace would be on another host.
//!
//! See: SDM vol. 3C Table 28-7; APM vol. 2 15.25.6; KVM arch/x86/kvm/mmu/spte.c kvm_mmu_reset_all_pte_masks()

use super::target::Target;
use vmtape_arch::{
    PAGE_SHIFT,
    exception::{PageFaultError, Vector},
    exit::{EptQualification, Exit, Isa, NpfInfo, SvmExitCode, VmxReason},
    host::Vendor,
    note::Note,
};
use vmtape_traces::ExitGroup;

/// A fault for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// In the tables below the guest's. `device`: at an entry that marks a device. `None`: no event tells the address.
    Below { gpa: Option<u64>, device: bool },
    /// A #PF of the guest's, or of shadow paging.
    Page,
}

/// The fault that an exit is, if it is one.
pub fn of(group: &ExitGroup) -> Option<Fault> {
    let exit = &group.exit.exit;
    match exit.isa {
        Isa::SVM => match SvmExitCode(exit.reason) {
            SvmExitCode::NPF => {
                let device = NpfInfo::from_bits(exit.info1).error().rsvd();
                Some(Fault::Below { gpa: Some(exit.info2), device })
            }
            SvmExitCode::EXCP_PF => Some(Fault::Page),
            _ => None,
        },
        Isa::VMX => match VmxReason(exit.reason) {
            VmxReason::EPT_VIOLATION => Some(Fault::Below { gpa: gpa(group), device: false }),
            VmxReason::EPT_MISCONFIG => Some(Fault::Below { gpa: gpa(group), device: true }),
            VmxReason::EXCEPTION_NMI if Vector(exit.intr_info as u8) == Vector::PF => Some(Fault::Page),
            _ => None,
        },
        _ => None,
    }
}

/// VMX tells the address in a field that `kvm_exit` does not have: events after it do.
fn gpa(group: &ExitGroup) -> Option<u64> {
    let told = (group.exit.exit.gpa != 0).then_some(group.exit.exit.gpa);
    told.or_else(|| {
        group.notes.iter().find_map(|note| match *note {
            Note::PageFault { address, .. } => Some(address),
            Note::Mmio { gpa, .. } | Note::FastMmio { gpa } => Some(gpa),
            Note::HandleMmioPageFault { gfn, .. } => Some(gfn << PAGE_SHIFT),
            _ => None,
        })
    })
}

/// The exit that the same access takes there; `None`: the same one, as far as the trace tells.
pub fn there(group: &ExitGroup, fault: Fault, target: &Target) -> Option<String> {
    let exit = &group.exit.exit;
    let intel = target.passport.silicon.vendor == Vendor::INTEL;
    let injected = group.notes.iter().any(|note| matches!(note, Note::InjException { .. }));
    let name = match (fault, target.two_dimensional, intel) {
        (Fault::Page, true, _) if injected => "none: the guest takes its page fault itself",
        (Fault::Below { device: true, .. }, true, true) => "EPT_MISCONFIG",
        (_, true, true) => "EPT_VIOLATION",
        (_, true, false) => "npf",
        (_, false, true) => "EXCEPTION_NMI",
        (_, false, false) => "PF excp",
    };
    let here = vmtape_arch::exit::reason_name(exit.isa, exit.reason);
    if here != Some(name) {
        return Some(name.to_owned());
    }
    let other = match exit.isa {
        Isa::VMX if name == "EPT_VIOLATION" => qualification_differs(exit, target),
        Isa::SVM if name == "npf" => {
            matches!(fault, Fault::Below { device: true, .. }) && !marks_devices(target)
        }
        _ => false,
    };
    other.then(|| format!("{name} that tells other details"))
}

/// Bits of an EPT violation that depend on silicon.
fn qualification_differs(exit: &Exit, target: &Target) -> bool {
    let silicon = &target.passport.silicon;
    let q = EptQualification::from_bits(exit.info1);
    let tells_more = q.gva_user() || q.gva_writable() || q.gva_nx();
    // A walk of the guest's entries, which with accessed and dirty bits of EPT counts as a write.
    let walk = q.gva_valid() && !q.gva_translated();
    let both = q.read() && q.write();
    (tells_more && !silicon.ept_advanced.is_set()) || (walk && both != silicon.ept_ad.is_set())
}

/// Whether an entry can be made that faults whatever it holds: only where a bit of addresses is reserved.
fn marks_devices(target: &Target) -> bool {
    const ADDRESS_BITS: u8 = 52;
    let silicon = &target.passport.silicon;
    silicon.phys_bits.saturating_sub(silicon.encryption_bits) < ADDRESS_BITS
}

/// Whether a walk of the guest's tables ended at reserved bits.
pub fn meets_reserved_bits(group: &ExitGroup) -> bool {
    let exit = &group.exit.exit;
    let code = match (exit.isa, VmxReason(exit.reason), SvmExitCode(exit.reason)) {
        (Isa::VMX, VmxReason::EXCEPTION_NMI, _) => exit.error_code,
        (Isa::SVM, _, SvmExitCode::EXCP_PF) => exit.info1 as u32,
        _ => 0,
    };
    let rsvd = |code: u32| PageFaultError::from_bits(code).rsvd();
    rsvd(code)
        || group.notes.iter().any(|note| match *note {
            Note::InjException { vector: Vector::PF, error_code, .. } => rsvd(error_code),
            Note::WalkerError { pferr } => rsvd(pferr),
            _ => false,
        })
}
