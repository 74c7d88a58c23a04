//! Checks on the guest's registers and non-register state. Performance counters, bound registers and CET have no fields here: silicon
//! refuses the controls that would load them.
//!
//! Manual: Intel SDM volume 3C, doc 325384-087, 27.3.1 Checks on the Guest State Area.

use super::{
    HIGH,
    event::EntryEvent,
    is_canonical, is_extended, linear_width, require,
    segments::{self, Modes, SegmentCheck, SegmentRights},
};
use crate::silicon::vmcs::{EntryControls, PendingDebug, Secondary, Vmcs, VmcsField as F};
use vmtape_arch::{
    event::EventKind,
    host::Silicon,
    paging::bits,
    regs::{Cr0, Cr4, Efer, Rflags},
    vcpu::{Activity, Interruptibility, seg},
};
use vmtape_kvm_core::msr::is_valid_pat;

/// Checks on the guest's registers and non-register state that can fail, in the manual's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    Cr0Fixed,
    PagingWithoutProtection,
    Cr4Fixed,
    CetWithoutWriteProtection,
    LongModeWithoutPaging,
    PcidOutsideLongMode,
    Cr3Reserved,
    DebugCtl,
    Dr7High,
    SysenterEsp,
    SysenterEip,
    Pat,
    EferReserved,
    EferLma,
    /// A segment register by its encoding number, and what is wrong with it.
    Segment(usize, SegmentCheck),
    GdtrBase,
    GdtrLimit,
    IdtrBase,
    IdtrLimit,
    Rip,
    RflagsReserved,
    RflagsVm,
    RflagsIf,
    Activity,
    HaltedInUserMode,
    ActivityWhileBlocking,
    BlockingReserved,
    BlockingByBoth,
    BlockingByStiWithoutIf,
    BlockingAtInjection,
    PendingDebugReserved,
    /// BS is not what TF and BTF say while STI, MOV SS or HLT holds a single step back.
    PendingDebugSingleStep,
    LinkPointer,
    Pdpte,
}

/// RFLAGS bits that are zero.
const RFLAGS_RESERVED: u64 = bits(22, 63) | 1 << 15 | 1 << 5 | 1 << 3;

/// Reserved bits of IA32_DEBUGCTL, and BTF. See: SDM vol. 4 table 2-2
const DEBUGCTL_RESERVED: u64 = bits(16, 63) | bits(3, 5);
const DEBUGCTL_BTF: u64 = 1 << 1;

/// See: 27.3.1 Checks on the Guest State Area
pub fn check(vmcs: &Vmcs, silicon: &Silicon) -> Result<(), Guest> {
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
    require(!cr4.cet() || cr0.wp(), Guest::CetWithoutWriteProtection)?;
    require(!long || cr0.pg() && cr4.pae(), Guest::LongModeWithoutPaging)?;
    require(long || !cr4.pcide(), Guest::PcidOutsideLongMode)?;
    let beyond = bits(u32::from(silicon.phys_bits), 63);
    require(vmcs.read(F::GUEST_CR3) & beyond == 0, Guest::Cr3Reserved)?;
    let debugctl = vmcs.read(F::GUEST_IA32_DEBUGCTL);
    require(!entry.load_debug_controls() || debugctl & DEBUGCTL_RESERVED == 0, Guest::DebugCtl)?;
    require(!entry.load_debug_controls() || vmcs.read(F::GUEST_DR7) & HIGH == 0, Guest::Dr7High)?;
    let canonical = |field| is_canonical(vmcs, silicon, field);
    require(canonical(F::GUEST_SYSENTER_ESP), Guest::SysenterEsp)?;
    require(canonical(F::GUEST_SYSENTER_EIP), Guest::SysenterEip)?;
    require(!entry.load_pat() || is_valid_pat(vmcs.read(F::GUEST_IA32_PAT)), Guest::Pat)?;
    if entry.load_efer() {
        let efer = Efer::from_bits(vmcs.read(F::GUEST_IA32_EFER));
        let defined = Efer::new().with_sce(true).with_lme(true).with_lma(true).with_nxe(true);
        require(efer.into_bits() & !defined.into_bits() == 0, Guest::EferReserved)?;
        let consistent = efer.lma() == long && (!cr0.pg() || efer.lma() == efer.lme());
        require(consistent, Guest::EferLma)?;
    }
    segments::check(vmcs, silicon, Modes::of(vmcs))
        .map_err(|(register, why)| Guest::Segment(register, why))?;
    check_tables(vmcs, silicon)?;
    check_again(vmcs, silicon)?;
    check_pdptes(vmcs, silicon)
}

/// The checks of what changes between two VM entries.
/// See: 27.3.1.4 Checks on Guest RIP, RFLAGS, and SSP
pub fn check_again(vmcs: &Vmcs, silicon: &Silicon) -> Result<(), Guest> {
    let long = EntryControls::from_bits(vmcs.read32(F::VM_ENTRY_CONTROLS)).ia32e_mode_guest();
    let code64 = long && Modes::of(vmcs).code64;
    // One bit less than canonical addresses have: an instruction may end at the edge.
    let rip = vmcs.read(F::GUEST_RIP);
    let rip = if code64 { is_extended(rip, linear_width(vmcs, silicon) + 1) } else { rip & HIGH == 0 };
    require(rip, Guest::Rip)?;
    check_non_register(vmcs, long, Cr0::from_bits(vmcs.read(F::GUEST_CR0)))
}

