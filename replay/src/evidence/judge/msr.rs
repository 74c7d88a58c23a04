//! Model-specific registers.
//!
//! See: SDM vol. 4 Table 2-2; APM vol. 2 appendix A

use super::Judge;
use crate::check::finding::{Finding, Severity, Subject};
use std::ops::RangeInclusive;
use vmtape_arch::msr::Msr;

const LISTED: &str = "KVM arch/x86/kvm/x86.c kvm_init_msr_lists(), KVM_GET_MSR_INDEX_LIST";
const REFUSED: &str = "MSRs that were refused where the trace was made";
const CHOSEN: &str = "MSRs whose value the host or the VMM chooses";
const UNLISTED: &str = "MSRs that no list of KVM has";

/// IA32_VMX_BASIC to IA32_VMX_VMFUNC.
const VMX_CAPABILITIES: RangeInclusive<u32> = 0x480..=0x491;
/// Registers of every KVM that its list leaves out, because a VMM saves them by other means.
/// See: KVM x86.c kvm_get_msr_common()
const EVERYWHERE: [Msr; 7] = [
    Msr::IA32_APIC_BASE,
    Msr::MTRRCAP,
    Msr::IA32_MCG_CAP,
    Msr::IA32_MCG_STATUS,
    Msr::IA32_PAT,
    Msr::MTRR_DEF_TYPE,
    Msr::EFER,
];
/// ... and ranges: IA32_MTRR_PHYSBASE0 to PHYSMASK7, IA32_MTRR_FIX64K_00000 to FIX4K_F8000, the banks of machine checks from
/// IA32_MC0_CTL on, and the x2APIC's.
const RANGES_EVERYWHERE: [RangeInclusive<u32>; 4] =
    [0x200..=0x20f, 0x250..=0x26f, 0x400..=0x47f, Msr::X2APIC_FIRST.0..=Msr::X2APIC_LAST.0];

impl Judge<'_> {
    pub(super) fn msr(&mut self, write: bool, index: u32, exception: bool) -> Result<(), &'static str> {
        match index {
            _ if exception => Err(REFUSED),
            _ if is_everywhere(index) || self.target.msrs.contains(&index) => Ok(()),
            _ if VMX_CAPABILITIES.contains(&index) || self.target.feature_msrs.contains(&index) => {
                Err(CHOSEN)
            }
            _ if self.target.known_msrs.contains(&index) => {
                let did = if write { "writes" } else { "reads" };
                let sentence = format!(
                    "the guest {did} MSR {index:#x}, which KVM does not have on {}",
                    self.target.name()
                );
                self.find(Finding::new(Severity::Breaks, Subject::Feature, sentence, LISTED));
                Ok(())
            }
            _ => Err(UNLISTED),
        }
    }
}

fn is_everywhere(index: u32) -> bool {
    EVERYWHERE.contains(&Msr(index)) || RANGES_EVERYWHERE.iter().any(|range| range.contains(&index))
}
