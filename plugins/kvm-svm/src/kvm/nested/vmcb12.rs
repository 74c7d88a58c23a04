//! `vmcb12`, L1's VMCB: KVM's access to the page that it lies in, KVM's copy of it, and what comes back at #VMEXIT.
//!
//! KVM 5.10 checks the save area where it lies, and up to 6.12 some fields are read there again after the checks. No vCPU of L1
//! writes between the two here, so that one copy of all is the same.
//!
//! See: KVM arch/x86/kvm/svm/nested.c nested_svm_vmrun(), __nested_copy_vmcb_control_to_cache(), nested_svm_vmexit()

use super::patches::L1;
use crate::silicon::vmcb::{Clean, ControlArea, EventInfo, IntState, Vmcb};
use std::ops::Range;
use vmtape_abi::{Host, MemoryStatus};
use vmtape_arch::{
    PAGE_SIZE,
    exit::SvmExitCode as C,
    vcpu::{VcpuState, gpr},
};
use vmtape_kvm_core::{
    cpuid::{Feature, feature},
    events::Events,
    profile::Switch,
    slots::Slots,
};
use zerocopy::{FromZeros, IntoBytes};

/// Bytes that are read and written at once.
const WORD: usize = size_of::<u64>();

/// KVM's copy: `svm->nested.ctl` and `svm->nested.save`.
pub type Vmcb12 = Vmcb;

/// KVM cannot map a page of guest memory (-EINVAL of `kvm_vcpu_map`). A page that has not arrived is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// No memory slot has it, or one that may not be written, or the host does not give the page.
    Refused,
    /// The page did not come. `gfn_to_pfn` waits for it until a signal kills, which KVM_RUN notices before it enters the guest.
    /// See: KVM virt/kvm/kvm_main.c hva_to_pfn_slow(), without `interruptible`
    Killed,
}

/// The address that RAX of VMRUN, VMLOAD or VMSAVE gives. `None`: #GP(0).
pub fn address(l1: &L1<'_>, rax: u64, is_64bit: bool) -> Option<u64> {
    if !l1.on(Switch::VMCB_ADDRESS_CHECKED) {
        return Some(rax);
    }
    let gpa = if is_64bit { rax } else { rax & 0xffff_ffff };
    (gpa.is_multiple_of(PAGE_SIZE) && l1.is_legal_gpa(gpa)).then_some(gpa)
}

/// What VMRUN, VMLOAD and VMSAVE use of a VMCB, as offsets in whole words.
pub type Fields = &'static [Range<usize>];

/// What KVM copies at VMRUN; what #VMEXIT stores lies within.
pub const VMRUN: Fields = &[
    // Intercepts; pause filter to NESTED_CTL; EVENTINJ to NEXT_RIP.
    0x000..0x018,
    0x038..0x098,
    0x0a8..0x0d0,
    // ES, CS, SS, DS; GDTR; IDTR; CPL and EFER.
    0x400..0x440,
    0x460..0x470,
    0x480..0x490,
    0x4c8..0x4d8,
    // CR4, CR3, CR0, DR7, DR6, RFLAGS, RIP; RSP; RAX; CR2; G_PAT to LASTEXCP_TO.
    0x548..0x580,
    0x5d8..0x5e0,
    0x5f8..0x600,
    0x640..0x648,
    0x668..0x698,
];

/// What `svm_copy_vmrun_state` moves to and from the host save area: ES, CS, SS, DS; GDTR; IDTR; CPL and EFER; CR4, CR3, CR0; RFLAGS, RIP; RSP;
/// RAX; DBGCTL to LASTEXCP_TO.
pub const HOST_SAVE: Fields = &[
    0x400..0x440,
    0x460..0x470,
    0x480..0x490,
    0x4c8..0x4d8,
    0x548..0x560,
    0x570..0x580,
    0x5d8..0x5e0,
    0x5f8..0x600,
    0x670..0x698,
];

/// FS, GS; LDTR; TR; STAR to SYSENTER_EIP. See: APM 15.5.2 VMSAVE and VMLOAD Instructions
pub const VMLOAD: Fields = &[0x440..0x460, 0x470..0x480, 0x490..0x4a0, 0x600..0x640];

/// A VMCB of L1's, read from its page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The page.
    hpa: u64,
    fields: Fields,
    /// As it was read.
    memory: Vmcb,
    /// All but its fields is zero.
    pub vmcb: Vmcb,
}

impl Mapped {
    /// `kvm_vcpu_map`. The low bits of the address mean nothing. Only `fields` is read, so that a recording has no more than
    /// what KVM looks at.
    pub fn read(slots: &Slots, gpa: u64, fields: Fields, host: &mut dyn Host) -> Result<Self, Unmapped> {
        let page = gpa & !(PAGE_SIZE - 1);
        let slot = slots.find(page).filter(|slot| !slot.readonly()).ok_or(Unmapped::Refused)?;
        Self::at(slot.hpa(page), fields, host)
    }

