//! Virtualization of the local APIC: which accesses of the APIC-access page need no exit, and which exit how.
//!
//! See: SDM vol. 3C chapter 30 APIC Virtualization and Virtual Interrupts

use vmtape_abi::{BusOp, BusSpace, Host};
use vmtape_arch::sensitive::Sensitive;

/// Offsets of APIC registers.
pub mod reg {
    pub const ID: u32 = 0x20;
    pub const LVR: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SPIV: u32 = 0xf0;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR2: u32 = 0x310;
    pub const TMICT: u32 = 0x380;
    pub const TDCR: u32 = 0x3e0;
}

/// What silicon does with an access to the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Virtualized: no exit.
    Virtual,
    /// APIC-access exit before the access.
    Access,
    /// The write is done to the virtual-APIC page, then APIC-write exit.
    WriteTrap,
}

/// A read. Without APIC-register virtualization only the TPR (through the TPR shadow) is virtual.
/// See: SDM vol. 3C 30.4.2 Virtualizing Reads from the APIC-Access Page
pub fn read(insn: &Sensitive, apicv: bool) -> Outcome {
    if insn.size > 4 {
        return Outcome::Access;
    }
    match insn.number & 0xff0 {
        reg::TPR => Outcome::Virtual,
        _ if !apicv => Outcome::Access,
        reg::ID | reg::LVR | reg::EOI | reg::LDR | reg::DFR | reg::SPIV | 0x100..=0x280 => Outcome::Virtual,
        reg::ICR | reg::ICR2 | 0x320..=reg::TMICT | reg::TDCR => Outcome::Virtual,
        _ => Outcome::Access,
    }
}

/// A write. See: SDM vol. 3C 30.4.3 Virtualizing Writes to the APIC-Access Page
pub fn write(insn: &Sensitive, apicv: bool) -> Outcome {
    if insn.size > 4 {
        return Outcome::Access;
    }
    match insn.number & 0xff0 {
        reg::TPR => Outcome::Virtual,
        _ if !apicv => Outcome::Access,
        reg::EOI | reg::ICR2 => Outcome::Virtual,
        reg::ICR if is_self_ipi(insn.value as u32) => Outcome::Virtual,
        reg::ID | reg::LDR | reg::DFR | reg::SPIV | reg::ESR | reg::ICR | 0x320..=reg::TMICT | reg::TDCR => {
            Outcome::WriteTrap
        }
        _ => Outcome::Access,
    }
}

/// An ICR write that self-IPI virtualization takes: fixed, edge, physical, shorthand self, vector of at least 16.
/// See: SDM vol. 3C 30.1.5 Self-IPI Virtualization, 30.4.3.2 APIC-Write Emulation
fn is_self_ipi(icr: u32) -> bool {
    const MUST_BE_ZERO: u32 = 0xfff3_b700;
    const SHORTHAND_SELF: u32 = 0x4_0000;
    icr & MUST_BE_ZERO == 0 && icr & 0xc_0000 == SHORTHAND_SELF && icr & 0xf0 != 0
}

/// The vector that an EOI would end, if the vector's bit is set in the EOI-exit bitmap, which KVM makes from the I/O APIC.
/// See: SDM vol. 3C 30.1.4 EOI Virtualization; KVM x86.c vcpu_load_eoi_exitmap(), ioapic.c kvm_ioapic_scan_entry()
pub fn eoi_exit(vcpu: u32, host: &mut dyn Host) -> Option<u8> {
    let mut op = BusOp { space: BusSpace::EOI, size: 1, ..Default::default() };
    let claimed = host.bus(vcpu, &mut op);
    (claimed && op.data != 0).then_some(op.data as u8)
}
