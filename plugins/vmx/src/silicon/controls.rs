//! The VM-execution controls as silicon loaded them from the VMCS, and what they intercept.
//!
//! See: SDM vol. 3C 25.6 VM-Execution Control Fields

use super::{
    apic::reg,
    vmcs::{Vmcs, VmcsField as F},
};
use serde::{Deserialize, Serialize};
use vmtape_arch::{
    exception::Vector,
    msr::Msr,
    regs::{Cr0, Cr4},
    sensitive::{Sensitive, SensitiveKind},
    vcpu::Intercepts,
};
use vmtape_kvm_core::kvm::intercepts;

/// How the guest reaches its local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApicMode {
    /// Neither control is set: accesses are ordinary memory.
    #[default]
    None,
    /// "Virtualize APIC accesses".
    Access,
    /// "Virtualize x2APIC mode".
    X2Apic,
}

/// The fields of the VMCS that decide exits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controls {
    /// CR0 and CR4 guest/host masks: a set bit belongs to the host.
    pub cr0_mask: u64,
    pub cr4_mask: u64,
    pub exceptions: u32,
    pub pfec_mask: u32,
    pub pfec_match: u32,
    /// CR3-load and CR3-store exiting, and INVLPG exiting: without EPT.
    pub cr3_exiting: bool,
    pub mov_dr_exiting: bool,
    pub rdrand_exiting: bool,
    pub rdseed_exiting: bool,
    pub interrupt_window: bool,
    pub nmi_window: bool,
    pub apic: ApicMode,
    /// APIC-register virtualization and virtual-interrupt delivery.
    pub apicv: bool,
}

/// See: SDM vol. 3A Table 12-6. Local APIC Register Address Map Supported by x2APIC
const X2APIC_EOI: Msr = Msr(0x80b);
const X2APIC_SELF_IPI: Msr = Msr(0x83f);

/// x2APIC registers whose reads need no exit: those that `kvm_lapic_readable_reg_mask` names, but the current timer count.
/// See: KVM vmx/vmx.c vmx_update_msr_bitmap_x2apic()
fn is_virtual_x2apic_read(index: u32) -> bool {
    matches!(index & 0x3f, 0x02 | 0x03 | 0x08 | 0x0a | 0x0d | 0x0f | 0x10..=0x28 | 0x2f | 0x30 | 0x32..=0x38 | 0x3e)
}

impl Controls {
    /// What VM entry loads.
    pub fn load(vmcs: &Vmcs) -> Self {
        let (cpu, secondary) = (vmcs.cpu_based(), vmcs.secondary());
        Self {
            cr0_mask: vmcs.read(F::CR0_GUEST_HOST_MASK),
            cr4_mask: vmcs.read(F::CR4_GUEST_HOST_MASK),
            exceptions: vmcs.read32(F::EXCEPTION_BITMAP),
            pfec_mask: vmcs.read32(F::PAGE_FAULT_ERROR_CODE_MASK),
            pfec_match: vmcs.read32(F::PAGE_FAULT_ERROR_CODE_MATCH),
            cr3_exiting: cpu.cr3_load_exiting(),
            mov_dr_exiting: cpu.mov_dr_exiting(),
            rdrand_exiting: secondary.rdrand_exiting(),
            rdseed_exiting: secondary.rdseed_exiting(),
            interrupt_window: cpu.interrupt_window_exiting(),
            nmi_window: cpu.nmi_window_exiting(),
            apic: match (secondary.x2apic_mode(), secondary.apic_accesses()) {
                (true, _) => ApicMode::X2Apic,
                (false, true) => ApicMode::Access,
                (false, false) => ApicMode::None,
            },
            apicv: secondary.interrupt_delivery(),
        }
    }

    /// Whether RDMSR exits, but of IA32_SPEC_CTRL, which is let through once it is used. See: KVM vmx/vmx.c vmx_vcpu_create(), vmx_update_msr_bitmap_x2apic()
    pub fn rdmsr_exits(&self, index: u32) -> bool {
        match Msr(index) {
            Msr::IA32_TSC | Msr::FS_BASE | Msr::GS_BASE | Msr::KERNEL_GS_BASE => false,
            Msr::IA32_SYSENTER_CS | Msr::IA32_SYSENTER_ESP | Msr::IA32_SYSENTER_EIP => false,
            Msr(0x808) => self.apic != ApicMode::X2Apic,
            Msr(0x800..=0x83f) => {
                self.apic != ApicMode::X2Apic || !self.apicv || !is_virtual_x2apic_read(index)
            }
            _ => true,
        }
    }

    /// Whether WRMSR exits.
    pub fn wrmsr_exits(&self, index: u32) -> bool {
        match Msr(index) {
            Msr::FS_BASE | Msr::GS_BASE | Msr::KERNEL_GS_BASE => false,
            Msr::IA32_SYSENTER_CS | Msr::IA32_SYSENTER_ESP | Msr::IA32_SYSENTER_EIP => false,
            Msr(0x808) => self.apic != ApicMode::X2Apic,
            X2APIC_EOI | X2APIC_SELF_IPI => self.apic != ApicMode::X2Apic || !self.apicv,
            _ => true,
        }
    }