    /// The same of a page whose host physical address is known.
    pub fn at(hpa: u64, fields: Fields, host: &mut dyn Host) -> Result<Self, Unmapped> {
        let mut vmcb = Vmcb::new_zeroed();
        for range in fields {
            let (hpa, bytes) = (hpa + range.start as u64, &mut vmcb.as_mut_bytes()[range.clone()]);
            let mut status = host.try_read(hpa, bytes);
            if status == MemoryStatus::MISSING {
                status = host.fault_in(hpa, bytes.len() as u64);
                if status == MemoryStatus::READY {
                    status = host.try_read(hpa, bytes);
                }
            }
            match status {
                MemoryStatus::READY => {}
                MemoryStatus::MISSING => return Err(Unmapped::Killed),
                _ => return Err(Unmapped::Refused),
            }
        }
        Ok(Self { hpa, fields, memory: vmcb.clone(), vmcb })
    }

    /// Writes the words that have changed. The caller marks the page dirty, as `kvm_vcpu_unmap` does.
    pub fn write_back(&self, host: &mut dyn Host) {
        let (old, new) = (self.memory.as_bytes(), self.vmcb.as_bytes());
        for at in self.fields.iter().flat_map(|range| range.clone().step_by(WORD)) {
            let word = at..at + WORD;
            if old[word.clone()] != new[word.clone()] {
                host.write(self.hpa + at as u64, &new[word]);
            }
        }
    }
}

/// `nested_copy_vmcb_control_to_cache` and `nested_copy_vmcb_save_to_cache`.
pub fn cache(l1: &L1<'_>, vmcb12: &Vmcb) -> Vmcb12 {
    let mut cached = Vmcb { control: cached_control(&vmcb12.control), save: vmcb12.save.clone() };
    let control = &mut cached.control;
    if l1.on(Switch::NESTED_SANITIZED) {
        control.clean = vmcb12.control.clean;
        sanitize(l1, control);
    }
    cached
}

/// The fields that KVM keeps; of permission maps without the bits that no map has.
fn cached_control(from: &ControlArea) -> ControlArea {
    let mut to = ControlArea::new_zeroed();
    to.intercepts = from.intercepts;
    to.iopm_base_pa = from.iopm_base_pa & !(PAGE_SIZE - 1);
    to.msrpm_base_pa = from.msrpm_base_pa & !(PAGE_SIZE - 1);
    (to.tsc_offset, to.asid, to.tlb_ctl) = (from.tsc_offset, from.asid, from.tlb_ctl);
    (to.int_ctl, to.int_vector, to.int_state) = (from.int_ctl, from.int_vector, from.int_state);
    to.exit_code = from.exit_code;
    (to.exit_info_1, to.exit_info_2) = (from.exit_info_1, from.exit_info_2);
    (to.exit_int_info, to.exit_int_info_err) = (from.exit_int_info, from.exit_int_info_err);
    (to.event_inj, to.event_inj_err) = (from.event_inj, from.event_inj_err);
    (to.nested_ctl, to.nested_cr3, to.virt_ext) = (from.nested_ctl, from.nested_cr3, from.virt_ext);
    to.next_rip = from.next_rip;
    (to.pause_filter_count, to.pause_filter_thresh) = (from.pause_filter_count, from.pause_filter_thresh);
    to
}

/// Intercepts of instructions that L1 itself may not have.
const OPTIONAL: [(C, Feature); 3] =
    [(C::XSETBV, feature::XSAVE), (C::INVPCID, feature::INVPCID), (C::RDTSCP, feature::RDTSCP)];

/// What 7.2 takes out of its copy.
fn sanitize(l1: &L1<'_>, control: &mut ControlArea) {
    for (code, needed) in OPTIONAL {
        if !l1.cpuid.has(needed) {
            control.intercepts.set(code, false);
        }
    }
    // KVM offers neither SKINIT nor RDPRU.
    control.intercepts.set(C::SKINIT, false);
    control.intercepts.set(C::RDPRU, false);
    let nested_ctl = control.nested_ctl;
    control.nested_ctl = nested_ctl.with_np_enable(nested_ctl.np_enable() && l1.npt()).with_gmet(false);
    control.tlb_ctl &= 7;
    control.int_vector &= 0xff;
    control.int_state = IntState::new().with_interrupt_shadow(control.int_state.interrupt_shadow());
    let event = control.event_inj;
    control.event_inj = EventInfo::new()
        .with_vector(event.vector())
        .with_kind(event.kind())
        .with_error_valid(event.error_valid())
        .with_valid(event.valid());
}

