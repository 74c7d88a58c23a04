//! Every check fails for a VMCS that violates it and no other before it.

use super::{segments::SegmentCheck as S, *};
use crate::testing::{Guest as Machine, silicon};
use vmtape_abi::Backend;
use vmtape_arch::{
    event::{Event, EventKind},
    exit::{Resume, ResumeKind},
    regs::{Cr0, Efer},
    vcpu::seg,
};

/// The VMCS of a guest in long mode under EPT that has entered, ready for VMRESUME.
fn legal_vmcs() -> Vmcs {
    let machine = Machine::new(silicon(46), 46, &[]);
    machine.vm.vcpus[0].vmcs01.clone()
}

/// A VMCS with one change since it was examined, for which it does not matter that it was.
fn with(edit: fn(&mut Vmcs)) -> (Result<(), NotEntered>, Vmcs) {
    let mut vmcs = legal_vmcs();
    assert!(vmcs.examined);
    edit(&mut vmcs);
    let mut anew = vmcs.clone();
    anew.examined = false;
    let entered = [&mut vmcs, &mut anew].map(|vmcs| enter(vmcs, true, &silicon(46)).map(drop));
    assert_eq!(entered[0], entered[1]);
    (entered[0], vmcs)
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
    let mut vmcs = legal_vmcs();
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
        // "Load IA32_PERF_GLOBAL_CTRL", "load CET state".
        (|v| set(v, F::VM_EXIT_CONTROLS, 1 << 12), Control::ExitReserved),
        (|v| set(v, F::VM_EXIT_CONTROLS, 1 << 28), Control::ExitReserved),
        (|v| set(v, F::VM_ENTRY_CONTROLS, 1 << 13), Control::EntryReserved),
        (|v| set(v, F::VM_ENTRY_CONTROLS, 1 << 20), Control::EntryReserved),
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
    const TF: u64 = 1 << 8;
    const BS: u64 = 1 << 14;
    for (edit, expected) in [
        ((|v| clear(v, F::GUEST_CR0, 1 << 5)) as fn(&mut Vmcs), Guest::Cr0Fixed),
        (|v| clear(v, F::GUEST_CR0, 1), Guest::PagingWithoutProtection),
        (|v| clear(v, F::GUEST_CR4, 1 << 13), Guest::Cr4Fixed),
        (
            |v| {
                clear(v, F::GUEST_CR0, 1 << 16);
                set(v, F::GUEST_CR4, 1 << 23);
            },
            Guest::CetWithoutWriteProtection,
        ),
        (|v| clear(v, F::GUEST_CR4, 1 << 5), Guest::LongModeWithoutPaging),
        (
            |v| {
                clear(v, F::VM_ENTRY_CONTROLS, 1 << 9);
                set(v, F::GUEST_CR4, 1 << 17);
            },
            Guest::PcidOutsideLongMode,
        ),
        (|v| set(v, F::GUEST_CR3, 1 << 46), Guest::Cr3Reserved),
        (|v| set(v, F::GUEST_IA32_DEBUGCTL, 1 << 3), Guest::DebugCtl),
        (|v| set(v, F::GUEST_IA32_DEBUGCTL, 1 << 16), Guest::DebugCtl),
        (|v| set(v, F::GUEST_DR7, 1 << 32), Guest::Dr7High),
        (|v| v.write(F::GUEST_SYSENTER_ESP, 1u64 << 47), Guest::SysenterEsp),
        (|v| v.write(F::GUEST_SYSENTER_EIP, 1u64 << 47), Guest::SysenterEip),
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
        (
            |v| {
                v8086(v);
                clear(v, F::GUEST_CR0, 1 << 31 | 1);
            },
            Guest::RflagsVm,
        ),
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
        (|v| set(v, F::GUEST_PENDING_DBG_EXCEPTIONS, 1 << 4), Guest::PendingDebugReserved),
        (|v| set(v, F::GUEST_PENDING_DBG_EXCEPTIONS, 1 << 13), Guest::PendingDebugReserved),
        (|v| set(v, F::GUEST_PENDING_DBG_EXCEPTIONS, 1 << 16), Guest::PendingDebugReserved),
        (
            |v| {
                set(v, F::GUEST_RFLAGS, TF);
                v.write(F::GUEST_INTERRUPTIBILITY_INFO, 2u32);
            },
            Guest::PendingDebugSingleStep,
        ),
        (
            |v| {
                set(v, F::GUEST_RFLAGS, IF);
                v.write(F::GUEST_INTERRUPTIBILITY_INFO, 1u32);
                v.write(F::GUEST_PENDING_DBG_EXCEPTIONS, BS);
            },
            Guest::PendingDebugSingleStep,
        ),
        (
            |v| {
                set(v, F::GUEST_RFLAGS, TF);
                v.write(F::GUEST_ACTIVITY_STATE, 1u32);
            },
            Guest::PendingDebugSingleStep,
        ),
        // BTF: steps from branch to branch.
        (
            |v| {
                set(v, F::GUEST_RFLAGS, TF);
                v.write(F::GUEST_IA32_DEBUGCTL, 2u32);
                v.write(F::GUEST_INTERRUPTIBILITY_INFO, 2u32);
                v.write(F::GUEST_PENDING_DBG_EXCEPTIONS, BS);
            },
            Guest::PendingDebugSingleStep,
        ),
        (|v| v.write(F::VMCS_LINK_POINTER, 0u32), Guest::LinkPointer),
        (|v| v.write(F::GUEST_GDTR_BASE, 1u64 << 47), Guest::GdtrBase),
        (|v| v.write(F::GUEST_GDTR_LIMIT, 1u32 << 16), Guest::GdtrLimit),
        (|v| v.write(F::GUEST_IDTR_BASE, 1u64 << 47), Guest::IdtrBase),
        (|v| v.write(F::GUEST_IDTR_LIMIT, 1u32 << 16), Guest::IdtrLimit),
        (
            |v| {
                rights(v, seg::CS, |r| r.with_l(true));
                v.write(F::GUEST_RIP, 1u64 << 48);
            },
            Guest::Rip,
        ),
        (
            |v| {
                v.write(F::GUEST_ACTIVITY_STATE, 1u32);
                [seg::CS, seg::SS].iter().for_each(|n| rights(v, *n, |r| r.with_dpl(3)));
            },
            Guest::HaltedInUserMode,
        ),
    ] {
        let (ended, vmcs) = with(edit);
        assert_eq!(ended, Err(NotEntered::Guest(expected)));
        assert_eq!(vmcs.read(F::VM_EXIT_REASON), 0x8000_0021, "{expected:?}");
    }
}

