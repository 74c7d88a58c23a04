//! SVM's instructions, which always exit.
//!
//! See: KVM arch/x86/kvm/svm/svm.c vmrun_interception(), vmload_vmsave_interception(), stgi_interception(),
//! clgi_interception(), invlpga_interception(), skinit_interception(); nested.c nested_svm_check_permissions()

use super::{
    enter, events,
    patches::L1,
    vmcb12::{self, Fields, Mapped, Unmapped},
};
use crate::{
    kvm::handlers::Cx,
    silicon::{
        vmcb::{SaveArea, VmcbSegment},
        vmrun::sign_extended,
    },
};
use vmtape_arch::{
    exception::Exception,
    exit::{Resume, ResumeKind, SvmExitCode as C},
    note::{Note, NoteKind},
    vcpu::{Segment, VcpuState, gpr, seg},
};
use vmtape_kvm_core::{emulate::emulation_error, profile::Switch};

/// The handler of an instruction by its exit code.
pub fn handle(cx: &mut Cx<'_>, code: C) -> Resume {
    if code == C::SKINIT {
        return skinit(cx);
    }
    if let Err(exception) = check_permissions(cx)
        && (code != C::INVLPGA || cx.on(Switch::INVLPGA_CHECKED))
    {
        return cx.inject(exception);
    }
    match code {
        C::VMRUN => enter::vmrun(cx),
        C::VMLOAD => vmload(cx),
        C::VMSAVE => vmsave(cx),
        C::STGI | C::CLGI => {
            let resume = cx.skip();
            events::set_gif(cx, code == C::STGI);
            resume
        }
        _ => invlpga(cx),
    }
}

/// `nested_svm_check_permissions`. In L2 it is L2's registers that count.
fn check_permissions(cx: &Cx<'_>) -> Result<(), Exception> {
    match &*cx.state {
        state if !state.efer().svme() || !state.cr0().pg() => Err(Exception::ud()),
        state if state.cpl != 0 => Err(Exception::gp(0)),
        _ => Ok(()),
    }
}

/// The VMCB that RAX points to.
pub struct VmcbAddress {
    pub gpa: u64,
    pub mapped: Mapped,
}

/// Maps it; otherwise how the instruction ends. What some releases do where the page has no `struct page` (skip VMRUN, execute
/// VMLOAD for ever) is about memory of devices, which no slot has here.
pub fn vmcb(cx: &mut Cx<'_>, fields: Fields) -> Result<VmcbAddress, Resume> {
    let l1 = L1::new(cx.shared, &cx.vcpu.core.cpuid);
    let address = vmcb12::address(&l1, cx.state.gpr[gpr::RAX], cx.state.is_64bit_code());
    let Some(gpa) = address else { return Err(cx.gp()) };
    match Mapped::read(&cx.shared.kvm.mmu.slots, gpa, fields, cx.host) {
        Ok(mapped) => Ok(VmcbAddress { gpa, mapped }),
        Err(Unmapped::Killed) => {
            cx.vcpu.core.killed = true;
            Err(cx.gp())
        }
        Err(_) if cx.on(Switch::VMCB_UNMAPPED_INTERNAL_ERROR) => {
            cx.note(Note::UserspaceExit { reason: ResumeKind::INTERNAL_ERROR.0, errno: 0 });
            Err(emulation_error())
        }
        Err(_) => Err(cx.gp()),
    }
}

/// Whether VMLOAD and VMSAVE work on a VMCB that L2's registers are not in: a bug of older releases.
fn lost(cx: &Cx<'_>) -> bool {
    cx.vcpu.is_guest_mode() && !cx.on(Switch::VMLOAD_ON_VMCB01)
}

/// `vmload_vmsave_interception`. Silicon makes bases canonical when it loads them.
fn vmload(cx: &mut Cx<'_>) -> Resume {
    let VmcbAddress { gpa, mapped } = match vmcb(cx, vmcb12::VMLOAD) {
        Ok(found) => found,
        Err(resume) => return resume,
    };
    // KVM maps for writing whatever it does with the page.
    cx.shared.kvm.mmu.mark_dirty(cx.vcpu.core.id, gpa >> 12, cx.host);
    let resume = cx.skip();
    if lost(cx) {
        cx.vcpu.nested.vmcb02.vmcb.save.copy_vmload(&mapped.vmcb.save);
    } else {
        mapped.vmcb.save.vmload(cx.state);
    }
    resume
}

