//! Checks on VMX controls.
//!
//! Manual: Intel SDM volume 3C, doc 325384-087, 27.2.1 Checks on VMX Controls.

use super::{event::EntryEvent, require};
use crate::silicon::{
    capabilities::Eptp,
    vmcs::{CpuBased, EntryControls, ExitControls, PinBased, Secondary, Vmcs, VmcsField as F},
};
use vmtape_arch::{PAGE_SIZE, event::EventKind, host::Silicon, paging::bits, regs::Cr0};

/// Checks on VMX controls that can fail, in the manual's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    Cr3TargetCount,
    MsrBitmap,
    VirtualNmisWithoutNmiExiting,
    NmiWindowWithoutVirtualNmis,
    ApicWithoutTprShadow,
    ApicAccessesInX2apicMode,
    InterruptDeliveryWithoutExiting,
    VpidZero,
    Eptp,
    PmlWithoutEpt,
    UnrestrictedWithoutEpt,
    /// A control that silicon has not: of performance counters or CET, say.
    ExitReserved,
    EntryReserved,
    EventType,
    EventVector,
    EventErrorCode,
    EventLength,
}

/// Most CR3-target values.
const CR3_TARGETS: u64 = 4;
/// Longest instruction.
const LONGEST: u64 = 15;
/// Exceptions that push an error code: #DF, #TS, #NP, #SS, #GP, #PF, #AC.
const WITH_ERROR_CODE: u32 = 1 << 8 | bits(10, 14) as u32 | 1 << 17;

/// See: 27.2.1 Checks on VMX Controls
pub fn check(vmcs: &Vmcs, silicon: &Silicon) -> Result<(), Control> {
    let pin = PinBased::from_bits(vmcs.read32(F::PIN_BASED_VM_EXEC_CONTROL));
    let cpu = CpuBased::from_bits(vmcs.read32(F::CPU_BASED_VM_EXEC_CONTROL));
    let secondary = Secondary::from_bits(vmcs.read32(F::SECONDARY_VM_EXEC_CONTROL));
    let is_page = |address: u64| address.is_multiple_of(PAGE_SIZE) && address >> silicon.phys_bits == 0;
    require(vmcs.read(F::CR3_TARGET_COUNT) <= CR3_TARGETS, Control::Cr3TargetCount)?;
    require(!cpu.msr_bitmaps() || is_page(vmcs.read(F::MSR_BITMAP)), Control::MsrBitmap)?;
    require(pin.nmi_exiting() || !pin.virtual_nmis(), Control::VirtualNmisWithoutNmiExiting)?;
    require(pin.virtual_nmis() || !cpu.nmi_window_exiting(), Control::NmiWindowWithoutVirtualNmis)?;
    let apic = secondary.x2apic_mode() || secondary.apic_register() || secondary.interrupt_delivery();
    require(cpu.tpr_shadow() || !apic, Control::ApicWithoutTprShadow)?;
    require(!(secondary.x2apic_mode() && secondary.apic_accesses()), Control::ApicAccessesInX2apicMode)?;
    require(
        !secondary.interrupt_delivery() || pin.external_interrupt_exiting(),
        Control::InterruptDeliveryWithoutExiting,
    )?;
    require(!secondary.vpid() || vmcs.read(F::VIRTUAL_PROCESSOR_ID) != 0, Control::VpidZero)?;
    let eptp = Eptp::from_bits(vmcs.read(F::EPT_POINTER));
    require(!secondary.ept() || eptp.is_legal(silicon), Control::Eptp)?;
    require(!secondary.pml() || secondary.ept(), Control::PmlWithoutEpt)?;
    require(!secondary.unrestricted_guest() || secondary.ept(), Control::UnrestrictedWithoutEpt)?;
    let (exit, entry) = (vmcs.read32(F::VM_EXIT_CONTROLS), vmcs.read32(F::VM_ENTRY_CONTROLS));
    require(exit & !ExitControls::LEGAL.into_bits() == 0, Control::ExitReserved)?;
    require(entry & !EntryControls::LEGAL.into_bits() == 0, Control::EntryReserved)?;
    check_event(vmcs)
}

/// See: 27.2.1.3 VM-Entry Control Fields
pub fn check_event(vmcs: &Vmcs) -> Result<(), Control> {
    let event = EntryEvent::of(vmcs);
    if !event.valid() {
        return Ok(());
    }
    let kind = EventKind(event.kind());
    let exception = kind == EventKind::HARDWARE_EXCEPTION;
    require(event.kind() != 1 && event.reserved() == 0, Control::EventType)?;
    require(kind != EventKind::NMI || event.vector() == 2, Control::EventVector)?;
    require(!exception || event.vector() < 32, Control::EventVector)?;
    let pushes = exception && WITH_ERROR_CODE >> event.vector() & 1 != 0;
    // An unrestricted guest without protection: no exception pushes an error code.
    let protected = Cr0::from_bits(vmcs.read(F::GUEST_CR0)).pe();
    require(event.error_code() == (pushes && protected), Control::EventErrorCode)?;
    let code = vmcs.read(F::VM_ENTRY_EXCEPTION_ERROR_CODE);
    require(!event.error_code() || code >> 16 == 0, Control::EventErrorCode)?;
    let soft = matches!(
        kind,
        EventKind::SOFTWARE_INTERRUPT
            | EventKind::PRIVILEGED_SOFTWARE_EXCEPTION
            | EventKind::SOFTWARE_EXCEPTION
    );
    require(!soft || vmcs.read(F::VM_ENTRY_INSTRUCTION_LEN) <= LONGEST, Control::EventLength)
}