/// Gives a segment register other access rights.
fn rights(vmcs: &mut Vmcs, register: usize, edit: fn(SegmentRights) -> SegmentRights) {
    let rights = edit(SegmentRights::of(vmcs, register));
    vmcs.write(F::GUEST_ES_AR_BYTES.of_segment(register), rights.into_bits());
}

fn segment(vmcs: &mut Vmcs, field: F, register: usize, value: u64) {
    vmcs.write(field.of_segment(register), value);
}

/// A guest in virtual-8086 mode.
fn v8086(vmcs: &mut Vmcs) {
    clear(vmcs, F::VM_ENTRY_CONTROLS, 1 << 9);
    clear(vmcs, F::GUEST_CR4, 1 << 5);
    vmcs.write(F::GUEST_IA32_EFER, 0u32);
    set(vmcs, F::GUEST_RFLAGS, 1 << 17);
    for register in seg::ES..=seg::GS {
        segment(vmcs, F::GUEST_ES_SELECTOR, register, 0x1000);
        segment(vmcs, F::GUEST_ES_BASE, register, 0x1_0000);
        segment(vmcs, F::GUEST_ES_LIMIT, register, 0xffff);
        segment(vmcs, F::GUEST_ES_AR_BYTES, register, 0xf3);
    }
}

/// Takes unrestricted guests away.
fn restricted(vmcs: &mut Vmcs) {
    clear(vmcs, F::SECONDARY_VM_EXEC_CONTROL, 1 << 7);
}

type Edit = fn(&mut Vmcs);

