//! The intercepts in a VMCB. KVM writes them, silicon reads them.
//!
//! See: APM 15.9 Instruction Intercepts, 15.11 MSR Intercepts, 15.12 Exception Intercepts

use serde::{Deserialize, Serialize};
use vmtape_arch::{exception::Vector, msr::Msr, regs::Cr0, sensitive::SensitiveKind, vcpu::Intercepts};
use vmtape_kvm_core::kvm::intercepts;

/// The fields of the VMCB that decide exits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vmcb {
    pub npt: bool,
    /// CR0 reads and writes: while the CR0 that silicon runs with is not the guest's.
    pub cr0: bool,
    pub exceptions: u32,
    pub debug_registers: bool,
    pub invpcid: bool,
    pub rdtscp: bool,
    /// A dummy virtual interrupt that exits once interrupts are enabled.
    pub vintr: bool,
    pub nmi_window: bool,
    /// An NMI is in progress: its IRET exits.
    pub iret: bool,
    /// The MSR permission map where KVM changes it.
    pub msr: MsrMap,
}

/// Which MSRs KVM has let through so far, beyond those that it always does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrMap {
    pub spec_ctrl: bool,
    pub pred_cmd: bool,
    pub flush_cmd: bool,
    /// SYSENTER_EIP and _ESP: not while the guest thinks it is an Intel CPU.
    pub sysenter: bool,
}

/// The low half of `Intercepts::cr`: writes; the high half: reads.
const fn cr_bit(number: u32, read: bool) -> u32 {
    1 << (number + if read { 16 } else { 0 })
}

impl Vmcb {
    /// Whether RDMSR or WRMSR exits. See: KVM svm/svm.c direct_access_msrs
    pub fn msr_exits(&self, index: u32, write: bool) -> bool {
        let direct = match Msr(index) {
            Msr::STAR | Msr::LSTAR | Msr::CSTAR | Msr::SYSCALL_MASK => true,
            Msr::FS_BASE | Msr::GS_BASE | Msr::KERNEL_GS_BASE | Msr::IA32_SYSENTER_CS => true,
            Msr::IA32_SYSENTER_EIP | Msr::IA32_SYSENTER_ESP => self.msr.sysenter,
            Msr::IA32_SPEC_CTRL => self.msr.spec_ctrl,
            Msr::IA32_PRED_CMD => write && self.msr.pred_cmd,
            Msr::IA32_FLUSH_CMD => write && self.msr.flush_cmd,
            _ => false,
        };
        !direct
    }

    /// Whether a write of CR0 exits, and if so by the selective intercept alone.
    /// See: APM 15.9 Instruction Intercepts, CR0 write and selective CR0 write
    pub fn cr0_write_exits(&self, old: u64, new: u64) -> Option<Cr0Exit> {
        let (old, new) = (Cr0::from_bits(old), Cr0::from_bits(new));
        if self.cr0 {
            return Some(Cr0Exit::Write);
        }
        // Changes of TS and MP alone are free.
        let changed = old != new.with_ts(old.ts()).with_mp(old.mp());
        changed.then_some(Cr0Exit::Selective)
    }

    /// Whether an exception exits.
    pub fn exception_exits(&self, vector: Vector) -> bool {
        self.exceptions >> (vector.0 & 31) & 1 != 0
    }

    /// What crosses the boundary under these intercepts. See: KVM svm/svm.c init_vmcb()
    pub fn intercepts(&self) -> Intercepts {
        use SensitiveKind as K;
        let mut intercepts = intercepts(self.exceptions);
        for kind in [K::VMMCALL, K::SVM, K::RDPRU, K::RSM] {
            intercepts.set(kind, true);
        }
        let shadow = !self.npt;
        intercepts.set(K::CR_READ, shadow || self.cr0);
        intercepts.set(K::SMSW, self.cr0);
        intercepts.set(K::CLTS, self.cr0);
        intercepts.set(K::INVLPG, shadow);
        intercepts.set(K::INVPCID, self.invpcid);
        intercepts.set(K::RDTSCP, self.rdtscp);
        intercepts.set(K::DR_WRITE, self.debug_registers);
        intercepts.set(K::DR_READ, self.debug_registers);
        intercepts.set(K::INTERRUPT_WINDOW, self.vintr);
        intercepts.set(K::NMI_WINDOW, self.nmi_window);
        intercepts.set(K::IRET, self.iret);
        intercepts.cr = cr_bit(0, false) | cr_bit(4, false);
        if self.cr0 {
            intercepts.cr |= cr_bit(0, true);
        }
        if shadow {
            intercepts.cr |= cr_bit(3, false) | cr_bit(3, true) | cr_bit(4, true);
        }
        intercepts
    }
}

/// Which intercept a CR0 write meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cr0Exit {
    Write,
    Selective,
}
