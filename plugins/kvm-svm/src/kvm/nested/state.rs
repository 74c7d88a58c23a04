//! KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE: `struct kvm_nested_state` in SVM's format, byte for byte.
//!
//! In guest mode a page follows the header: the control area is KVM's copy of `vmcb12`, the save area is L1's, as `vmcb01` keeps
//! it. L2's own registers are in the other ioctls' structures.
//!
//! See: KVM arch/x86/kvm/svm/nested.c svm_get_nested_state(), svm_set_nested_state(), svm_copy_vmrun_state()

use super::{INVALID_GPA, checks, enter, exit, patches::L1, vmcb12};
use crate::{
    kvm::handlers::Cx,
    silicon::vmcb::{SaveArea, Vmcb, VmcbSegment},
    vm::SvmVcpu,
};
use vmtape_abi::Errno;
use vmtape_arch::{
    PAGE_SIZE,
    regs::{Cr0, Efer, Rflags},
    state::{NestedFlags, NestedFormat},
    vcpu::{VcpuState, seg},
};
use vmtape_kvm_core::{
    msr::is_valid_pat,
    profile::{Options, Switch},
};
use vmtape_kvm_mmu::fault_points::FaultPoint;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// `struct kvm_nested_state` with `struct kvm_svm_nested_state_hdr`, without its data.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Header {
    pub flags: NestedFlags,
    /// [`NestedFormat`].
    pub format: u16,
    /// Bytes of all of it.
    pub size: u32,
    pub vmcb_pa: u64,
    /// Merged: gPAT. As posted: flags.
    pub gpat_or_flags: u64,
    /// v3 as posted: gPAT.
    pub v3_gpat: u64,
    rest: [u64; 12],
}

/// Bytes of the header, and of all of it in guest mode.
pub const HEADER_SIZE: usize = size_of::<Header>();
pub const FULL_SIZE: usize = HEADER_SIZE + PAGE_SIZE as usize;
const _: () = assert!(HEADER_SIZE == 128 && FULL_SIZE == 4224);

/// KVM_STATE_SVM_VALID_GPAT, of the series as posted.
const VALID_GPAT: u64 = 1;

/// `kvm_x86_ops.nested_ops` has nothing for nested state: with nested=0, in later releases.
fn has_no_state(options: &Options) -> bool {
    !options.on(Switch::NESTED) && options.on(Switch::NESTED_STATE_NEEDS_NESTED)
}

/// KVM_GET_NESTED_STATE.
pub fn get(l1: &L1<'_>, vcpu: &SvmVcpu, state: &VcpuState) -> Result<Vec<u8>, Errno> {
    if has_no_state(l1.options) {
        return Err(Errno::EINVAL);
    }
    let nested = &vcpu.nested;
    let mut header = Header {
        flags: NestedFlags::new().with_gif_set(nested.gif),
        format: NestedFormat::SVM.0,
        size: HEADER_SIZE as u32,
        ..Header::default()
    };
    if !vcpu.is_guest_mode() {
        return Ok(header.as_bytes().to_vec());
    }
    header.flags = header.flags.with_guest_mode(true).with_run_pending(nested.run_pending);
    header.size = FULL_SIZE as u32;
    header.vmcb_pa = nested.vmcb12_gpa;
    let mut page = Vmcb::new_zeroed();
    page.control = nested.vmcb12.control.clone();
    // KVM keeps it for itself.
    page.control.clean = Default::default();
    page.save = l1_save(l1, &vcpu.vmcb01.vmcb.save, state);
    put_gpat(l1, vcpu, state.pat, &mut header, &mut page);
    Ok([header.as_bytes(), page.as_bytes()].concat())
}

