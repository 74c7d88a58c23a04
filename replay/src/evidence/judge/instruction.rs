//! Exits for instructions, and for what else is no fault.

use super::{Answer, Judge, name};
use crate::exempt;
use vmtape_arch::{
    exit::{Isa, SvmExitCode, VmxReason},
    host::Vendor,
};
use vmtape_traces::ExitGroup;

const INSTRUCTIONS: &str = "instructions in which a host's widths, levels and features have no part";
const PORTS: &str = "port I/O, which the VMM answers";
const NO_EVENT: &str = "without the event that tells what it is about";

impl Judge<'_> {
    /// An exit for an instruction, or for something else that is no fault. `judged`: its events tell what it is about.
    pub(super) fn instruction(&self, group: &ExitGroup, judged: bool) -> Answer {
        let exit = &group.exit.exit;
        let told = || match judged {
            true => Answer::Alike,
            false => Answer::Open(format!("{} {NO_EVENT}", name(group))),
        };
        let virtual_apic = || match self.target.passport.silicon.apicv.is_set() {
            true => Answer::Alike,
            false => Answer::Otherwise {
                here: name(group),
                there: if self.is_intel() { "EPT_MISCONFIG" } else { "npf" }.to_owned(),
            },
        };
        match exit.isa {
            Isa::VMX => match VmxReason(exit.reason) {
                VmxReason::CPUID | VmxReason::MSR_READ | VmxReason::MSR_WRITE | VmxReason::VMCALL => told(),
                VmxReason::CR_ACCESS => told(),
                VmxReason::IO_INSTRUCTION => Answer::Exempt(PORTS),
                VmxReason::HLT
                | VmxReason::PAUSE_INSTRUCTION
                | VmxReason::INVLPG
                | VmxReason::INVD
                | VmxReason::WBINVD
                | VmxReason::DR_ACCESS
                | VmxReason::MONITOR_TRAP_FLAG => Answer::Exempt(INSTRUCTIONS),
                VmxReason::RDTSC | VmxReason::RDTSCP => Answer::Exempt(exempt::TIME_VALUES.name),
                VmxReason::INTERRUPT_WINDOW | VmxReason::NMI_WINDOW | VmxReason::PML_FULL => {
                    Answer::Exempt(exempt::HOST_SCHEDULING.name)
                }
                VmxReason::APIC_ACCESS | VmxReason::APIC_WRITE | VmxReason::EOI_INDUCED => virtual_apic(),
                VmxReason::TPR_BELOW_THRESHOLD => virtual_apic(),
                _ => open(group, judged),
            },
            Isa::SVM => match SvmExitCode(exit.reason) {
                SvmExitCode::CPUID | SvmExitCode::MSR | SvmExitCode::VMMCALL => told(),
                SvmExitCode::IOIO => Answer::Exempt(PORTS),
                SvmExitCode::HLT
                | SvmExitCode::PAUSE
                | SvmExitCode::INVLPG
                | SvmExitCode::INVD
                | SvmExitCode::WBINVD
                | SvmExitCode::CR0_SEL_WRITE
                | SvmExitCode::IRET => Answer::Exempt(INSTRUCTIONS),
                code if is_register(code, SvmExitCode::READ_DR0) => Answer::Exempt(INSTRUCTIONS),
                SvmExitCode::RDTSC | SvmExitCode::RDTSCP => Answer::Exempt(exempt::TIME_VALUES.name),
                SvmExitCode::VINTR => Answer::Exempt(exempt::HOST_SCHEDULING.name),
                code if is_register(code, SvmExitCode::READ_CR0) => told(),
                _ => open(group, judged),
            },
            _ => open(group, judged),
        }
    }

    fn is_intel(&self) -> bool {
        self.target.passport.silicon.vendor == Vendor::INTEL
    }
}

/// Whether a code is of the sixteen reads and sixteen writes of registers that begin with this one.
/// See: APM vol. 2 appendix C
fn is_register(code: SvmExitCode, first: SvmExitCode) -> bool {
    (first.0..first.0 + 32).contains(&code.0)
}

fn open(group: &ExitGroup, judged: bool) -> Answer {
    match judged {
        true => Answer::Alike,
        false => Answer::Open(format!("{}: the guest's instruction and registers are not told", name(group))),
    }
}
