//! The control area of a VMCB.
//!
//! Manual: AMD APM volume 2, 24593 rev. 3.42, Table B-1 VMCB Layout, Control Area.

use super::{Clean, InterceptVector};
use bitfield_struct::bitfield;
use std::mem::offset_of;
use vmtape_arch::{
    event::{Event, EventKind},
    exception::Vector,
    exit::SvmExitCode,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Offsets 000h to 3FFh.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ControlArea {
    pub intercepts: InterceptVector,
    reserved_018: [u8; 0x24],
    pub pause_filter_thresh: u16,
    pub pause_filter_count: u16,
    pub iopm_base_pa: u64,
    pub msrpm_base_pa: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    /// TLB_CONTROL: 0 nothing, 1 everything, 3 this guest's, 7 this guest's non-global entries.
    pub tlb_ctl: u8,
    pub erap_ctl: u8,
    reserved_05e: [u8; 2],
    pub int_ctl: IntCtl,
    /// V_INTR_VECTOR.
    pub int_vector: u32,
    pub int_state: IntState,
    reserved_06c: u32,
    pub exit_code: u64,
    pub exit_info_1: u64,
    pub exit_info_2: u64,
    pub exit_int_info: EventInfo,
    pub exit_int_info_err: u32,
    pub nested_ctl: NestedCtl,
    pub avic_apic_bar: u64,
    pub ghcb_gpa: u64,
    pub event_inj: EventInfo,
    pub event_inj_err: u32,
    pub nested_cr3: u64,
    pub virt_ext: VirtExt,
    pub clean: Clean,
    reserved_0c4: u32,
    pub next_rip: u64,
    /// Bytes fetched by silicon with decode assists.
    pub insn_len: u8,
    pub insn_bytes: [u8; 15],
    pub avic_backing_page: u64,
    reserved_0e8: u64,
    pub avic_logical_id: u64,
    pub avic_physical_id: u64,
    reserved_100: u64,
    pub vmsa_pa: u64,
    reserved_110: [u8; 0x10],
    pub bus_lock_counter: u16,
    reserved_122: [u8; 0x16],
    pub allowed_sev_features: u64,
    pub guest_sev_features: u64,
    reserved_148: [u8; 0x298],
    /// Reserved for host usage; Hyper-V's enlightenments.
    pub software: [u8; 0x20],
}

/// Fails to compile where a field is not at the manual's offset.
macro_rules! offsets {
    ($area:ty: $($field:ident @ $offset:expr,)*) => {
        $(const _: () = assert!(std::mem::offset_of!($area, $field) == $offset);)*
    };
}
pub(super) use offsets;

offsets! { ControlArea:
    intercepts @ 0x000, pause_filter_thresh @ 0x03c, pause_filter_count @ 0x03e, iopm_base_pa @ 0x040,
    msrpm_base_pa @ 0x048, tsc_offset @ 0x050, asid @ 0x058, tlb_ctl @ 0x05c, erap_ctl @ 0x05d, int_ctl @ 0x060,
    int_vector @ 0x064, int_state @ 0x068, exit_code @ 0x070, exit_info_1 @ 0x078, exit_info_2 @ 0x080,
    exit_int_info @ 0x088, exit_int_info_err @ 0x08c, nested_ctl @ 0x090, avic_apic_bar @ 0x098, ghcb_gpa @ 0x0a0,
    event_inj @ 0x0a8, event_inj_err @ 0x0ac, nested_cr3 @ 0x0b0, virt_ext @ 0x0b8, clean @ 0x0c0, next_rip @ 0x0c8,
    insn_len @ 0x0d0, insn_bytes @ 0x0d1, avic_backing_page @ 0x0e0, avic_logical_id @ 0x0f0,
    avic_physical_id @ 0x0f8, vmsa_pa @ 0x108, bus_lock_counter @ 0x120, allowed_sev_features @ 0x138,
    guest_sev_features @ 0x140, software @ 0x3e0,
}
const _: () = assert!(size_of::<ControlArea>() == 0x400 && offset_of!(ControlArea, reserved_018) == 0x18);

/// Virtual interrupts (offset 060h). See: APM 15.21 Interrupt and APIC Virtualization
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IntCtl {
    pub v_tpr: u8,
    pub v_irq: bool,
    pub v_gif: bool,
    __: bool,
    pub v_nmi_pending: bool,
    pub v_nmi_blocking: bool,
    #[bits(3)]
    __: u8,
    #[bits(4)]
    pub v_intr_prio: u8,
    pub v_ign_tpr: bool,
    #[bits(3)]
    __: u8,
    pub v_intr_masking: bool,
    pub v_gif_enable: bool,
    pub v_nmi_enable: bool,
    #[bits(3)]
    __: u8,
    pub x2apic: bool,
    pub avic_enable: bool,
}

/// Interrupt shadow (offset 068h).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IntState {
    pub interrupt_shadow: bool,
    pub guest_interrupt_mask: bool,
    #[bits(30)]
    __: u32,
}