/// L1's save area. FS to SYSENTER_EIP are in `vmcb01` while L2 runs too, for both of them; 5.10 saves what VMRUN saves.
fn l1_save(l1: &L1<'_>, vmcb01: &SaveArea, state: &VcpuState) -> SaveArea {
    let mut save = vmcb01.clone();
    if !l1.on(Switch::NESTED_VMCB02) {
        save = SaveArea::new_zeroed();
        copy_vmrun_state(l1, &mut save, vmcb01);
        return save;
    }
    let segment = |index: usize| VmcbSegment::from(&state.seg[index]);
    (save.fs, save.gs) = (segment(seg::FS), segment(seg::GS));
    (save.ldtr, save.tr) = (segment(seg::LDTR), segment(seg::TR));
    save.kernel_gs_base = state.kernel_gs_base;
    (save.star, save.lstar) = (state.star, state.lstar);
    (save.cstar, save.sfmask) = (state.cstar, state.sfmask);
    (save.sysenter_cs, save.sysenter_esp) = (state.sysenter_cs, state.sysenter_esp);
    save.sysenter_eip = state.sysenter_eip;
    save
}

/// `svm_copy_vmrun_state`: what VMRUN saves of the host.
pub fn copy_vmrun_state(l1: &L1<'_>, to: &mut SaveArea, from: &SaveArea) {
    (to.es, to.cs, to.ss, to.ds) = (from.es, from.cs, from.ss, from.ds);
    (to.gdtr, to.idtr) = (from.gdtr, from.idtr);
    to.rflags = from.rflags | Rflags::new().with_always_one(true).into_bits();
    (to.efer, to.cr0, to.cr3, to.cr4) = (from.efer, from.cr0, from.cr3, from.cr4);
    (to.rax, to.rsp, to.rip) = (from.rax, from.rsp, from.rip);
    to.cpl = 0;
    if l1.on(Switch::LBR_MSRS_SAVED) && l1.on(Switch::LBRV) {
        (to.dbgctl, to.br_from, to.br_to) = (from.dbgctl, from.br_from, from.br_to);
        (to.last_excp_from, to.last_excp_to) = (from.last_excp_from, from.last_excp_to);
    }
}

/// Where gPAT lies, by the form of the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// L1 and L2 share one PAT, or the change is not in nested state.
    None,
    /// In the header's second word.
    Merged,
    /// In the header, with a flag.
    V3,
    /// L1's PAT in the saved VMCB, and IA32_PAT is gPAT.
    V1,
    /// gPAT in the saved VMCB.
    V2,
}

fn form(l1: &L1<'_>) -> Form {
    match () {
        () if l1.on(Switch::GPAT_STATE) && !l1.on(Switch::NESTED_SVM_SHARED_PAT) => Form::Merged,
        () if l1.on(Switch::V3_GPAT_STATE) => Form::V3,
        () if l1.on(Switch::V2_GPAT_STATE) => Form::V2,
        () if l1.on(Switch::V1_GPAT_STATE) => Form::V1,
        () => Form::None,
    }
}

fn put_gpat(l1: &L1<'_>, vcpu: &SvmVcpu, hpat: u64, header: &mut Header, page: &mut Vmcb) {
    let gpat = vcpu.nested.vmcb02.vmcb.save.g_pat;
    let np = vcpu.nested.vmcb12.control.nested_ctl.np_enable();
    match form(l1) {
        Form::Merged if np => header.gpat_or_flags = gpat,
        Form::V3 if np => (header.gpat_or_flags, header.v3_gpat) = (VALID_GPAT, gpat),
        Form::V2 if np => (header.gpat_or_flags, page.save.g_pat) = (VALID_GPAT, gpat),
        // With and without nested paging.
        Form::V1 => (header.gpat_or_flags, page.save.g_pat) = (VALID_GPAT, hpat),
        _ => {}
    }
}

/// What KVM_SET_NESTED_STATE is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// No L2.
    Leave {
        gif: bool,
    },
    Enter(Box<Entered>),
}

/// Checked state of a vCPU in guest mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    pub header: Header,
    /// KVM's copy of `vmcb12`.
    pub control: vmcb12::Vmcb12,
    /// L1's registers.
    pub save: SaveArea,
}