    /// Whether the instruction is an EOI that virtual-interrupt delivery does itself.
    /// See: SDM vol. 3C 30.4.3.2 APIC-Write Emulation, 30.5 Virtualizing MSR-Based APIC Accesses
    pub fn virtualizes_eoi(&self, insn: &Sensitive) -> bool {
        self.apicv
            && match insn.kind {
                SensitiveKind::APIC_WRITE => insn.size <= 4 && insn.number & 0xff0 == reg::EOI,
                SensitiveKind::WRMSR => self.apic == ApicMode::X2Apic && Msr(insn.number) == X2APIC_EOI,
                _ => false,
            }
    }

    /// Whether MOV to CR0 or CR4 exits: a bit of the host's would differ from the read shadow, which is the guest's value.
    /// See: SDM vol. 3C 26.1.3 Instructions That Cause VM Exits Conditionally
    pub fn cr_write_exits(&self, number: u32, old: u64, new: u64) -> bool {
        match number {
            0 => (old ^ new) & self.cr0_mask != 0,
            4 => (old ^ new) & self.cr4_mask != 0,
            3 => self.cr3_exiting,
            _ => false,
        }
    }

    /// Whether LMSW exits: PE only if it would be set.
    pub fn lmsw_exits(&self, cr0: u64, operand: u64) -> bool {
        let shadow = Cr0::from_bits(cr0);
        let source = Cr0::from_bits(operand);
        let host = Cr0::from_bits(self.cr0_mask);
        host.pe() && source.pe() && !shadow.pe()
            || host.mp() && source.mp() != shadow.mp()
            || host.em() && source.em() != shadow.em()
            || host.ts() && source.ts() != shadow.ts()
    }

    /// Whether an exception exits. See: SDM vol. 3C 26.2 Other Causes of VM Exits, Exceptions
    pub fn exception_exits(&self, vector: Vector, error_code: u32) -> bool {
        let bit = self.exceptions >> (vector.0 & 31) & 1 != 0;
        if vector == Vector::PF {
            let matches = error_code & self.pfec_mask == self.pfec_match;
            return bit == matches;
        }
        bit
    }

    /// What crosses the boundary under these controls.
    pub fn intercepts(&self) -> Intercepts {
        use SensitiveKind as K;
        // A mask makes some page faults exit that the bitmap does not ask for.
        let masked = if self.pfec_mask == 0 { 0 } else { 1 << Vector::PF.0 };
        let mut intercepts = intercepts(self.exceptions | masked);
        for kind in [K::VMCALL, K::VMX] {
            intercepts.set(kind, true);
        }
        intercepts.set(K::CR_READ, self.cr3_exiting);
        intercepts.set(K::INVLPG, self.cr3_exiting);
        intercepts.set(K::INVPCID, self.cr3_exiting);
        intercepts.set(K::DR_WRITE, self.mov_dr_exiting);
        intercepts.set(K::DR_READ, self.mov_dr_exiting);
        intercepts.set(K::RDRAND, self.rdrand_exiting);
        intercepts.set(K::RDSEED, self.rdseed_exiting);
        intercepts.set(K::INTERRUPT_WINDOW, self.interrupt_window);
        intercepts.set(K::NMI_WINDOW, self.nmi_window);
        let page = self.apic == ApicMode::Access;
        intercepts.set(K::APIC_READ, page);
        intercepts.set(K::APIC_WRITE, page);
        let cr3 = if self.cr3_exiting { 1 << 3 } else { 0 };
        let writes = 1 | 1 << 4 | cr3;
        intercepts.cr = writes | cr3 << 16;
        intercepts.virtual_interrupts = (self.apicv && self.apic != ApicMode::None).into();
        intercepts
    }
}

/// CR0 bits that KVM lets a guest own. WP matters to shadow paging. See: KVM vmx/vmx.c vmx_l1_guest_owned_cr0_bits()
pub fn cr0_guest_owned(ept: bool) -> u64 {
    Cr0::new().with_ts(true).with_wp(ept).into_bits()
}

/// CR4 bits that KVM lets a guest own. See: KVM kvm_cache_regs.h KVM_POSSIBLE_CR4_GUEST_BITS, vmx/vmx.c
/// set_cr4_guest_host_mask()
pub fn cr4_guest_owned(ept: bool, reserved: u64) -> u64 {
    let possible =
        Cr4::new().with_pvi(true).with_de(true).with_pce(true).with_osfxsr(true).with_osxmmexcpt(true);
    let possible = possible.with_pge(ept).with_tsd(true).with_fsgsbase(true);
    possible.into_bits() & !reserved
}