/// Offset 090h.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NestedCtl {
    pub np_enable: bool,
    pub sev: bool,
    pub sev_es: bool,
    pub gmet: bool,
    #[bits(60)]
    __: u64,
}

/// Offset 0B8h.
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VirtExt {
    pub lbr_virtualization: bool,
    pub v_vmload_vmsave: bool,
    #[bits(62)]
    __: u64,
}

/// EVENTINJ and EXITINTINFO. See: APM 15.20 Event Injection, 15.7.2 Intercepts During IDT Interrupt Delivery
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EventInfo {
    pub vector: u8,
    /// 0 external interrupt, 2 NMI, 3 exception, 4 software interrupt.
    #[bits(3)]
    pub kind: u8,
    pub error_valid: bool,
    #[bits(19)]
    __: u32,
    pub valid: bool,
}

impl From<&Event> for EventInfo {
    fn from(event: &Event) -> Self {
        if !event.valid.is_set() {
            return Self::new();
        }
        // SVM has one type for exceptions, whoever raises them.
        let kind = match event.kind {
            EventKind::SOFTWARE_EXCEPTION | EventKind::PRIVILEGED_SOFTWARE_EXCEPTION => {
                EventKind::HARDWARE_EXCEPTION
            }
            kind => kind,
        };
        Self::new()
            .with_vector(event.vector)
            .with_kind(kind.0)
            .with_error_valid(event.has_error_code.is_set())
            .with_valid(true)
    }
}

impl EventInfo {
    /// The event that VMRUN delivers for EVENTINJ. `next_rip`: how far behind RIP a software interrupt or exception returns to.
    /// See: APM 15.20 Event Injection
    pub fn event(self, error_code: u32, next_rip: u64) -> Event {
        if !self.valid() {
            return Event::default();
        }
        let trap = matches!(Vector(self.vector()), Vector::BP | Vector::OF);
        let kind = match EventKind(self.kind()) {
            EventKind::HARDWARE_EXCEPTION if trap => EventKind::SOFTWARE_EXCEPTION,
            kind => kind,
        };
        let soft = matches!(kind, EventKind::SOFTWARE_EXCEPTION | EventKind::SOFTWARE_INTERRUPT);
        // An NMI is vector 2 whatever the field says.
        let vector = if kind == EventKind::NMI { Vector::NMI.0 } else { self.vector() };
        Event {
            valid: true.into(),
            kind,
            vector,
            has_error_code: self.error_valid().into(),
            error_code: if self.error_valid() { error_code } else { 0 },
            insn_len: if soft { u8::try_from(next_rip).unwrap_or(0) } else { 0 },
            ..Default::default()
        }
    }
}

impl ControlArea {
    /// EXITCODE; VMEXIT_INVALID is -1 in all 64 bits.
    pub fn exit_code(&self) -> SvmExitCode {
        SvmExitCode(self.exit_code as u32)
    }

    /// Writes EXITCODE.
    pub fn set_exit_code(&mut self, code: SvmExitCode) {
        self.exit_code = if code == SvmExitCode::ERR { u64::MAX } else { code.0.into() };
    }
}