#[test]
fn each_illegal_segment() {
    for (edit, register, expected) in [
        ((|v| segment(v, F::GUEST_ES_SELECTOR, seg::TR, 4)) as Edit, seg::TR, S::TableIndicator),
        (|v| segment(v, F::GUEST_ES_SELECTOR, seg::LDTR, 4), seg::LDTR, S::TableIndicator),
        (
            |v| {
                restricted(v);
                segment(v, F::GUEST_ES_SELECTOR, seg::SS, 3);
            },
            seg::SS,
            S::StackRpl,
        ),
        (
            |v| {
                v8086(v);
                segment(v, F::GUEST_ES_BASE, seg::DS, 0x1_0010);
            },
            seg::DS,
            S::BaseOfSelector,
        ),
        (|v| segment(v, F::GUEST_ES_BASE, seg::TR, 1 << 47), seg::TR, S::BaseCanonical),
        (|v| segment(v, F::GUEST_ES_BASE, seg::FS, 1 << 47), seg::FS, S::BaseCanonical),
        (|v| segment(v, F::GUEST_ES_BASE, seg::GS, 1 << 47), seg::GS, S::BaseCanonical),
        (|v| segment(v, F::GUEST_ES_BASE, seg::LDTR, 1 << 47), seg::LDTR, S::BaseCanonical),
        (|v| segment(v, F::GUEST_ES_BASE, seg::CS, 1 << 32), seg::CS, S::BaseHigh),
        (|v| segment(v, F::GUEST_ES_BASE, seg::ES, 1 << 32), seg::ES, S::BaseHigh),
        (
            |v| {
                v8086(v);
                segment(v, F::GUEST_ES_LIMIT, seg::SS, 0xf_ffff);
            },
            seg::SS,
            S::Limit64K,
        ),
        (
            |v| {
                v8086(v);
                rights(v, seg::GS, |r| r.with_dpl(0));
            },
            seg::GS,
            S::Rights8086,
        ),
        (|v| rights(v, seg::CS, |r| r.with_typ(0xa)), seg::CS, S::Type),
        (|v| rights(v, seg::CS, |r| r.with_typ(7)), seg::CS, S::Type),
        (
            |v| {
                restricted(v);
                rights(v, seg::CS, |r| r.with_typ(3));
            },
            seg::CS,
            S::Type,
        ),
        (|v| rights(v, seg::SS, |r| r.with_typ(1)), seg::SS, S::Type),
        (|v| rights(v, seg::SS, |r| r.with_typ(0xb)), seg::SS, S::Type),
        (|v| rights(v, seg::DS, |r| r.with_typ(2)), seg::DS, S::Type),
        (|v| rights(v, seg::FS, |r| r.with_typ(9)), seg::FS, S::Type),
        (|v| rights(v, seg::CS, |r| r.with_s(false)), seg::CS, S::System),
        (|v| rights(v, seg::DS, |r| r.with_s(false)), seg::DS, S::System),
        (|v| rights(v, seg::CS, |r| r.with_typ(3).with_dpl(1)), seg::CS, S::Dpl),
        (|v| rights(v, seg::CS, |r| r.with_typ(0xb).with_dpl(1)), seg::CS, S::Dpl),
        (|v| rights(v, seg::CS, |r| r.with_typ(0xf).with_dpl(1)), seg::CS, S::Dpl),
        (
            |v| {
                clear(v, F::GUEST_CR0, 1 << 31 | 1);
                clear(v, F::VM_ENTRY_CONTROLS, 1 << 9);
                v.write(F::GUEST_IA32_EFER, 0u32);
                [seg::CS, seg::SS].iter().for_each(|n| rights(v, *n, |r| r.with_dpl(1)));
            },
            seg::SS,
            S::Dpl,
        ),
        (
            |v| {
                restricted(v);
                segment(v, F::GUEST_ES_SELECTOR, seg::ES, 3);
            },
            seg::ES,
            S::Dpl,
        ),
        (|v| rights(v, seg::CS, |r| r.with_present(false)), seg::CS, S::NotPresent),
        (|v| rights(v, seg::GS, |r| r.with_present(false)), seg::GS, S::NotPresent),
        (|v| set(v, F::GUEST_ES_AR_BYTES, 1 << 8), seg::ES, S::Reserved),
        (|v| set(v, F::GUEST_CS_AR_BYTES, 1 << 17), seg::CS, S::Reserved),
        (|v| rights(v, seg::CS, |r| r.with_l(true).with_db(true)), seg::CS, S::DefaultSize),
        (|v| segment(v, F::GUEST_ES_LIMIT, seg::DS, 1 << 20), seg::DS, S::Granularity),
        (
            |v| {
                segment(v, F::GUEST_ES_LIMIT, seg::DS, 0x1000);
                rights(v, seg::DS, |r| r.with_g(true));
            },
            seg::DS,
            S::Granularity,
        ),
        (|v| rights(v, seg::TR, |r| r.with_typ(3)), seg::TR, S::Type),
        (|v| rights(v, seg::TR, |r| r.with_typ(9)), seg::TR, S::Type),
        (|v| rights(v, seg::TR, |r| r.with_s(true)), seg::TR, S::System),
        (|v| rights(v, seg::TR, |r| r.with_present(false)), seg::TR, S::NotPresent),
        (|v| set(v, F::GUEST_TR_AR_BYTES, 1 << 8), seg::TR, S::Reserved),
        (|v| segment(v, F::GUEST_ES_LIMIT, seg::TR, 1 << 20), seg::TR, S::Granularity),
        (|v| rights(v, seg::TR, |r| r.with_unusable(true)), seg::TR, S::Unusable),
        (|v| rights(v, seg::LDTR, |r| r.with_typ(3)), seg::LDTR, S::Type),
        (|v| rights(v, seg::LDTR, |r| r.with_s(true)), seg::LDTR, S::System),
        (|v| rights(v, seg::LDTR, |r| r.with_present(false)), seg::LDTR, S::NotPresent),
        (|v| set(v, F::GUEST_LDTR_AR_BYTES, 1 << 17), seg::LDTR, S::Reserved),
        (|v| segment(v, F::GUEST_ES_LIMIT, seg::LDTR, 1 << 20), seg::LDTR, S::Granularity),
    ] {
        let (ended, vmcs) = with(edit);
        assert_eq!(ended, Err(NotEntered::Guest(Guest::Segment(register, expected))));
        assert_eq!(vmcs.read(F::VM_EXIT_REASON), 0x8000_0021, "{register} {expected:?}");
    }
}