/// KVM_SET_NESTED_STATE, KVM's checks in its order. `state`: the vCPU's registers now, which are L2's.
pub fn check(
    l1: &L1<'_>,
    (npt, in_smm): (bool, bool),
    state: &VcpuState,
    bytes: &[u8],
) -> Result<Wanted, Errno> {
    let refuse = |legal: bool| if legal { Ok(()) } else { Err(Errno::EINVAL) };
    let (header, data) = Header::read_from_prefix(bytes).map_err(|_| Errno::EFAULT)?;
    let flags = header.flags;
    let unknown = flags.into_bits() & !NestedFlags::KNOWN.into_bits();
    refuse(header.size as usize >= HEADER_SIZE && unknown == 0)?;
    refuse(!flags.run_pending() || flags.guest_mode())?;
    refuse(NestedFormat(header.format) == NestedFormat::SVM)?;
    refuse(!flags.evmcs() && !flags.mtf_pending())?;
    if !state.efer().svme() {
        let idle = NestedFlags::new();
        let free = l1.on(Switch::NESTED_SET_GIF_FREE) && flags == idle;
        refuse(free || flags == idle.with_gif_set(true))?;
    }
    // SMM disables SVM.
    refuse(!in_smm || !flags.guest_mode())?;
    if !flags.guest_mode() {
        return Ok(Wanted::Leave { gif: flags.gif_set() });
    }
    refuse(header.vmcb_pa.is_multiple_of(PAGE_SIZE) && l1.is_legal_gpa(header.vmcb_pa))?;
    refuse(header.size as usize >= FULL_SIZE)?;
    let page = Vmcb::read_from_prefix(data).map_err(|_| Errno::EFAULT)?.0;
    let control = vmcb12::cache(l1, &page);
    checks::check_controls(l1, npt, &control.control).map_err(|_| Errno::EINVAL)?;
    refuse(state.cr0().cd() || !state.cr0().nw())?;
    check_l1(l1, &page.save)?;
    check_gpat(l1, &header, control.control.nested_ctl.np_enable())?;
    Ok(Wanted::Enter(Box::new(Entered { header, control, save: page.save })))
}

/// L1 as it was before VMRUN.
fn check_l1(l1: &L1<'_>, save: &SaveArea) -> Result<(), Errno> {
    let refuse = |legal: bool| if legal { Ok(()) } else { Err(Errno::EINVAL) };
    let (cr0, efer) = (Cr0::from_bits(save.cr0), Efer::from_bits(save.efer));
    refuse(cr0.pg())?;
    if !l1.on(Switch::NESTED_SET_CHECKS_L1) {
        return refuse(efer.svme());
    }
    refuse(cr0.pe() && !Rflags::from_bits(save.rflags).vm())?;
    refuse(!l1.on(Switch::NESTED_SET_CHECKS_LMA) || !efer.lma() || efer.lme())?;
    checks::check_save(l1, save, false).map_err(|_| Errno::EINVAL)
}

/// gPAT in the header must be one; v1 and v2 take it unchecked.
fn check_gpat(l1: &L1<'_>, header: &Header, np: bool) -> Result<(), Errno> {
    let legal = match form(l1) {
        Form::Merged => !np || is_valid_pat(header.gpat_or_flags),
        Form::V3 => header.gpat_or_flags & VALID_GPAT == 0 || is_valid_pat(header.v3_gpat),
        _ => true,
    };
    if legal { Ok(()) } else { Err(Errno::EINVAL) }
}

/// KVM_SET_NESTED_STATE.
pub fn set(cx: &mut Cx<'_>, bytes: &[u8]) -> Result<(), Errno> {
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    if has_no_state(l1.options) {
        return Err(Errno::EINVAL);
    }
    match check(&l1, (cx.shared.kvm.tdp(), cx.vcpu.core.smm.active), cx.state, bytes)? {
        Wanted::Leave { gif } => {
            leave(cx.vcpu);
            exit::follow_leave(cx);
            cx.vcpu.nested.gif = gif;
            Ok(())
        }
        Wanted::Enter(entered) => {
            put(cx, &entered);
            // KVM refuses late, and stays in guest mode.
            if enter::restore(cx) { Ok(()) } else { Err(Errno::EINVAL) }
        }
    }
}

