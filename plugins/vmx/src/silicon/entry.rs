//! VM entry and VM exit: the checks, what silicon takes from the VMCS, and what it writes there.
//!
//! Manual: Intel SDM volume 3C, doc 325384-087, 27.2 Checks on VMX Controls and Host-State Area, 27.3 Checking and Loading
//! Guest State, chapter 28 VM Exits; 31.4 VM Instruction Error Numbers.

use super::{
    capabilities::Eptp,
    controls::Controls,
    vmcs::{CpuBased, EntryControls, PinBased, Secondary, Vmcs, VmcsField as F},
};
use bitfield_struct::bitfield;
use vmtape_arch::{
    PAGE_SIZE,
    event::EventKind,
    exit::{Exit, VmxReason},
    host::Silicon,
    open_enum,
    paging::bits,
    regs::{Cr0, Cr4, Efer, Rflags},
    vcpu::{Activity, Interruptibility, VcpuState},
};
use vmtape_kvm_core::msr::is_valid_pat;

open_enum! {
    /// VM-instruction error numbers.
    pub struct InstructionError(u32) {
        VMLAUNCH_NONCLEAR = 4 => "VMLAUNCH with non-clear VMCS",
        VMRESUME_NONLAUNCHED = 5 => "VMRESUME with non-launched VMCS",
        INVALID_CONTROL = 7 => "VM entry with invalid control field(s)",
    }
}

/// Why VM entry does not enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotEntered {
    /// VMfailValid.
    Instruction(InstructionError),
    /// VMfailValid with "invalid control field(s)"; silicon does not say which.
    Control(Control),
    /// VM exit with reason 80000021H; silicon does not say which.
    Guest(Guest),
}

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
    EventType,
    EventVector,
    EventErrorCode,
    EventLength,
}

/// Checks on the guest's registers and non-register state that can fail, in the manual's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    Cr0Fixed,
    PagingWithoutProtection,
    Cr4Fixed,
    LongModeWithoutPaging,
    PcidOutsideLongMode,
    Cr3Reserved,
    Dr7High,
    Pat,
    EferReserved,
    EferLma,
    Rip,
    RflagsReserved,
    RflagsVm,
    RflagsIf,
    Activity,
    ActivityWhileBlocking,
    BlockingReserved,
    BlockingByBoth,
    BlockingByStiWithoutIf,
    BlockingAtInjection,
    LinkPointer,
}

/// VM-entry interruption information. See: Table 25-17
#[bitfield(u32)]
struct EntryEvent {
    vector: u8,
    #[bits(3)]
    kind: u8,
    error_code: bool,
    #[bits(19)]
    reserved: u32,
    valid: bool,
}

const HIGH: u64 = bits(32, 63);
/// RFLAGS bits that are zero.
const RFLAGS_RESERVED: u64 = bits(22, 63) | 1 << 15 | 1 << 5 | 1 << 3;
/// Most CR3-target values.
const CR3_TARGETS: u64 = 4;
/// Longest instruction.
const LONGEST: u64 = 15;
/// Exceptions that push an error code: #DF, #TS, #NP, #SS, #GP, #PF, #AC.
const WITH_ERROR_CODE: u32 = 1 << 8 | bits(10, 14) as u32 | 1 << 17;

/// VMLAUNCH (`resume` false) or VMRESUME.
pub fn enter(vmcs: &mut Vmcs, resume: bool, silicon: &Silicon) -> Result<Controls, NotEntered> {
    let entered = check_launch(vmcs, resume)
        .and_then(|()| check_controls(vmcs, silicon).map_err(NotEntered::Control))
        .and_then(|()| check_guest(vmcs, silicon).map_err(NotEntered::Guest));
    match entered {
        Ok(()) => {}
        Err(NotEntered::Instruction(error)) => vmcs.write(F::VM_INSTRUCTION_ERROR, error.0),
        Err(NotEntered::Control(_)) => {
            vmcs.write(F::VM_INSTRUCTION_ERROR, InstructionError::INVALID_CONTROL.0);
        }
        Err(NotEntered::Guest(why)) => {
            vmcs.write(F::VM_EXIT_REASON, FAILED_ENTRY | VmxReason::INVALID_STATE.0);
            // See: 27.8 VM-Entry Failures During or After Loading Guest State
            let qualification = if why == Guest::LinkPointer { 4u32 } else { 0 };
            vmcs.write(F::EXIT_QUALIFICATION, qualification);
        }
    }
    entered?;
    vmcs.launched = true;
    Ok(Controls::load(vmcs))
}