/// See: 27.3.1.4 Checks on Guest RIP, RFLAGS, and SSP, 27.3.1.5 Checks on Guest Non-Register State
fn check_non_register(vmcs: &Vmcs, long: bool, cr0: Cr0) -> Result<(), Guest> {
    let rflags = Rflags::from_bits(vmcs.read(F::GUEST_RFLAGS));
    let reserved = rflags.into_bits() & RFLAGS_RESERVED;
    require(reserved == 0 && rflags.always_one(), Guest::RflagsReserved)?;
    require(!rflags.vm() || !long && cr0.pe(), Guest::RflagsVm)?;
    let injects = |kind| EntryEvent::of(vmcs).injects(kind);
    require(rflags.intr() || !injects(EventKind::EXTERNAL_INTERRUPT), Guest::RflagsIf)?;
    let activity = Activity(vmcs.read32(F::GUEST_ACTIVITY_STATE));
    require(activity.0 <= Activity::WAIT_FOR_SIPI.0, Guest::Activity)?;
    let stack = SegmentRights::of(vmcs, seg::SS);
    require(activity != Activity::HLT || stack.dpl() == 0, Guest::HaltedInUserMode)?;
    let blocking = vmcs.read32(F::GUEST_INTERRUPTIBILITY_INFO);
    let by = Interruptibility::from_bits(blocking);
    let shadow = by.sti() || by.mov_ss();
    require(activity == Activity::ACTIVE || !shadow, Guest::ActivityWhileBlocking)?;
    require(blocking >> 5 == 0, Guest::BlockingReserved)?;
    require(!(by.sti() && by.mov_ss()), Guest::BlockingByBoth)?;
    require(rflags.intr() || !by.sti(), Guest::BlockingByStiWithoutIf)?;
    let blocked = injects(EventKind::EXTERNAL_INTERRUPT) && shadow || injects(EventKind::NMI) && by.mov_ss();
    require(!blocked, Guest::BlockingAtInjection)?;
    check_pending_debug(vmcs, rflags, shadow || activity == Activity::HLT)?;
    require(vmcs.read(F::VMCS_LINK_POINTER) == u64::MAX, Guest::LinkPointer)
}

/// `held`: STI, MOV SS or HLT holds a single step back.
/// See: 27.3.1.5, pending debug exceptions
fn check_pending_debug(vmcs: &Vmcs, rflags: Rflags, held: bool) -> Result<(), Guest> {
    let pending = PendingDebug::from_bits(vmcs.read(F::GUEST_PENDING_DBG_EXCEPTIONS));
    // Neither bus-lock detection nor RTM is there.
    require(pending.into_bits() & !PendingDebug::LEGAL.into_bits() == 0, Guest::PendingDebugReserved)?;
    let steps = rflags.tf() && vmcs.read(F::GUEST_IA32_DEBUGCTL) & DEBUGCTL_BTF == 0;
    require(!held || pending.single_step() == steps, Guest::PendingDebugSingleStep)
}

/// See: 27.3.1.3 Checks on Guest Descriptor-Table Registers
fn check_tables(vmcs: &Vmcs, silicon: &Silicon) -> Result<(), Guest> {
    let canonical = |field| is_canonical(vmcs, silicon, field);
    require(canonical(F::GUEST_GDTR_BASE), Guest::GdtrBase)?;
    require(vmcs.read(F::GUEST_GDTR_LIMIT) >> 16 == 0, Guest::GdtrLimit)?;
    require(canonical(F::GUEST_IDTR_BASE), Guest::IdtrBase)?;
    require(vmcs.read(F::GUEST_IDTR_LIMIT) >> 16 == 0, Guest::IdtrLimit)
}

/// See: 27.3.1.6 Checks on Guest Page-Directory-Pointer-Table Entries
fn check_pdptes(vmcs: &Vmcs, silicon: &Silicon) -> Result<(), Guest> {
    let entry = EntryControls::from_bits(vmcs.read32(F::VM_ENTRY_CONTROLS));
    let (cr0, cr4) = (Cr0::from_bits(vmcs.read(F::GUEST_CR0)), Cr4::from_bits(vmcs.read(F::GUEST_CR4)));
    let pae = cr0.pg() && cr4.pae() && !entry.ia32e_mode_guest();
    if !pae || !vmcs.secondary().ept() {
        return Ok(());
    }
    let reserved = bits(u32::from(silicon.phys_bits), 63) | bits(5, 8) | bits(1, 2);
    let legal = |field| vmcs.read(field) & 1 == 0 || vmcs.read(field) & reserved == 0;
    let pdptes = [F::GUEST_PDPTR0, F::GUEST_PDPTR1, F::GUEST_PDPTR2, F::GUEST_PDPTR3];
    require(pdptes.into_iter().all(legal), Guest::Pdpte)
}