/// KVM_REQ_GET_NESTED_STATE_PAGES: L1's map, whose memory may have come after the state. PDPTEs came with KVM_SET_SREGS2. False:
/// the map cannot be read, KVM_RUN ends; older releases forget it then, and L2 runs with L0's map the next time.
pub fn get_pages(cx: &mut Cx<'_>) -> bool {
    if !std::mem::take(&mut cx.vcpu.nested.pages_wanted) {
        return true;
    }
    let (id, vmcb12) = (cx.vcpu.core.id, cx.vcpu.nested.vmcb12_gpa);
    let lost = FaultPoint::NESTED_STATE_PAGES.poll(id, vmcb12, 0, cx.host).is_some();
    let done = !lost && enter::merge_msrpm(cx);
    cx.vcpu.nested.pages_wanted = !done && cx.on(Switch::NESTED_PAGES_REQUESTED_AGAIN);
    done
}

/// KVM_CAP_NESTED_STATE.
pub fn size(options: &Options) -> usize {
    if has_no_state(options) { 0 } else { FULL_SIZE }
}

/// `svm_leave_nested`: L1's VMCB runs again, whatever is in the registers.
pub fn leave(vcpu: &mut SvmVcpu) {
    vcpu.nested.pages_wanted = false;
    if std::mem::take(&mut vcpu.core.guest_mode) {
        vcpu.nested.run_pending = false;
        vcpu.nested.vmcb12_gpa = INVALID_GPA;
        vcpu.vmcb01.vmcb.control.clean = Default::default();
    }
}

/// Puts checked state in place; the vCPU is in guest mode afterwards. What is made of it (`vmcb02`'s controls, the MMU) follows.
fn put(cx: &mut Cx<'_>, entered: &Entered) {
    let Entered { header, control, save } = entered;
    let cpuid = cx.vcpu.core.cpuid.clone();
    let l1 = &L1::new(cx.shared, &cpuid);
    let (vcpu, state) = (&mut *cx.vcpu, &mut *cx.state);
    let was_in = vcpu.core.guest_mode;
    leave(vcpu);
    let nested = &mut vcpu.nested;
    if !was_in {
        // The registers that were restored are L2's.
        nested.vmcb02.vmcb.save = vcpu.vmcb01.vmcb.save.clone();
        nested.vmcb02.mirror = vcpu.vmcb01.mirror;
    }
    if l1.on(Switch::NESTED_SET_GIF) {
        nested.gif = header.flags.gif_set();
    }
    nested.run_pending = header.flags.run_pending();
    nested.vmcb12_gpa = header.vmcb_pa;
    // Of the save area KVM's copy has nothing: L2's registers are in the vCPU.
    nested.vmcb12 = Vmcb { control: control.control.clone(), save: SaveArea::new_zeroed() };
    nested.vmcb12.save.rip = state.rip;
    nested.pages_wanted = true;
    copy_vmrun_state(l1, &mut vcpu.vmcb01.vmcb.save, save);
    vcpu.core.guest_mode = true;
    if l1.on(Switch::NESTED_RESTORE_ALL_DIRTY) {
        vcpu.nested.vmcb02.vmcb.control.clean = Default::default();
    }
    take_gpat(l1, vcpu, state, entered);
}

fn take_gpat(l1: &L1<'_>, vcpu: &mut SvmVcpu, state: &mut VcpuState, entered: &Entered) {
    let Entered { header, control, save } = entered;
    let np = control.control.nested_ctl.np_enable();
    let valid = header.gpat_or_flags & VALID_GPAT != 0;
    let nested = &mut vcpu.nested;
    (nested.legacy_gpat, nested.restore_gpat) = (false, false);
    let gpat = match form(l1) {
        Form::Merged if np => header.gpat_or_flags,
        Form::V3 if np && valid => header.v3_gpat,
        Form::V3 if np => {
            nested.legacy_gpat = l1.on(Switch::V3_GPAT_LEGACY);
            state.pat
        }
        Form::V2 if np && valid => save.g_pat,
        Form::V2 if np => {
            nested.restore_gpat = true;
            return;
        }
        // What was restored as IA32_PAT is gPAT, and L1's comes from the saved VMCB.
        Form::V1 if np && valid => std::mem::replace(&mut state.pat, save.g_pat),
        _ => state.pat,
    };
    nested.vmcb02.vmcb.save.g_pat = gpat;
    nested.vmcb02.vmcb.control.clean.set_np(false);
}