/// Exit reason, bit 31: the VM entry failed.
const FAILED_ENTRY: u32 = 1 << 31;

fn check_launch(vmcs: &Vmcs, resume: bool) -> Result<(), NotEntered> {
    match (resume, vmcs.launched) {
        (false, true) => Err(NotEntered::Instruction(InstructionError::VMLAUNCH_NONCLEAR)),
        (true, false) => Err(NotEntered::Instruction(InstructionError::VMRESUME_NONLAUNCHED)),
        _ => Ok(()),
    }
}

/// See: 27.2.1 Checks on VMX Controls
fn check_controls(vmcs: &Vmcs, silicon: &Silicon) -> Result<(), Control> {
    let require = |legal: bool, otherwise: Control| if legal { Ok(()) } else { Err(otherwise) };
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
    check_event(vmcs)
}

/// See: 27.2.1.3 VM-Entry Control Fields
fn check_event(vmcs: &Vmcs) -> Result<(), Control> {
    let require = |legal: bool, otherwise: Control| if legal { Ok(()) } else { Err(otherwise) };
    let event = EntryEvent::from_bits(vmcs.read32(F::VM_ENTRY_INTR_INFO_FIELD));
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

/// See: 27.3.1 Checks on the Guest State Area
fn check_guest(vmcs: &Vmcs, silicon: &Silicon) -> Result<(), Guest> {
    let require = |legal: bool, otherwise: Guest| if legal { Ok(()) } else { Err(otherwise) };
    let secondary = Secondary::from_bits(vmcs.read32(F::SECONDARY_VM_EXEC_CONTROL));
    let entry = EntryControls::from_bits(vmcs.read32(F::VM_ENTRY_CONTROLS));
    let long = entry.ia32e_mode_guest();
    let cr0 = Cr0::from_bits(vmcs.read(F::GUEST_CR0));
    let cr4 = Cr4::from_bits(vmcs.read(F::GUEST_CR4));
    // 27.3.1.1: control registers, debug registers, and MSRs
    let paged = cr0.pe() && cr0.pg() || secondary.unrestricted_guest();
    require(cr0.ne() && paged && cr0.into_bits() & HIGH == 0, Guest::Cr0Fixed)?;
    require(cr0.pe() || !cr0.pg(), Guest::PagingWithoutProtection)?;
    require(cr4.vmxe() && cr4.into_bits() & HIGH == 0, Guest::Cr4Fixed)?;
    require(!long || cr0.pg() && cr4.pae(), Guest::LongModeWithoutPaging)?;
    require(long || !cr4.pcide(), Guest::PcidOutsideLongMode)?;
    let beyond = bits(u32::from(silicon.phys_bits), 63);
    require(vmcs.read(F::GUEST_CR3) & beyond == 0, Guest::Cr3Reserved)?;
    require(!entry.load_debug_controls() || vmcs.read(F::GUEST_DR7) & HIGH == 0, Guest::Dr7High)?;
    require(!entry.load_pat() || is_valid_pat(vmcs.read(F::GUEST_IA32_PAT)), Guest::Pat)?;
    if entry.load_efer() {
        let efer = Efer::from_bits(vmcs.read(F::GUEST_IA32_EFER));
        let defined = Efer::new().with_sce(true).with_lme(true).with_lma(true).with_nxe(true);
        require(efer.into_bits() & !defined.into_bits() == 0, Guest::EferReserved)?;
        let consistent = efer.lma() == long && (!cr0.pg() || efer.lma() == efer.lme());
        require(consistent, Guest::EferLma)?;
    }
    // 27.3.1.4: RIP and RFLAGS
    require(long || vmcs.read(F::GUEST_RIP) & HIGH == 0, Guest::Rip)?;
    check_non_register(vmcs, long, cr0)
}

/// See: 27.3.1.4 Checks on Guest RIP, RFLAGS, and SSP, 27.3.1.5 Checks on Guest Non-Register State
fn check_non_register(vmcs: &Vmcs, long: bool, cr0: Cr0) -> Result<(), Guest> {
    let require = |legal: bool, otherwise: Guest| if legal { Ok(()) } else { Err(otherwise) };
    let rflags = Rflags::from_bits(vmcs.read(F::GUEST_RFLAGS));
    let reserved = rflags.into_bits() & RFLAGS_RESERVED;
    require(reserved == 0 && rflags.always_one(), Guest::RflagsReserved)?;
    require(!rflags.vm() || !long && cr0.pe(), Guest::RflagsVm)?;
    let event = EntryEvent::from_bits(vmcs.read32(F::VM_ENTRY_INTR_INFO_FIELD));
    let injects = |kind: EventKind| event.valid() && EventKind(event.kind()) == kind;
    require(rflags.intr() || !injects(EventKind::EXTERNAL_INTERRUPT), Guest::RflagsIf)?;
    let activity = Activity(vmcs.read32(F::GUEST_ACTIVITY_STATE));
    require(activity.0 <= Activity::WAIT_FOR_SIPI.0, Guest::Activity)?;
    let blocking = vmcs.read32(F::GUEST_INTERRUPTIBILITY_INFO);
    let by = Interruptibility::from_bits(blocking);
    let shadow = by.sti() || by.mov_ss();
    require(activity == Activity::ACTIVE || !shadow, Guest::ActivityWhileBlocking)?;
    require(blocking >> 5 == 0, Guest::BlockingReserved)?;
    require(!(by.sti() && by.mov_ss()), Guest::BlockingByBoth)?;
    require(rflags.intr() || !by.sti(), Guest::BlockingByStiWithoutIf)?;
    let blocked = injects(EventKind::EXTERNAL_INTERRUPT) && shadow || injects(EventKind::NMI) && by.mov_ss();
    require(!blocked, Guest::BlockingAtInjection)?;
    require(vmcs.read(F::VMCS_LINK_POINTER) == u64::MAX, Guest::LinkPointer)
}

/// VM exit: the exit, and the registers as they are now. The exit is the boundary's: it may come from a tape.
pub fn exit(vmcs: &mut Vmcs, exit: &Exit, state: &VcpuState) {
    vmcs.write(F::VM_EXIT_REASON, exit.reason);
    vmcs.write(F::EXIT_QUALIFICATION, exit.info1);
    vmcs.write(F::GUEST_LINEAR_ADDRESS, exit.gva);
    vmcs.write(F::GUEST_PHYSICAL_ADDRESS, exit.gpa);
    vmcs.write(F::VM_EXIT_INTR_INFO, exit.intr_info);
    vmcs.write(F::VM_EXIT_INTR_ERROR_CODE, exit.error_code);
    vmcs.write(F::IDT_VECTORING_INFO_FIELD, exit.info2);
    vmcs.write(F::IDT_VECTORING_ERROR_CODE, exit.access.delivering.error_code);
    vmcs.write(F::VM_EXIT_INSTRUCTION_LEN, exit.insn.len);
    // See: 28.3.1 Saving Control Registers, Debug Registers, and MSRs; 28.2.5.1: the event's valid bit is cleared
    vmcs.write(F::VM_ENTRY_INTR_INFO_FIELD, 0u32);
    store(vmcs, state);
}

/// What a guest changes without an exit, and what each VM exit saves.
pub fn store(vmcs: &mut Vmcs, state: &VcpuState) {
    vmcs.write(F::GUEST_RIP, state.rip);
    vmcs.write(F::GUEST_RSP, state.gpr[vmtape_arch::vcpu::gpr::RSP]);
    vmcs.write(F::GUEST_RFLAGS, state.rflags);
    vmcs.write(F::GUEST_DR7, state.dr7);
    vmcs.write(F::GUEST_INTERRUPTIBILITY_INFO, state.interruptibility.into_bits());
    vmcs.write(F::GUEST_ACTIVITY_STATE, state.activity.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guest as Machine, silicon};
    use vmtape_arch::event::Event;

    /// The VMCS of a guest in long mode under EPT that has entered, ready for VMRESUME.
    fn legal() -> Vmcs {
        let machine = Machine::new(silicon(46), 46, &[]);
        machine.vm.vcpus[0].vmcs01.clone()
    }

    /// A VMCS with one change.
    fn with(edit: fn(&mut Vmcs)) -> (Result<(), NotEntered>, Vmcs) {
        let mut vmcs = legal();
        edit(&mut vmcs);
        (enter(&mut vmcs, true, &silicon(46)).map(drop), vmcs)
    }

    fn set(vmcs: &mut Vmcs, field: F, bits: u64) {
        vmcs.write(field, vmcs.read(field) | bits);
    }

    fn clear(vmcs: &mut Vmcs, field: F, bits: u64) {
        vmcs.write(field, vmcs.read(field) & !bits);
    }

    fn inject(vmcs: &mut Vmcs, kind: EventKind, vector: u8, has_error_code: bool) {
        let event = Event {
            valid: true.into(),
            kind,
            vector,
            has_error_code: has_error_code.into(),
            ..Default::default()
        };
        vmcs.write(F::VM_ENTRY_INTR_INFO_FIELD, event.vmx_info());
    }

    #[test]
    fn launch_states() {
        let (resumed, vmcs) = with(|v| v.launched = false);
        assert_eq!(resumed, Err(NotEntered::Instruction(InstructionError::VMRESUME_NONLAUNCHED)));
        assert_eq!(vmcs.read(F::VM_INSTRUCTION_ERROR), 5);
        let mut vmcs = legal();
        assert!(enter(&mut vmcs, false, &silicon(46)).is_err());
        assert_eq!(vmcs.read(F::VM_INSTRUCTION_ERROR), 4);
        vmcs.launched = false;
        assert!(enter(&mut vmcs, false, &silicon(46)).is_ok() && vmcs.launched);
    }

    #[test]
    fn each_illegal_control() {
        use EventKind as E;
        for (edit, expected) in [
            ((|v| v.write(F::CR3_TARGET_COUNT, 5u32)) as fn(&mut Vmcs), Control::Cr3TargetCount),
            (|v| set(v, F::MSR_BITMAP, 1 << 46), Control::MsrBitmap),
            (|v| set(v, F::MSR_BITMAP, 1), Control::MsrBitmap),
            (|v| clear(v, F::PIN_BASED_VM_EXEC_CONTROL, 1 << 3), Control::VirtualNmisWithoutNmiExiting),
            (
                |v| {
                    clear(v, F::PIN_BASED_VM_EXEC_CONTROL, 1 << 5);
                    set(v, F::CPU_BASED_VM_EXEC_CONTROL, 1 << 22);
                },
                Control::NmiWindowWithoutVirtualNmis,
            ),
            (|v| clear(v, F::CPU_BASED_VM_EXEC_CONTROL, 1 << 21), Control::ApicWithoutTprShadow),
            (|v| set(v, F::SECONDARY_VM_EXEC_CONTROL, 1 | 1 << 4), Control::ApicAccessesInX2apicMode),
            (|v| clear(v, F::PIN_BASED_VM_EXEC_CONTROL, 1), Control::InterruptDeliveryWithoutExiting),
            (|v| v.write(F::VIRTUAL_PROCESSOR_ID, 0u32), Control::VpidZero),
            (|v| set(v, F::EPT_POINTER, 1), Control::Eptp),
            (|v| set(v, F::EPT_POINTER, 1 << 7), Control::Eptp),
            (|v| set(v, F::EPT_POINTER, 1 << 46), Control::Eptp),
            (|v| clear(v, F::SECONDARY_VM_EXEC_CONTROL, 1 << 1), Control::PmlWithoutEpt),
            (|v| clear(v, F::SECONDARY_VM_EXEC_CONTROL, 1 << 1 | 1 << 17), Control::UnrestrictedWithoutEpt),
            (|v| inject(v, EventKind(1), 0, false), Control::EventType),
            (|v| inject(v, E::NMI, 3, false), Control::EventVector),
            (|v| inject(v, E::HARDWARE_EXCEPTION, 32, false), Control::EventVector),
            (|v| inject(v, E::HARDWARE_EXCEPTION, 14, false), Control::EventErrorCode),
            (|v| inject(v, E::HARDWARE_EXCEPTION, 6, true), Control::EventErrorCode),
            (
                |v| {
                    inject(v, E::HARDWARE_EXCEPTION, 14, true);
                    v.write(F::VM_ENTRY_EXCEPTION_ERROR_CODE, 1u32 << 16);
                },
                Control::EventErrorCode,
            ),
            (
                |v| {
                    inject(v, E::SOFTWARE_INTERRUPT, 0x80, false);
                    v.write(F::VM_ENTRY_INSTRUCTION_LEN, 16u32);
                },
                Control::EventLength,
            ),
        ] {
            let (ended, vmcs) = with(edit);
            assert_eq!(ended, Err(NotEntered::Control(expected)));
            assert_eq!(vmcs.read(F::VM_INSTRUCTION_ERROR), 7, "{expected:?}");
        }
    }

    #[test]
    fn each_illegal_guest_state() {
        use EventKind as E;
        const IF: u64 = 1 << 9;
        for (edit, expected) in [
            ((|v| clear(v, F::GUEST_CR0, 1 << 5)) as fn(&mut Vmcs), Guest::Cr0Fixed),
            (|v| clear(v, F::GUEST_CR0, 1), Guest::PagingWithoutProtection),
            (|v| clear(v, F::GUEST_CR4, 1 << 13), Guest::Cr4Fixed),
            (|v| clear(v, F::GUEST_CR4, 1 << 5), Guest::LongModeWithoutPaging),
            (
                |v| {
                    clear(v, F::VM_ENTRY_CONTROLS, 1 << 9);
                    set(v, F::GUEST_CR4, 1 << 17);
                },
                Guest::PcidOutsideLongMode,
            ),
            (|v| set(v, F::GUEST_CR3, 1 << 46), Guest::Cr3Reserved),
            (|v| set(v, F::GUEST_DR7, 1 << 32), Guest::Dr7High),
            (|v| v.write(F::GUEST_IA32_PAT, 2u32), Guest::Pat),
            (|v| set(v, F::GUEST_IA32_EFER, 1 << 12), Guest::EferReserved),
            (|v| clear(v, F::GUEST_IA32_EFER, 1 << 10), Guest::EferLma),
            (
                |v| {
                    clear(v, F::VM_ENTRY_CONTROLS, 1 << 9);
                    v.write(F::GUEST_IA32_EFER, 0u32);
                    v.write(F::GUEST_RIP, 1u64 << 32);
                },
                Guest::Rip,
            ),
            (|v| clear(v, F::GUEST_RFLAGS, 2), Guest::RflagsReserved),
            (|v| set(v, F::GUEST_RFLAGS, 1 << 22), Guest::RflagsReserved),
            (|v| set(v, F::GUEST_RFLAGS, 1 << 17), Guest::RflagsVm),
            (|v| inject(v, E::EXTERNAL_INTERRUPT, 0x30, false), Guest::RflagsIf),
            (|v| v.write(F::GUEST_ACTIVITY_STATE, 4u32), Guest::Activity),
            (
                |v| {
                    v.write(F::GUEST_ACTIVITY_STATE, 1u32);
                    v.write(F::GUEST_INTERRUPTIBILITY_INFO, 2u32);
                },
                Guest::ActivityWhileBlocking,
            ),
            (|v| v.write(F::GUEST_INTERRUPTIBILITY_INFO, 1u32 << 5), Guest::BlockingReserved),
            (|v| v.write(F::GUEST_INTERRUPTIBILITY_INFO, 3u32), Guest::BlockingByBoth),
            (|v| v.write(F::GUEST_INTERRUPTIBILITY_INFO, 1u32), Guest::BlockingByStiWithoutIf),
            (
                |v| {
                    set(v, F::GUEST_RFLAGS, IF);
                    inject(v, E::EXTERNAL_INTERRUPT, 0x30, false);
                    v.write(F::GUEST_INTERRUPTIBILITY_INFO, 2u32);
                },
                Guest::BlockingAtInjection,
            ),
            (|v| v.write(F::VMCS_LINK_POINTER, 0u32), Guest::LinkPointer),
        ] {
            let (ended, vmcs) = with(edit);
            assert_eq!(ended, Err(NotEntered::Guest(expected)));
            assert_eq!(vmcs.read(F::VM_EXIT_REASON), 0x8000_0021, "{expected:?}");
        }
    }

    /// What the checks must let through.
    #[test]
    fn legal_states() {
        use EventKind as E;
        for edit in [
            (|_| {}) as fn(&mut Vmcs),
            |v| inject(v, E::HARDWARE_EXCEPTION, 14, true),
            |v| inject(v, E::NMI, 2, false),
            // STI alone does not hold back an NMI.
            |v| {
                set(v, F::GUEST_RFLAGS, 1 << 9);
                v.write(F::GUEST_INTERRUPTIBILITY_INFO, 1u32);
                inject(v, E::NMI, 2, false);
            },
            // Real mode, unrestricted.
            |v| {
                clear(v, F::GUEST_CR0, 1 << 31 | 1);
                clear(v, F::VM_ENTRY_CONTROLS, 1 << 9);
                v.write(F::GUEST_IA32_EFER, 0u32);
                inject(v, E::HARDWARE_EXCEPTION, 13, false);
            },
        ] {
            assert_eq!(with(edit).0, Ok(()));
        }
    }
}