#[test]
fn page_directory_pointers() {
    let pae = |v: &mut Vmcs| {
        clear(v, F::VM_ENTRY_CONTROLS, 1 << 9);
        v.write(F::GUEST_IA32_EFER, 0u32);
    };
    for (entry, legal) in [(0x1001u64, true), (0x1e7 & !1, true), (0x1003, false), (1 << 46 | 1, false)] {
        let mut vmcs = legal_vmcs();
        pae(&mut vmcs);
        vmcs.write(F::GUEST_PDPTR2, entry);
        let ended = enter(&mut vmcs, true, &silicon(46)).map(drop);
        let refused = Err(NotEntered::Guest(Guest::Pdpte));
        assert_eq!(ended, if legal { Ok(()) } else { refused }, "{entry:#x}");
        assert!(legal || vmcs.read(F::EXIT_QUALIFICATION) == 2);
    }
}

#[test]
fn each_illegal_host_state() {
    for (edit, expected) in [
        ((|v| clear(v, F::HOST_CR0, 1 << 5)) as Edit, HostState::Cr0Fixed),
        (|v| set(v, F::HOST_CR0, 1 << 32), HostState::Cr0Fixed),
        (|v| clear(v, F::HOST_CR4, 1 << 13), HostState::Cr4Fixed),
        (|v| set(v, F::HOST_CR3, 1 << 46), HostState::Cr3Reserved),
        (|v| v.write(F::HOST_IA32_SYSENTER_ESP, 1u64 << 47), HostState::SysenterEsp),
        (|v| v.write(F::HOST_IA32_SYSENTER_EIP, 1u64 << 47), HostState::SysenterEip),
        (|v| v.write(F::HOST_IA32_PAT, 2u32), HostState::Pat),
        (|v| set(v, F::HOST_IA32_EFER, 1 << 12), HostState::EferReserved),
        (|v| clear(v, F::HOST_IA32_EFER, 1 << 10), HostState::EferLma),
        (|v| v.write(F::HOST_SS_SELECTOR, 0x1bu32), HostState::Selector),
        (|v| v.write(F::HOST_FS_SELECTOR, 4u32), HostState::Selector),
        (|v| v.write(F::HOST_CS_SELECTOR, 0u32), HostState::CsNull),
        (|v| v.write(F::HOST_TR_SELECTOR, 0u32), HostState::TrNull),
        (|v| v.write(F::HOST_GS_BASE, 1u64 << 47), HostState::Base),
        (|v| v.write(F::HOST_IDTR_BASE, 1u64 << 47), HostState::Base),
        (|v| clear(v, F::VM_EXIT_CONTROLS, 1 << 21 | 1 << 9), HostState::AddressSpaceSize),
        (|v| clear(v, F::HOST_CR4, 1 << 5), HostState::Cr4Pae),
        (|v| v.write(F::HOST_RIP, 1u64 << 47), HostState::Rip),
    ] {
        let (ended, vmcs) = with(edit);
        assert_eq!(ended, Err(NotEntered::Host(expected)));
        assert_eq!(vmcs.read(F::VM_INSTRUCTION_ERROR), 8, "{expected:?}");
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
        // A single step that MOV SS holds back, and one that nothing does.
        |v| {
            set(v, F::GUEST_RFLAGS, 1 << 8);
            v.write(F::GUEST_INTERRUPTIBILITY_INFO, 2u32);
            v.write(F::GUEST_PENDING_DBG_EXCEPTIONS, 1u32 << 14);
        },
        |v| set(v, F::GUEST_RFLAGS, 1 << 8),
        v8086,
        // Behind the last instruction of the lower half: kvm-unit-tests x86/hypercall.c.
        |v| {
            rights(v, seg::CS, |r| r.with_l(true));
            v.write(F::GUEST_RIP, 1u64 << 47);
        },
        // A null selector leaves nothing to check.
        |v| v.write(F::GUEST_DS_AR_BYTES, 1u32 << 16),
        |v| v.write(F::GUEST_LDTR_AR_BYTES, 1u32 << 16),
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

/// What a VMM sets and no segment register can hold: the entry fails, and KVM_RUN says so with the exit reason.
#[test]
fn a_vmm_that_sets_an_illegal_segment() {
    let mut machine = Machine::new(silicon(46), 46, &[]);
    machine.state.seg[seg::TR].attr = machine.state.seg[seg::TR].attr.with_typ(9);
    machine.state.efer = 0;
    machine.state.cr4 = 0;
    let resume = machine.vm.enter(0, &mut machine.state, &mut machine.host);
    assert_eq!((resume.kind, resume.data[0]), (ResumeKind::FAIL_ENTRY, 0x8000_0021));
    // Without unrestricted guests KVM does not try, but emulates.
    let mut machine = Machine::new(silicon(46), 46, &[("unrestricted_guest", "off")]);
    machine.state.seg[seg::SS].selector = 3;
    let resume = machine.vm.enter(0, &mut machine.state, &mut machine.host);
    assert_eq!(resume, Resume::GUEST);
}

/// Without unrestricted guests silicon pages where the guest, on its way to long mode, does not yet.
#[test]
fn on_the_way_to_long_mode() {
    for options in [&[][..], &[("unrestricted_guest", "off")], &[("ept", "off")]] {
        let mut machine = Machine::new(silicon(46), 46, options);
        machine.state.cr0 = Cr0::new().with_pe(true).with_et(true).into_bits();
        machine.state.efer = Efer::new().with_lme(true).into_bits();
        machine.vm.state_changed(0, &mut machine.state, &mut machine.host);
        let resume = machine.vm.enter(0, &mut machine.state, &mut machine.host);
        assert_eq!(resume, Resume::GUEST, "{options:?}");
    }
}