fn vmsave(cx: &mut Cx<'_>) -> Resume {
    let VmcbAddress { gpa, mut mapped } = match vmcb(cx, vmcb12::VMLOAD) {
        Ok(found) => found,
        Err(resume) => return resume,
    };
    let resume = cx.skip();
    if lost(cx) {
        mapped.vmcb.save.copy_vmload(&cx.vcpu.nested.vmcb02.vmcb.save);
    } else {
        mapped.vmcb.save.vmsave(cx.state);
    }
    mapped.write_back(cx.host);
    cx.shared.kvm.mmu.mark_dirty(cx.vcpu.core.id, gpa >> 12, cx.host);
    resume
}

impl SaveArea {
    /// What VMLOAD and VMSAVE move. See: APM 15.5.2 VMSAVE and VMLOAD Instructions
    pub(crate) fn copy_vmload(&mut self, from: &Self) {
        (self.fs, self.gs, self.tr, self.ldtr) = (from.fs, from.gs, from.tr, from.ldtr);
        (self.kernel_gs_base, self.star, self.lstar) = (from.kernel_gs_base, from.star, from.lstar);
        (self.cstar, self.sfmask) = (from.cstar, from.sfmask);
        (self.sysenter_cs, self.sysenter_esp, self.sysenter_eip) =
            (from.sysenter_cs, from.sysenter_esp, from.sysenter_eip);
    }

    /// To the registers.
    pub(crate) fn vmload(&self, state: &mut VcpuState) {
        let la57 = state.cr4().la57();
        let load = |from: &VmcbSegment| Segment { base: sign_extended(from.base, la57), ..from.into() };
        (state.seg[seg::FS], state.seg[seg::GS]) = (load(&self.fs), load(&self.gs));
        (state.seg[seg::TR], state.seg[seg::LDTR]) = (load(&self.tr), load(&self.ldtr));
        state.kernel_gs_base = sign_extended(self.kernel_gs_base, la57);
        (state.star, state.lstar, state.cstar, state.sfmask) =
            (self.star, self.lstar, self.cstar, self.sfmask);
        (state.sysenter_cs, state.sysenter_esp, state.sysenter_eip) =
            (self.sysenter_cs, self.sysenter_esp, self.sysenter_eip);
    }

    /// From the registers.
    pub(crate) fn vmsave(&mut self, state: &VcpuState) {
        let store = |number: usize| VmcbSegment::from(&state.seg[number]);
        (self.fs, self.gs, self.tr, self.ldtr) =
            (store(seg::FS), store(seg::GS), store(seg::TR), store(seg::LDTR));
        (self.kernel_gs_base, self.star, self.lstar) = (state.kernel_gs_base, state.star, state.lstar);
        (self.cstar, self.sfmask) = (state.cstar, state.sfmask);
        (self.sysenter_cs, self.sysenter_esp, self.sysenter_eip) =
            (state.sysenter_cs, state.sysenter_esp, state.sysenter_eip);
    }
}

/// `invlpga_interception`: INVLPG in the context that runs; the ASID means nothing.
fn invlpga(cx: &mut Cx<'_>) -> Resume {
    let state = &*cx.state;
    let rax = state.gpr[gpr::RAX];
    let wide = if cx.on(Switch::VMCB_ADDRESS_CHECKED) { state.is_64bit_code() } else { state.efer().lma() };
    let whole = wide || !cx.on(Switch::NESTED_VMCB02);
    let address = if whole { rax } else { rax & 0xffff_ffff };
    if cx.host.wants(NoteKind::INVLPGA) {
        cx.note(Note::Invlpga { rip: cx.state.rip, asid: cx.state.gpr[gpr::RCX] as u32, address: rax });
    }
    cx.shared.kvm.mmu.invlpg(cx.vcpu.core.id, address, cx.host);
    cx.skip()
}

/// `skinit_interception`.
fn skinit(cx: &mut Cx<'_>) -> Resume {
    cx.note(Note::Skinit { rip: cx.state.rip, slb: cx.state.gpr[gpr::RAX] as u32 });
    cx.inject(Exception::ud())
}