/// What vmcb02 keeps of L2's last run because L1 says that it has not changed it. `new`: the last run was of another vmcb12.
pub fn kept(l1: &L1<'_>, vmcb12: &Vmcb, new: bool) -> Clean {
    if new || !l1.on(Switch::NESTED_VMCB02) {
        return Clean::new();
    }
    let clean = vmcb12.control.clean;
    Clean::new()
        .with_seg(clean.seg())
        .with_dt(clean.dt())
        .with_drx(clean.drx())
        .with_np(clean.np() && l1.on(Switch::GPAT_IN_VMCB02))
}

/// A VMRUN that KVM's checks fail: what L1 finds in `vmcb12`, and nothing else of it changes.
pub fn store_invalid(l1: &L1<'_>, vmcb12: &mut Vmcb) {
    let control = &mut vmcb12.control;
    control.exit_code = invalid_code(l1);
    (control.exit_info_1, control.exit_info_2) = (0, 0);
    if l1.on(Switch::NESTED_EVENT_INJ_CLEARED) {
        (control.event_inj, control.event_inj_err) = (EventInfo::new(), 0);
    }
}

/// SVM_EXIT_ERR as KVM writes it.
pub fn invalid_code(l1: &L1<'_>) -> u64 {
    if l1.on(Switch::NESTED_INVALID_CODE_HIGH) { u64::MAX } else { C::ERR.0.into() }
}

/// What `vmcb12` gets at #VMEXIT.
pub struct Exit<'a> {
    /// With the exit that L1 is to see.
    pub vmcb02: &'a Vmcb,
    /// KVM's copy, in step with `vmcb02`.
    pub cached: &'a Vmcb12,
    /// L2's registers.
    pub state: &'a VcpuState,
    /// Events that were on their way into L2.
    pub events: &'a Events,
}

/// `nested_svm_vmexit`, the part that writes `vmcb12`. Never written: what VMLOAD loads, ASID, clean bits, intercepts,
/// instruction bytes.
pub fn store_exit(l1: &L1<'_>, vmcb12: &mut Vmcb, exit: &Exit<'_>) {
    let Exit { vmcb02, cached, state, events } = exit;
    let (to, from) = (&mut vmcb12.save, &vmcb02.save);
    (to.es, to.cs, to.ss, to.ds, to.cpl) = (from.es, from.cs, from.ss, from.ds, from.cpl);
    (to.gdtr, to.idtr) = (from.gdtr, from.idtr);
    (to.efer, to.cr0, to.cr3, to.cr4) = (state.efer, state.cr0, state.cr3, state.cr4);
    to.cr2 = if l1.on(Switch::NESTED_CR2_OF_VCPU) { state.cr2 } else { from.cr2 };
    (to.rflags, to.rip) = (state.rflags, state.rip);
    (to.rsp, to.rax) = (state.gpr[gpr::RSP], state.gpr[gpr::RAX]);
    (to.dr7, to.dr6) = (from.dr7, state.dr6);
    store_controls(l1, &mut vmcb12.control, &vmcb02.control, &cached.control, events);
}

fn store_controls(
    l1: &L1<'_>,
    to: &mut ControlArea,
    vmcb02: &ControlArea,
    cached: &ControlArea,
    events: &Events,
) {
    to.int_state = vmcb02.int_state;
    to.exit_code = vmcb02.exit_code;
    (to.exit_info_1, to.exit_info_2) = (vmcb02.exit_info_1, vmcb02.exit_info_2);
    if vmcb02.exit_code() != C::ERR {
        let (info, error) = interrupted(events);
        to.exit_int_info = info;
        to.exit_int_info_err = error.unwrap_or(to.exit_int_info_err);
    }
    if l1.nrips() {
        to.next_rip = vmcb02.next_rip;
    }
    let cleared = l1.on(Switch::NESTED_EVENT_INJ_CLEARED);
    (to.event_inj, to.event_inj_err) =
        if cleared { (EventInfo::new(), 0) } else { (cached.event_inj, cached.event_inj_err) };
    to.int_ctl = cached.int_ctl;
    if !cleared {
        to.tlb_ctl = cached.tlb_ctl;
    }
    if !l1.on(Switch::NESTED_PAUSE_FILTER) {
        (to.pause_filter_count, to.pause_filter_thresh) =
            (vmcb02.pause_filter_count, vmcb02.pause_filter_thresh);
    }
}

/// `nested_save_pending_event_to_vmcb12`: EXITINTINFO, and its error code where there is one.
fn interrupted(events: &Events) -> (EventInfo, Option<u32>) {
    let event = events.injected_event();
    let info = EventInfo::from(&event);
    (info, event.has_error_code.is_set().then_some(event.error_code))
}
